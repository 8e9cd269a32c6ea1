"""The trainable parameters as one vector θ [n], and the Jacobian J = ∂logits/∂θ of a batch by the cheapest exact route.

* `BilinearJacobian` (bilinear.py): models whose logits are affine in one weight matrix. Two small factors, never formed.
* `HookJacobian` (layers.py): models whose trainable parameters are those of linear layers, LoRA factors for one.
* `FunctionalJacobian`: any module, by `torch.func` vmap(vjp) in chunks. Also the oracle in the tests.
J is only ever asked for as products, and each kind answers in its own way: nobody else asks which kind it is. What is
written in `Jacobian` itself is the general way, by rows.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from clipkal.optim.base import check_finite, trainable_parameters

if TYPE_CHECKING:
    from clipkal.optim.kalman.update import Innovation, Measurement, Weigher
    from clipkal.optim.parallel.shards import Shards

PROBES = 16
"""Random combinations that stand for all rows of an image where only the sum of their squares is asked for."""
MOST_ROWS = 256
"""Rows (backward passes) an image beyond which none are formed: a step would cost hundreds of AdamW's."""


class ParameterVector:
    """Where each trainable parameter lives in θ: contiguous, in `model.named_parameters()` order.

    names: of the parameters.
    shapes, offsets: one entry a parameter.
    size: n.
    dtype: at least float32, since a covariance in half precision loses its small variances.
    device: the parameters', which must share one.
    """

    def __init__(self, model: nn.Module):
        self.parameters = trainable_parameters(model)
        self.names = list(self.parameters)
        self.shapes = {name: p.shape for name, p in self.parameters.items()}
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, p in self.parameters.items():
            self.offsets[name] = self.size
            self.size += p.numel()
        dtypes = [p.dtype for p in self.parameters.values()]
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.device = next(iter(self.parameters.values())).device

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part [..., *shape] of flat [..., n] that belongs to a parameter; no copy."""
        shape = self.shapes[name]
        part = flat.narrow(-1, self.offsets[name], math.prod(shape))
        return part.view((*flat.shape[:-1], *shape))

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """flat [..., n] as one tensor [..., *shape] a parameter, in the parameter's dtype."""
        return {name: self.view(flat, name).to(p.dtype) for name, p in self.parameters.items()}

    def flatten(self, parts: Mapping[str, Tensor], leading: int = 0) -> Tensor:
        """One tensor [..., *shape] a parameter as flat [..., n]; `leading` counts the dots' dimensions."""
        return torch.cat([(p := parts[n]).reshape((*p.shape[:leading], -1)) for n in self.names], dim=-1)

    def gather(self) -> Tensor:
        """A copy of θ [n]."""
        return self.flatten({name: p.detach() for name, p in self.parameters.items()}).to(self.dtype)

    @torch.no_grad()
    def add_(self, delta: Tensor) -> None:
        """θ ← θ + delta, in place."""
        for name, p in self.parameters.items():
            p.add_(self.view(delta, name))

    @torch.no_grad()
    def assign_(self, flat: Tensor) -> None:
        """θ ← flat, in place."""
        for name, p in self.parameters.items():
            p.copy_(self.view(flat, name))


@dataclass
class DiagonalUpdate:
    """What a block of images does to N(θ, diag(p)), from a and M of `Innovation`.

        θ ← θ + p ∘ gain,   gain = H̃ᵀ a [n];        p ← p ∘ (1 − p ∘ fall),   fall = diag(H̃ᵀ M H̃) [n].

    Both have the shape of p, whatever that is.
    """

    gain: Tensor
    fall: Tensor
    innovation: "Innovation"


