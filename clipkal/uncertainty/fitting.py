"""A temperature for every predictive, from validation images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipkal.uncertainty.gaussian import probit
from clipkal.uncertainty.predictor import MEMORY_BUDGET, Predictor
from clipkal.uncertainty.temperature import fit_temperature, minimise_nll


def temperatures(
    predictor: Predictor, inputs: Tensor, labels: Tensor, predictives: Sequence[str], prior_sd: float = 1.0
) -> dict[str, float]:
    """One temperature per predictive, over all classes; see `fit_temperature`.

    Draws beyond the memory budget are left out of the fit: the first of them serve.
    """
    found: dict[str, float] = {}
    logits = predictor.logits(inputs, len(labels), "validation")
    if "plugin" in predictives:
        found["plugin"] = fit_temperature(logits, labels, prior_sd)
    if "sampled" in predictives:
        found["sampled"] = fit_temperature(_draws(predictor, inputs, logits), labels, prior_sd)
    if "probit" in predictives:
        found["probit"] = _probit_temperature(predictor, inputs, labels, logits.shape[1], prior_sd)
    return found


def _draws(predictor: Predictor, inputs: Tensor, logits: Tensor) -> Tensor:
    most = max(1, MEMORY_BUDGET // (16 * logits.numel()))
    few = Predictor(
        predictor.model,
        predictor.posterior,
        min(predictor.n_samples, most),
        predictor.seed,
        predictor.batch_size,
    )
    draws = torch.zeros(few.n_samples, *logits.shape, dtype=torch.float64)
    filled = torch.zeros(len(logits), dtype=torch.int64)
    for _, rows, chunk in few.draws({"validation": (inputs, len(logits))}, logits.shape[1]):
        start = int(filled[rows.start])
        draws[start : start + len(chunk), rows] = chunk
        filled[rows] += len(chunk)
    return draws


def _probit_temperature(
    predictor: Predictor, inputs: Tensor, labels: Tensor, classes: int, prior_sd: float
) -> float:
    chunks = list(predictor.moments(inputs, len(labels), classes, "validation"))
    mean, covariance = (torch.cat(parts) for parts in zip(*chunks, strict=True))

    def nll(temperature: float) -> float:
        log_probs = probit(mean / temperature, covariance / temperature**2).log_probs
        assert log_probs is not None
        return -log_probs.gather(1, labels[:, None]).sum().item()

    return minimise_nll(nll, prior_sd)
