"""What a covariance of the parameters has to offer, and the diagonal one: P = diag(p), LoKO's (arXiv 2410.11551).

Everything a covariance is asked for is a product with H̃. The diagonal one's update, in the gain form:

    θ ← θ + K e,   p ← p ∘ (1 − diag(K H))                 (FD: the diagonal of the exact posterior)

Given a diagonal P and one block, mean and variances are those of the dense filter, then P is cut to its diagonal. The
gain carries the mean, since the diagonal information form,

    p ← 1/(1/p + diag(HᵀR⁻¹H)),   θ ← θ − p ∘ ∇NLL,

is diagonal preconditioning with unit step, which diverges on correlated inputs.

Cost of a block of b images, m outputs each: bilinear models see model/bilinear.py; otherwise the rows H̃
[bm, n] are formed, (bm)² n flop and bm·n memory. State: n numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clipkal.optim.draws import normal
from clipkal.optim.kalman.update import Innovation, Measurement, Weigher
from clipkal.optim.model.jacobian import Jacobian, ParameterVector
from clipkal.settings import Count, checked

FLOOR = 1e-12
"""Lowest variance after a time update, in units of the largest prior variance."""


class Covariance(ABC):
    """P [n, n] in a structured form. Each subclass says its form, its update, its cost and its memory.

    iterations: how often `update` linearises a block at most.
    """

    vector: ParameterVector
    iterations = 1

    @abstractmethod
    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        """P ← diag(prior), prior [n]; ValueError if this form cannot hold it."""

    @contextmanager
    def transaction(self, jacobian: Jacobian, atomic: bool = True) -> Iterator[Jacobian]:
        """One step: yields the Jacobian in the coordinates that `update` wants, and has moved θ in the end.

        atomic: if anything raises inside, θ and P are as they were before.
        """
        before = self.snapshot() if atomic else None
        try:
            yield jacobian
        except Exception:
            if before is not None:
                self.restore(before)
            raise

    @abstractmethod
    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        """Conditions on a block of images, jointly: moves θ and P, in place. If it raises, both are as they were."""

    @abstractmethod
    def predict(self, fading: float, process_noise: float) -> None:
        """P ← P / λ + q I: fading memory λ ≤ 1 and process noise q ≥ 0, before a batch."""

    @abstractmethod
    def shrink(self, strength: float) -> None:
        """P ← (P⁻¹ + λ I)⁻¹ for a strength λ ≥ 0."""

    @abstractmethod
    def unshrink(self, strength: float) -> None:
        """Takes a `shrink` before the last updates out again: P ← (P⁻¹ − λ I)⁻¹, never above what it was."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Deviations θ − θ̄ ~ N(0, P), [n, N]."""

    @abstractmethod
    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        """J P Jᵀ of each image [b, C, C], float64."""

    def trace(self) -> float | None:
        """tr P, where a sum over what is stored gives it; None where it would cost more."""
        return None

    def logit_noise(self, jacobian: Jacobian, n: int, generator: torch.Generator | None) -> Tensor | None:
        """Draws of the logits' deviations [n, b, C] without drawing θ, where there is a fast way; else None.

        Joint over the classes of an image; images are drawn independently.
        """
        return None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""

    @abstractmethod
    def assign(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` named; the caller gives the tensors away."""

    def snapshot(self) -> tuple[Tensor | None, dict[str, Tensor]]:
        """θ, and P by its tensors, as they are now."""
        return self.vector.gather(), self.state_dict()

    def restore(self, snapshot: tuple[Tensor | None, dict[str, Tensor]]) -> None:
        """Puts θ and P back as they were at the `snapshot`, which is used up."""
        mean, tensors = snapshot
        if mean is not None:
            self.vector.assign_(mean)
        self.assign(tensors)

    def state_dict(self) -> dict[str, Any]:
        """Copies of `tensors`."""
        return {name: t.clone() for name, t in self.tensors().items()}

    def load_state_dict(self, state: dict[str, Any], vector: ParameterVector) -> None:
        """Takes back what `state_dict` gave, for the parameters of `vector`."""
        self.vector = vector
        self.assign({name: t.to(vector.device).clone() for name, t in state.items()})


class Diagonal(Covariance):
    """n variances.

    iterations: how often a block is linearised at most, for the categorical observation of bilinear models; 1:
        extended Kalman filter.
    """

    variance: Tensor

    @checked
    def __init__(self, iterations: Count = 1):
        self.iterations = iterations

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        self.vector = vector
        self.variance = prior.to(vector.dtype).clone()
        self.floor = (FLOOR * prior.max()).to(vector.dtype)

    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        found = jacobian.diagonal_update(self.variance, measurement, weigher, self.iterations)
        jacobian.move(self.variance, found.gain)
        fall_(self.variance, found.fall)
        return found.innovation

    def predict(self, fading: float, process_noise: float) -> None:
        self.variance = torch.clamp(self.variance / fading + process_noise, min=self.floor)

    def shrink(self, strength: float) -> None:
        """p ← p / (1 + λ p)."""
        self.before_shrink = self.variance
        self.variance = self.variance / (1 + strength * self.variance)

    def unshrink(self, strength: float) -> None:
        """p ← p₀ / (1 + p₀ d) with d = 1/p − 1/p̃ ≥ 0, what the updates added to p̃⁻¹ = p₀⁻¹ + λ."""
        before, after = self.before_shrink, self.variance
        shrunk = before / (1 + strength * before)
        gained = ((shrunk - after) / (shrunk * after)).clamp_(min=0.0)
        self.variance = before / (1 + before * gained)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, len(self.variance)), self.variance, generator) * self.variance.sqrt()

    def trace(self) -> float:
        return float(self.variance.sum(dtype=torch.float64))

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        return jacobian.logit_covariance(self.variance)

    def logit_noise(self, jacobian: Jacobian, n: int, generator: torch.Generator | None) -> Tensor | None:
        return jacobian.logit_noise(self.variance, n, generator)

    def tensors(self) -> dict[str, Tensor]:
        return {"variance": self.variance, "floor": self.floor}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.variance, self.floor = tensors["variance"], tensors["floor"]


def fall_(p: Tensor, x: Tensor) -> None:
    """p ← p ∘ (1 − p ∘ x), in place; x is overwritten."""
    x.mul_(p).clamp_(0.0, 1 - 10 * torch.finfo(p.dtype).eps)  # beyond, rounding could reach 0
    p.addcmul_(p, x, value=-1.0)
