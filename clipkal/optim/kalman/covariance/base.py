"""What a covariance of the parameters has to offer; everything it is asked for is a product with H̃."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clipkal.optim.kalman.update import Innovation, Measurement, Weigher
from clipkal.optim.model.jacobian import Jacobian, ParameterVector


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
        return {name: t.clone() for name, t in self.tensors().items()}

    def load_state_dict(self, state: dict[str, Any], vector: ParameterVector) -> None:
        self.vector = vector
        self.assign({name: t.to(vector.device).clone() for name, t in state.items()})