class Jacobian(ABC):
    """J of b images at one θ.

    logits: [b, C], as the model gave them.
    vector: the layout of θ.
    """

    logits: Tensor
    vector: ParameterVector

    @abstractmethod
    def pull(self, cotangents: Tensor) -> Tensor:
        """cotangentsᵀ J [b, m, n] for cotangents [b, C, m]."""

    @abstractmethod
    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        """‖Σ_i Jᵢᵀ cᵢ‖² of cotangents [b, C], 0-dim float64."""

    @abstractmethod
    def relinearised(self, images: slice) -> "Jacobian":
        """That of some of the images at the θ of now."""

    def gathered(self, shards: "Shards") -> "Jacobian | None":
        """That of the whole batch, of which this process has its share, where little has to be sent for it; else None."""
        return None

    def factors(self) -> tuple[Tensor, Tensor]:
        """left [C, p] and right [b, q] of a bilinear model; ValueError for other Jacobians."""
        raise ValueError("covariance 'subspace' needs the bilinear route")

    def rows(self, measurement: "Measurement") -> Tensor:
        """H̃ = Qᵀ J [b, m, n]."""
        return self.pull(measurement.cotangents())

    def logit_rows(self) -> Tensor:
        """J itself [b, C, n]."""
        b, C = self.logits.shape
        return self.pull(torch.eye(C, dtype=torch.float64, device=self.logits.device).expand(b, C, C))

    def squared_rows(self, measurement: "Measurement") -> dict[str, Tensor]:
        """Σ_i ‖H̃_i‖²_F over the columns of each parameter, by name; 0-dim float64. Of many rows an estimate (sketch)."""
        rows = self.pull(sketch(measurement.cotangents()))
        return {name: self.vector.view(rows, name).double().square().sum() for name in self.vector.names}

    def diagonal_update(
        self, variance: Tensor, measurement: "Measurement", weigher: "Weigher", iterations: int
    ) -> DiagonalUpdate:
        """Conditions N(θ, diag(variance)) on the block; changes nothing. (bm)² n flop by rows, linearised once.

        iterations: how often a block may be linearised, where that takes no more passes through the model.
        """
        rows = self.rows(measurement)
        H = rows.reshape(-1, rows.shape[-1])
        innovation = measurement.condition(gram_matrix(H, variance), weigher)
        gain = innovation.vector.reshape(-1).to(H.dtype) @ H
        fall = (innovation.root().mT.to(H.dtype) @ H).square().sum(0)
        return DiagonalUpdate(gain, fall, innovation)

    def move(self, variance: Tensor, gain: Tensor) -> None:
        """θ ← θ + variance ∘ gain; FloatingPointError, and θ as it was, if that is not finite."""
        change = variance * gain
        check_finite(change, "the change of the parameters")
        self.vector.add_(change)

    def logit_covariance(self, variance: Tensor) -> Tensor:
        """J diag(variance) Jᵀ of each image [b, C, C], float64."""
        return torch.stack([gram_matrix(image, variance) for image in self.logit_rows()])

    def logit_noise(self, variance: Tensor, n: int, generator: torch.Generator | None) -> Tensor | None:
        """Draws [n, b, C] of J δ, δ ~ N(0, diag(variance)), images independently, if no rows are needed; else None."""
        return None


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


def gram_matrix(rows: Tensor, weights: Tensor | None = None, chunk: int = 1 << 16) -> Tensor:
    """rows diag(weights) rowsᵀ in float64 for rows [k, n] of any float dtype; `chunk` columns at a time.

    Products are exact to float64, so the result is positive semi-definite to 1e-16. k² n flop.
    """
    k, n = rows.shape
    total = rows.new_zeros(k, k, dtype=torch.float64)
    for start in range(0, n, chunk):
        part = rows[:, start : start + chunk].double()
        right = part if weights is None else part * weights[start : start + chunk].double()
        total.addmm_(right, part.mT)
    return total


class JacobianRoute(ABC):
    """How a model's Jacobian is obtained.

    name: bilinear, hooks or func, whichever it really takes.
    covariance: the word of the covariance that suits it, which "auto" stands for.
    needs: what a model must be for it.
    """

    name = "func"
    covariance = "diagonal"
    needs = "a module"

    def __init__(self, model: nn.Module, vector: ParameterVector, memory: int):
        self.model, self.vector, self.memory = model, vector, memory

    @staticmethod
    def fits(model: nn.Module, vector: ParameterVector) -> bool:
        """Whether the model can take this route."""
        return True

    @abstractmethod
    def linearise(self, inputs: Tensor) -> Jacobian:
        """The Jacobian, and the logits, of inputs [b, …] at the present θ; one forward pass without gradient."""

    def images_that_fit(self, memory: int, outputs: int) -> int | None:
        """How many images' rows, `outputs` each, fit into so many bytes; None where rows are not formed."""
        return memory // (outputs * self.vector.size * self.vector.dtype.itemsize)


@dataclass
class FunctionalJacobian(Jacobian):
    """J of any module by `torch.func`: m vector-Jacobian products an image, vectorised, as many images as fit at a time."""

    logits: Tensor
    inputs: Tensor
    route: "FunctionalRoute"

    def __post_init__(self) -> None:
        self.vector = self.route.vector

    def pull(self, cotangents: Tensor) -> Tensor:
        parameters = self._parameters()

        def of_image(image: Tensor, c: Tensor) -> dict[str, Tensor]:
            logits, back, *_ = vjp(lambda theta: self._logits_of(theta, image[None])[0], parameters)
            return vmap(back)(c.mT.to(logits.dtype))[0]

        chunk = self.route.images_that_fit(self.route.memory, cotangents.shape[-1]) or 1
        parts = vmap(of_image, chunk_size=min(len(self.inputs), chunk))(self.inputs, cotangents)
        return self.vector.flatten(parts, leading=2).to(self.vector.dtype)

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        logits, back, *_ = vjp(lambda theta: self._logits_of(theta, self.inputs), self._parameters())
        gradient = back(cotangents.to(logits.dtype))[0]
        return torch.stack([g.double().square().sum() for g in gradient.values()]).sum()

    def relinearised(self, images: slice) -> Jacobian:
        return self.route.linearise(self.inputs[images])

    def _parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.vector.parameters.items()}

    def _logits_of(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        # torch.func does not see through compile
        plain = getattr(self.route.model, "_orig_mod", self.route.model)
        return functional_call(plain, parameters, (inputs,))


class FunctionalRoute(JacobianRoute):
    """The general route. The model must treat images independently (no batch norm in training mode).

    memory: bytes that the vectorised products of one chunk may take.
    """

    def linearise(self, inputs: Tensor) -> FunctionalJacobian:
        return FunctionalJacobian(self.model(inputs), inputs, self)
