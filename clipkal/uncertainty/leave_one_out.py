"""What a posterior would say of each shot, had it not seen that shot; without learning again.

The posterior of an image's logits z is Gaussian, N(m, Σ), and what the image's own label brought to it is the site

    exp(w · (gᵀ(z − m) − ½ (z − m)ᵀ W (z − m))),   g = onehot(y) − π,   W = diag(π) − ππᵀ,   π = softmax(m)

with w the weight of the likelihood (1/T for a posterior at temperature T). Dividing it out leaves the cavity (Opper &
Winther 2000; Vehtari et al. 2016, section 2.2, arXiv 1412.7461)

    Σ₋ = (Σ⁻¹ − w W)⁻¹ = Σ + w Σ Q (I − w QᵀΣQ)⁻¹ QᵀΣ,   m₋ = m − w Σ₋ g,   W = Q Qᵀ, Q = diag(√π) − π√πᵀ

which is exact where the other sites stay as they are: hyper-parameters, and the curvature at the other shots, are not
made anew.
"""

from dataclasses import replace

import torch
from torch import Tensor

from clipkal.data.sets import LabelledSet
from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.reader import Reader

FLOPS = 5e10
"""About n·C³, for the n shots that are left out in turn; beyond it a random part of them serves."""
LEAST = 1e-3
"""Least eigenvalue of I − w QᵀΣQ, a choice of this project: a posterior that is not Laplace's may have none above 0."""
BLOCK = 2**22
"""Numbers of a stack of C × C matrices, or of draws, that are held at a time."""


def cavity(logits: Tensor, covariance: Tensor, labels: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean (N, C) and covariance (N, C, C) of each image's logits without its own label; float64.

    Args:
        logits: posterior means (N, C), of images that were learnt from.
        covariance: their posterior covariances (N, C, C).
        labels: the labels that were learnt (N,).
        weight: w, of the likelihood of one image in the posterior.
    """
    logits, covariance = logits.double(), covariance.double()
    probs = logits.softmax(1)
    root = probs.sqrt()
    factor = torch.diag_embed(root) - probs[:, :, None] * root[:, None, :]
    half = covariance @ factor
    inner = factor.mT @ half
    values, vectors = torch.linalg.eigh(0.5 * (inner + inner.mT))
    gain = half @ vectors
    scale = weight / (1 - weight * values).clamp(min=LEAST)
    without = covariance + (gain * scale[:, None, :]) @ gain.mT
    score = torch.nn.functional.one_hot(labels, logits.shape[1]) - probs
    return logits - weight * (without @ score[:, :, None])[:, :, 0], without


def leave_one_out(
    reader: Reader, predictive: Predictive, shots: LabelledSet, seed: int = 0
) -> tuple[Prediction, Tensor] | None:
    """What the predictive says of each shot without its own label, and the labels; of a part of them where C is large.

    None without a posterior that gives covariances. An image's novelty is that of the image as it stands among the shots.
    """
    posterior = reader.posterior
    weight = None if posterior is None else posterior.likelihood_weight()
    if weight is None:
        return None
    classes, count = reader.classes(shots.inputs, "shots"), len(shots.labels)
    few = min(count, max(1, int(FLOPS / classes**3)))
    kept = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:few].sort().values
    inputs, labels = (shots.inputs[kept] if few < count else shots.inputs), shots.labels.cpu()[kept]
    parts = []
    step = max(1, BLOCK // classes**2)
    needs = {"covariance", *predictive.needs} - {"draws"}
    for rows, chunk in reader.chunks(inputs, few, needs, "shots"):
        for some in (slice(start, start + step) for start in range(0, len(chunk), step)):
            these = labels[rows][some]
            parts.append(
                _predicted(predictive, chunk.rows(some), these, weight, seed + rows.start + some.start)
            )
    return Prediction.joined(parts), labels


def _predicted(predictive: Predictive, chunk: Chunk, labels: Tensor, weight: float, seed: int) -> Prediction:
    assert chunk.covariance is not None
    mean, covariance = cavity(chunk.logits, chunk.covariance, labels, weight)
    known = replace(chunk, logits=mean, covariance=covariance)
    if known.features is not None:
        known = replace(known, novelty=predictive.novelty(known))
    every = slice(0, len(known))
    accumulator = predictive.begin(*mean.shape)
    accumulator.add(every, known)
    if "draws" in predictive.needs:
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]
        generator = torch.Generator().manual_seed(seed)
        step = max(1, BLOCK // mean.numel())
        for start in range(0, predictive.samples, step):
            size = (min(step, predictive.samples - start), *mean.shape)
            noise = torch.randn(size, generator=generator, dtype=torch.float64)
            accumulator.add_draws(every, mean + torch.einsum("bcd,sbd->sbc", root, noise))
    return accumulator.prediction()
