"""The Jacobian of linear layers anywhere in a network, from what hooks see: inputs x and output gradients g.

A layer y = W x + b that image i passes through with tokens t has, for a scalar function of that image,
    ∂/∂W = Σ_t g_t x_tᵀ [p, q]        ∂/∂b = Σ_t g_t [p]
One backward pass gives g of all layers and all images at once (images are independent), so a row of H̃ for every
image of a batch costs one backward pass without weight gradients, and the products above; C rows cost C passes.
No vmap, no copy of the model, any attention kernel.
"""

import logging
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from clipkal.optim.jacobian import FunctionalRoute, Jacobian, JacobianRoute
from clipkal.optim.layers import Capture, Layer, capture, find_layers, shapes_of_one_and_two
from clipkal.optim.vector import ParameterVector

log = logging.getLogger("clipkal")

MOST_ROWS = 256
"""Rows (backward passes) an image above which the route refuses: a step would cost hundreds of AdamW's."""


def warn_slow(reason: str) -> None:
    """Says that the fast routes do not fit."""
    log.warning(
        "the Jacobian is taken by torch.func, an image at a time, because %s: training nn.Linear layers only (LoRA "
        "factors are such) would be several times faster",
        reason,
    )


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass: inputs [..., q], the edge of its outputs [..., p], and which dimension
    counts images."""

    layer: Layer
    inputs: Tensor
    edge: GradientEdge
    images: int

    def inputs_by_image(self) -> Tensor:
        """x [b, T, q]."""
        return _by_image(self.inputs.detach(), self.images)

    def gradients_by_image(self, g: Tensor) -> Tensor:
        """g [b, T, p] of output gradients [..., p]."""
        return _by_image(g, self.images)


def _by_image(x: Tensor, dim: int) -> Tensor:
    x = x.movedim(dim, 0)
    return x.reshape(len(x), -1, x.shape[-1])


@dataclass
class HookJacobian(Jacobian):
    """J of the images of one forward pass, whose graph it keeps; `seconds` that pass took."""

    graph: Tensor
    calls: list[Call]
    vector: ParameterVector
    memory: int
    seconds: float = 0.0
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.logits = self.graph.detach()

    def pull(self, cotangents: Tensor) -> Tensor:
        """As in Jacobian: m backward passes. ValueError, with the cost, for more rows than MOST_ROWS or the memory hold."""
        b, _, m = cotangents.shape
        self._check_affordable(b, m)
        rows = torch.zeros(b, m, self.vector.size, dtype=self.vector.dtype, device=cotangents.device)
        for j in range(m):
            row = rows[:, j]
            for call, g in zip(self.calls, self._backward(cotangents[..., j]), strict=True):
                self._add(row, call, g)
        if "log_scale" in self.vector.names:
            self.vector.view(rows, "log_scale").copy_(
                torch.einsum("bcm,bc->bm", cotangents, self.logits.double())
            )
        return rows

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        total = torch.zeros(1, self.vector.size, dtype=self.vector.dtype, device=cotangents.device)
        for call, g in zip(self.calls, self._backward(cotangents), strict=True):
            if g is not None:
                self._add_product(
                    total, call.layer, g.flatten(0, -2)[None], call.inputs.detach().flatten(0, -2)[None]
                )
        if "log_scale" in self.vector.names:
            self.vector.view(total, "log_scale").copy_((cotangents * self.logits.double()).sum())
        return total.double().square().sum()

    def _backward(self, cotangent: Tensor) -> list[Tensor | None]:
        """The gradients of Σ cotangent ∘ logits, for cotangent [b, C], at every call's outputs."""
        edges: list[GradientEdge] = [call.edge for call in self.calls]
        with torch.enable_grad():
            found = torch.autograd.grad(
                self.graph, edges, cotangent.to(self.graph.dtype), retain_graph=True, allow_unused=True
            )
        return list(found)

    def _add(self, row: Tensor, call: Call, g: Tensor | None) -> None:
        if g is not None:
            self._add_product(row, call.layer, call.gradients_by_image(g), call.inputs_by_image())

    def _add_product(self, row: Tensor, layer: Layer, g: Tensor, x: Tensor) -> None:
        """Adds Σ_t g_t x_tᵀ, for g [b, T, p] and x [b, T, q], to the layer's part of row [b, n]."""
        dtype = self.vector.dtype
        g = g.to(dtype)
        self.vector.view(row, layer.name).add_(g.mT @ x.to(dtype))
        if layer.bias is not None:
            self.vector.view(row, layer.bias_name).add_(g.sum(1))

    def _check_affordable(self, b: int, m: int) -> None:
        size = b * m * self.vector.size * self.vector.dtype.itemsize
        if m <= MOST_ROWS and (b == 1 or size <= 4 * self.memory):
            return
        raise ValueError(
            f"{m} outputs an image need {m} backward passes, here about {2 * m * self.seconds:.0f} s, and {size / 1e9:.1f} GB "
            f"of Jacobian rows for {b} images: take an observation with one output (softmax, cosine), or fewer images a block"
        )


class HookRoute(JacobianRoute):
    """The route of models that train linear layers and at most a log_scale (logits ∝ exp(log_scale)) besides.

    The model must treat images independently. The first batch is looked at with one image and with two: the
    dimension of every layer's inputs that grows counts the images. Where a layer has none (it sees class
    prompts, say, not images) the model takes the general route.
    """

    def __init__(self, model: nn.Module, vector: ParameterVector, memory: int):
        self.model, self.vector, self.memory = model, vector, memory
        self.layers = find_layers(model)
        self.general = FunctionalRoute(model, vector, memory)
        self.dims: list[int] | None = None
        self.name, self.separable = "hooks", True

    @staticmethod
    def fits(model: nn.Module, vector: ParameterVector) -> bool:
        """Whether every trainable parameter belongs to an nn.Linear, or is called log_scale."""
        return not HookRoute.outside(model, vector)

    @staticmethod
    def outside(model: nn.Module, vector: ParameterVector) -> list[str]:
        """The names of the trainable parameters that keep the model from this route."""
        owned = {id(p) for layer in find_layers(model) if layer.modules for p in layer.parameters}
        return [name for name, p in vector.parameters.items() if name != "log_scale" and id(p) not in owned]

    def linearise(self, inputs: Tensor) -> Jacobian:
        if self.dims is None and self.separable:
            self._look(inputs)
        if self.dims is None:
            return self.general.linearise(inputs)
        start = time.perf_counter()
        logits, seen = self._forward(inputs)
        calls = [
            Call(layer, x, edge, dim) for (layer, x, edge), dim in zip(seen.calls(), self.dims, strict=True)
        ]
        return HookJacobian(logits, calls, self.vector, self.memory, time.perf_counter() - start)

    def _look(self, inputs: Tensor) -> None:
        """Finds the dimension that counts images in every call."""
        shapes = shapes_of_one_and_two(self.model, self.layers, inputs)
        grows = [
            [d for d, (a, b) in enumerate(zip(one, two, strict=True)) if a != b] for _, one, two in shapes
        ]
        self.separable = all(
            len(dims) == 1 and one[dims[0]] == 1 for dims, (_, one, _) in zip(grows, shapes, strict=True)
        )
        self.dims = [dims[0] for dims in grows] if self.separable else None
        if not self.separable:
            self.name = self.general.name
            warn_slow("the inputs of a trained layer are not one an image (class prompts, for one)")

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Capture]:
        with torch.enable_grad(), capture(self.model, self.layers) as seen:
            return self.model(inputs), seen
