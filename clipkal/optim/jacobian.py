"""The Jacobian J = ∂logits/∂θ of a batch, by the cheapest exact route; it is only ever asked for as products.

* `BilinearRoute`: models whose logits are affine in one weight matrix. Two small factors, never formed.
* `HookRoute` (hooks.py): models whose trainable parameters are those of linear layers, LoRA factors for one.
* `FunctionalRoute`: any module, by `torch.func` vmap(vjp) in chunks. Also the oracle in the tests.
`make_route` (routes.py) takes the cheapest that fits; nothing else knows how rows are made.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from clipkal.optim.measurement import Measurement
from clipkal.optim.vector import ParameterVector

FEW_CLASSES = 24  # up to here all products of two rows of `left` are kept
PROBES = 16  # random combinations that stand for all rows of an image where only the sum of their squares is asked for


class BilinearModel(Protocol):
    """A module whose logits are affine in a weight matrix, with a Jacobian of rank one per (image, class).

    weight: Parameter [p, q].
    jacobian_factors(inputs) -> (left [C, p], right [B, q]):
        ∂logits[i, c]/∂weight[a, b] = left[c, a] · right[i, b]; `left` already contains any logit scale.
    log_scale (optional): 0-dim Parameter with logits ∝ exp(log_scale), so ∂logits/∂log_scale = logits.
    """

    weight: nn.Parameter

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]: ...


def is_bilinear(model: nn.Module) -> TypeGuard[BilinearModel]:
    """Whether the module has what `BilinearModel` names.

    Asked of the object, attribute by attribute: an `isinstance` check on a protocol with data members depends
    on the version of Python (from 3.12 on it does not see parameters, which a module holds in a dictionary).
    """
    weight = getattr(model, "weight", None)
    return isinstance(weight, nn.Parameter) and callable(getattr(model, "jacobian_factors", None))


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
class BilinearJacobian(Jacobian):
    """J of a bilinear model: left [C, p], right [b, q], and extra columns [b, C, e] of parameters outside the matrix.

    vector: where `weight` (and `log_scale`, whose column is the logits) live in θ.
    """

    logits: Tensor
    left: Tensor
    right: Tensor
    extra: Tensor
    vector: ParameterVector
    _products: Tensor | None = field(default=None, repr=False)

    def left_products(self) -> Tensor:
        """left[c] ∘ left[c'] [C², p], kept."""
        if self._products is None:
            self._products = (self.left[:, None, :] * self.left[None, :, :]).flatten(0, 1)
        return self._products

    def at(self, images: slice, logits: Tensor) -> "BilinearJacobian":
        """The images of a slice, at a new θ that has left the factors as they are."""
        part = BilinearJacobian(logits, self.left, self.right[images], self.extra[images], self.vector)
        part._products = self.left_products() if self._products is not None else None
        return part

    def double(self) -> "BilinearJacobian":
        """The same in float64."""
        factors = self.left.double(), self.right.double(), self.extra.double()
        return BilinearJacobian(self.logits, *factors, self.vector)

    def pull(self, cotangents: Tensor) -> Tensor:
        c = cotangents.to(self.right.dtype)
        weight = (c.mT @ self.left.to(c.dtype))[..., None] * self.right[:, None, None, :]
        parts = {"weight": weight}
        if self.extra.shape[-1]:
            parts["log_scale"] = (c.mT @ self.extra.to(c.dtype))[..., 0]
        return self.vector.flatten(parts, leading=2)

    def squared_rows(self, measurement: Measurement) -> dict[str, Tensor]:
        left = measurement.pull(self.left).square().sum((1, 2))
        return {
            "weight": left.dot(self.right.double().square().sum(1)),
            "log_scale": measurement.pull(self.extra).square().sum(),
        }

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        c = cotangents.double()
        left, right = c @ self.left.double(), self.right.double()
        outer = (left @ left.mT) * (right @ right.mT)
        extra = (c[..., None] * self.extra.double()).sum((0, 1))
        return outer.sum() + extra.square().sum()


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
    """How a model's Jacobian is obtained. name: bilinear, hooks or func, whichever it really takes."""

    name: str

    @abstractmethod
    def linearise(self, inputs: Tensor) -> Jacobian:
        """The Jacobian, and the logits, of inputs [b, …] at the present θ; one forward pass without gradient."""

    def relinearise(self, whole: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        """The same for a slice of a batch whose Jacobian `whole` was taken at an older θ."""
        return self.linearise(inputs[images])


class BilinearRoute(JacobianRoute):
    """The analytic route: the factors, plus the logits as the column of a trainable log_scale."""

    name = "bilinear"

    def __init__(self, model: nn.Module, vector: ParameterVector):
        self.model: Any = model
        self.vector = vector
        self.scale_is_trainable = "log_scale" in vector.names

    @staticmethod
    def fits(model: nn.Module, vector: ParameterVector) -> bool:
        """Whether the model is bilinear and trains its `weight`, and at most its `log_scale`, besides."""
        names = set(vector.names)
        return is_bilinear(model) and "weight" in names and names <= {"weight", "log_scale"}

    def linearise(self, inputs: Tensor) -> BilinearJacobian:
        logits = self.model(inputs)
        left, right = self.model.jacobian_factors(inputs)
        extra = logits[..., None] if self.scale_is_trainable else logits.new_empty((*logits.shape, 0))
        dtype = self.vector.dtype
        factors = left.detach().to(dtype), right.detach().to(dtype), extra.detach()
        return BilinearJacobian(logits, *factors, self.vector)

    def relinearise(self, whole: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        if self.scale_is_trainable or not isinstance(whole, BilinearJacobian):
            return self.linearise(inputs[images])
        if len(whole.left) <= FEW_CLASSES:
            whole.left_products()
        return whole.at(images, self.model(inputs[images]))


class FunctionalRoute(JacobianRoute):
    """The general route. The model must treat images independently (no batch norm in training mode).

    memory: bytes that the vectorised products of one chunk may take.
    """

    name = "func"

    def __init__(self, model: nn.Module, vector: ParameterVector, memory: int):
        self.model, self.vector, self.memory = model, vector, memory

    def linearise(self, inputs: Tensor) -> FunctionalJacobian:
        plain = getattr(self.model, "_orig_mod", self.model)  # torch.func does not go through torch.compile
        return FunctionalJacobian(self.model(inputs), inputs, plain, self.vector, self.memory)
