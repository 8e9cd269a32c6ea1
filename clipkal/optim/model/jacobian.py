"""The Jacobian J = ∂logits/∂θ of a batch, by the cheapest exact route; it is only ever asked for as products.

* `BilinearRoute` (bilinear.py): models whose logits are affine in one weight matrix. Two small factors, never formed.
* `HookRoute` (hooks.py): models whose trainable parameters are those of linear layers, LoRA factors for one.
* `FunctionalRoute`: any module, by `torch.func` vmap(vjp) in chunks. Also the oracle in the tests.
`make_route` (routes.py) takes the cheapest that fits; nothing else knows how rows are made.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from clipkal.optim.model.measurement import Measurement
from clipkal.optim.model.parameters import ParameterVector

PROBES = 16  # random combinations that stand for all rows of an image where only the sum of their squares is asked for


class Jacobian(ABC):
    """J of b images at one θ. logits: [b, C], as the model gave them. vector: the layout of θ."""

    logits: Tensor
    vector: ParameterVector

    @abstractmethod
    def pull(self, cotangents: Tensor) -> Tensor:
        """cotangentsᵀ J [b, m, n] for cotangents [b, C, m]."""

    @abstractmethod
    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        """‖Σ_i Jᵢᵀ cᵢ‖² of cotangents [b, C], 0-dim float64."""

    def rows(self, measurement: Measurement) -> Tensor:
        """H̃ = Qᵀ J [b, m, n]."""
        return self.pull(measurement.cotangents())

    def squared_rows(self, measurement: Measurement) -> dict[str, Tensor]:
        """Σ_i ‖H̃_i‖²_F over the columns of each parameter, by name; 0-dim float64. Of many rows an estimate (sketch)."""
        rows = self.pull(sketch(measurement.cotangents()))
        return {name: self.vector.view(rows, name).double().square().sum() for name in self.vector.names}


def sketch(cotangents: Tensor) -> Tensor:
    """At most PROBES combinations [b, C, k] of the m columns of cotangents [b, C, m], with random signs over √k.

    E‖(c s)ᵀJ‖² = ‖cᵀJ‖²_F for signs s (Hutchinson 1989): k backward passes tell the size of a Jacobian of any number of
    outputs. The signs are the same for all images, always, and in every process.
    """
    m = cotangents.shape[-1]
    if m <= PROBES:
        return cotangents
    signs = torch.randint(0, 2, (m, PROBES), generator=torch.Generator().manual_seed(0))
    return cotangents @ (2 * signs - 1).to(cotangents) / PROBES**0.5


@dataclass
class FunctionalJacobian(Jacobian):
    """J of any module by `torch.func`: m vector-Jacobian products an image, vectorised, `chunk` images at a time."""

    logits: Tensor
    inputs: Tensor
    model: nn.Module
    vector: ParameterVector
    memory: int

    def _logits_of(self, parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(self.model, parameters, (image[None],))[0]

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.vector.parameters.items()}

    def pull(self, cotangents: Tensor) -> Tensor:
        parameters = self._parameters()

        def of_image(image: Tensor, c: Tensor) -> dict[str, Tensor]:
            logits, back, *_ = vjp(lambda theta: self._logits_of(theta, image), parameters)
            return vmap(back)(c.mT.to(logits.dtype))[0]

        m = cotangents.shape[-1]
        per_image = m * self.vector.size * torch.finfo(self.vector.dtype).bits // 8
        chunk = max(1, min(len(self.inputs), self.memory // max(per_image, 1)))
        parts = vmap(of_image, chunk_size=chunk)(self.inputs, cotangents)
        return self.vector.flatten(parts, leading=2).to(self.vector.dtype)

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        parameters = self._parameters()
        logits, back, *_ = vjp(lambda theta: functional_call(self.model, theta, (self.inputs,)), parameters)
        gradient = back(cotangents.to(logits.dtype))[0]
        return torch.stack([g.double().square().sum() for g in gradient.values()]).sum()


class JacobianRoute(ABC):
    """How a model's Jacobian is obtained."""

    @abstractmethod
    def linearise(self, inputs: Tensor) -> Jacobian:
        """The Jacobian, and the logits, of inputs [b, …] at the present θ; one forward pass without gradient."""

    def relinearise(self, whole: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        """The same for a slice of a batch whose Jacobian `whole` was taken at an older θ."""
        return self.linearise(inputs[images])


class FunctionalRoute(JacobianRoute):
    """The general route. The model must treat images independently (no batch norm in training mode).

    memory: bytes that the vectorised products of one chunk may take.
    """

    def __init__(self, model: nn.Module, vector: ParameterVector, memory: int):
        self.model, self.vector, self.memory = model, vector, memory

    def linearise(self, inputs: Tensor) -> FunctionalJacobian:
        plain = getattr(self.model, "_orig_mod", self.model)  # torch.func does not go through torch.compile
        return FunctionalJacobian(self.model(inputs), inputs, plain, self.vector, self.memory)
