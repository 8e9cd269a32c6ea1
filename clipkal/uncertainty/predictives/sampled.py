"""The Bayesian predictive by sampling: the mean softmax over draws of the logits, streamed in chunks."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from clipkal.settings import DRAWS, Draws, checked
from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.prediction import Prediction, entropy_of, log_softmax
from clipkal.uncertainty.predictive import Accumulator, Predictive

ROUNDING = 1e-9
"""A mutual information this far below 0 (nats) is rounding; further below is a bug."""


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

    def add(self, rows: slice, chunk: Chunk) -> None:
        """The logits at the learnt parameters are no draw."""

    def add_draws(self, rows: slice, draws: Tensor) -> None:
        """Adds draws (S, B, C) of the B images at `rows`. Raises ValueError for a wrong shape or logits that are not finite."""
        log_probs = log_softmax(draws, 3)
        if log_probs.shape[1:] != self._log_sum[rows].shape:
            raise ValueError(
                f"draws {tuple(draws.shape)} do not fit {tuple(self._log_sum[rows].shape)} images × classes"
            )
        self._log_sum[rows] = torch.logaddexp(self._log_sum[rows], log_probs.logsumexp(0))
        self._entropy_sum[rows] += entropy_of(log_probs.exp(), log_probs).sum(0)
        self._draws[rows] += len(log_probs)

    def prediction(self) -> Prediction:
        """The averages so far. Raises ValueError if an image has no draw yet."""
        if not (self._draws > 0).all():
            raise ValueError("every image needs at least one draw of its logits")
        log_probs = self._log_sum - self._draws[:, None].log()
        log_probs = log_probs - log_probs.logsumexp(1, keepdim=True)  # rounding only
        probs = log_probs.exp()
        entropy = entropy_of(probs, log_probs)
        epistemic = entropy - self._entropy_sum / self._draws
        if (epistemic < -ROUNDING).any():
            raise ArithmeticError(
                f"mutual information of {epistemic.min().item():.3g} nats: the averages are wrong"
            )
        epistemic = epistemic.clamp(min=0)
        return Prediction(probs, entropy, entropy - epistemic, epistemic, log_probs)


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
