"""What a covariance of the parameters has to offer; everything it is asked for is a product with H̃."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from clipkal.optim.kalman.innovation import Innovation, Weigher
from clipkal.optim.model.jacobian import Jacobian
from clipkal.optim.model.measurement import Measurement
from clipkal.optim.model.parameters import ParameterVector


class Covariance(ABC):
    """P [n, n] in a structured form. Each subclass says its form, its update, its cost and its memory.

    `update` is atomic: if it raises, θ and P are as they were. `snapshot` and `restore` undo a run of
    updates.
    """

    vector: ParameterVector
    grows = False
    """Whether `prepare` changes the state."""
    iterations = 1
    """How often `update` linearises a block at most."""
    moves_mean = True
    """Whether `update` moves θ by itself; if not, `settle` does, as the last thing of a step, and atomically."""

    @abstractmethod
    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        """P ← diag(prior), prior [n]."""

    def prepare(self, jacobian: Jacobian) -> Jacobian:
        """The Jacobian as `update` wants it."""
        return jacobian

    def relinearise(self, prepared: Jacobian, images: slice) -> Jacobian | None:
        """The prepared Jacobian of some images at the θ of now, where that is known without the model; else None."""
        return None

    def settle(self) -> None:  # noqa: B027
        """The updates of a step are over: θ is to hold all of them."""

    @abstractmethod
    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        """Conditions on a block of images, jointly: moves θ (by way of `vector`) and P, in place."""

    @abstractmethod
    def predict(self, fading: float, process_noise: float) -> None:
        """P ← P / λ + q I: fading memory λ ≤ 1 and process noise q ≥ 0, before a batch."""

    @abstractmethod
    def shrink(self, precision: float) -> None:
        """P ← (P⁻¹ + precision I)⁻¹."""

    @abstractmethod
    def unshrink(self, precision: float) -> None:
        """Takes a `shrink` before the last updates out again: P ← (P⁻¹ − precision I)⁻¹, never above what it was."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Deviations θ − θ̄ ~ N(0, P), [n, N]."""

    @abstractmethod
    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        """J P Jᵀ of each image [b, C, C], float64."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""

    @abstractmethod
    def assign(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` named; the caller gives the tensors away."""

    def logit_noise(self, jacobian: Jacobian, n: int, generator: torch.Generator | None) -> Tensor | None:
        """Draws of the logits' deviations [n, b, C] without drawing θ, where there is a fast way; else None.

        Joint over the classes of an image; images are drawn independently.
        """
        return None

    def snapshot(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.tensors().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        self.assign(snapshot)

    def state_dict(self) -> dict[str, Any]:
        return self.snapshot()

    def load_state_dict(self, state: dict[str, Any], vector: ParameterVector) -> None:
        self.vector = vector
        self.assign({name: t.to(vector.device).clone() for name, t in state.items()})


def class_cotangents(jacobian: Jacobian) -> Tensor:
    """The identity for each image [b, C, C], float64: pulls J itself."""
    b, C = jacobian.logits.shape
    return torch.eye(C, dtype=torch.float64, device=jacobian.logits.device).expand(b, C, C)
