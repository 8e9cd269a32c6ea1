"""The Bayesian predictive by sampling: the mean softmax over draws of the logits, streamed in chunks."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from clipkal.settings import DRAWS, Draws, checked
from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.prediction import Prediction, entropy_of
from clipkal.uncertainty.predictive import Accumulator, Predictive

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}
"""A mutual information this far below 0 (nats) is rounding of draws in this precision; further below is a bug."""
CACHE = 2**18
"""About as many logits are worked on at a time, so that they stay in the processor's cache from one pass to the next."""


class Sampled(Predictive):
    """The mean of the class probabilities over draws from the posterior; see `SampleAverage`.

    Args:
        samples: how many draws.
    """

    needs = ("draws",)

    @checked
    def __init__(self, samples: Draws = DRAWS):
        self.samples = samples

    def begin(self, images: int, classes: int) -> Accumulator:
        return SampleAverage(images, classes)


class SampleAverage(Accumulator):
    """Running averages over logit draws of N images, so that only one chunk of draws is in memory.

        p̄ = 1/S Σ_s softmax(z_s)
        total = H[p̄],   aleatoric = 1/S Σ_s H[softmax(z_s)],   epistemic = total − aleatoric

    Log-probabilities are accumulated (log-sum-exp over draws), so log p̄ stays finite where p̄ underflows.
    The draws must be joint over the classes of an image: most of their variance can be common to all
    classes and cancels in the softmax, which per-class variances cannot express.

    Args:
        images: N.
        classes: C.
    """

    def __init__(self, images: int, classes: int) -> None:
        self._log_sum = torch.full((images, classes), -math.inf, dtype=torch.float64)
        self._entropy_sum = torch.zeros(images, dtype=torch.float64)
        self._draws = torch.zeros(images, dtype=torch.float64)
        self._rounding = ROUNDING[torch.float64]

    def add(self, rows: slice, chunk: Chunk) -> None:
        """The logits at the learnt parameters are no draw."""

    def add_draws(self, rows: slice, draws: Tensor) -> None:
        """Adds draws (S, B, C) of the B images at `rows`. Raises ValueError for a wrong shape or logits that are not finite."""
        if draws.shape[1:] != self._log_sum[rows].shape:
            raise ValueError(
                f"draws {tuple(draws.shape)} do not fit {tuple(self._log_sum[rows].shape)} images × classes"
            )
        log_sum, entropy_sum = sums(draws)
        self._log_sum[rows] = torch.logaddexp(self._log_sum[rows], log_sum)
        self._entropy_sum[rows] += entropy_sum
        self._draws[rows] += len(draws)
        self._rounding = max(self._rounding, ROUNDING.get(draws.dtype, ROUNDING[torch.float32]))

    def prediction(self) -> Prediction:
        """The averages so far. Raises ValueError if an image has no draw yet."""
        if not (self._draws > 0).all():
            raise ValueError("every image needs at least one draw of its logits")
        log_probs = self._log_sum - self._draws[:, None].log()
        log_probs = log_probs - log_probs.logsumexp(1, keepdim=True)  # rounding only
        probs = log_probs.exp()
        entropy = entropy_of(probs, log_probs)
        epistemic = entropy - self._entropy_sum / self._draws
        if (epistemic < -self._rounding).any():
            raise ArithmeticError(
                f"mutual information of {epistemic.min().item():.3g} nats: the averages are wrong"
            )
        epistemic = epistemic.clamp(min=0)
        return Prediction(probs, entropy, entropy - epistemic, epistemic, log_probs)


def sums(draws: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ_s softmax(z_s) [B, C] and Σ_s H[softmax(z_s)] [B] of draws z [S, B, C], on the CPU in float64.

    Computed in the precision of the draws (at least float32, good to 1e-6 in probabilities and nats), a few images at a time.
    Raises ValueError where a logit is not finite.
    """
    logits = draws.detach().to("cpu", torch.promote_types(draws.dtype, torch.float32))
    samples, images, classes = logits.shape
    log_sum = torch.empty(images, classes, dtype=torch.float64)
    entropy_sum = torch.empty(images, dtype=torch.float64)
    few = max(1, CACHE // max(1, samples * classes))
    for start in range(0, images, few):
        rows = slice(start, start + few)
        log_probs = logits[:, rows].log_softmax(-1)
        probs = log_probs.exp()
        log_sum[rows] = _log_of_sum(probs.sum(0), log_probs)
        entropy_sum[rows] = -torch.linalg.vecdot(probs, log_probs).double().sum(0)
    if not torch.isfinite(entropy_sum).all():
        raise ValueError(f"{int((~torch.isfinite(logits)).sum())} of {logits.numel()} logits are not finite")
    return log_sum, entropy_sum


def _log_of_sum(total: Tensor, log_probs: Tensor) -> Tensor:
    """log of total = Σ_s p_s [B, C], and by log-sum-exp where that is too near to underflow for its digits."""
    found = total.double().log()
    tiny = total < 1e3 * torch.finfo(total.dtype).tiny
    if tiny.any():
        found[tiny] = log_probs[:, tiny].double().logsumexp(0)
    return found


def sampled(chunks: Iterable[Tensor]) -> Prediction:
    """The predictive from chunks of logit draws of the same N images, each (S_k, N, C); all draws weigh the same.

    Raises:
        ValueError: no chunk, chunks of different shapes, or logits that are not finite.
    """
    average: SampleAverage | None = None
    for chunk in chunks:
        average = average or SampleAverage(*chunk.shape[-2:])
        average.add_draws(slice(None), chunk)
    if average is None:
        raise ValueError("no logit samples were given")
    return average.prediction()
