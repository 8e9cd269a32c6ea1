"""The linear layers of a model, what hooks see of them in a forward pass, and the Jacobian that follows.

A layer y = W x + b that image i passes through with tokens t has, for a scalar function of that image,

    ∂/∂W = Σ_t g_t x_tᵀ [p, q]        ∂/∂b = Σ_t g_t [p]

for the layer's inputs x and the gradients g at its outputs. One backward pass gives g of all layers and all images at
once (images are independent), so a row of H̃ for every image of a batch costs one backward pass without weight gradients,
and the products above; C rows cost C passes. No vmap, no copy of the model, any attention kernel.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipkal.optim.model.bilinear import is_bilinear
from clipkal.optim.model.jacobian import MOST_ROWS, FunctionalRoute, Jacobian, JacobianRoute, ParameterVector

log = logging.getLogger("clipkal")


@dataclass(eq=False)
class Layer:
    """A weight matrix (and its bias) whose Fisher block is a Kronecker product.

    modules: the nn.Linear modules that apply it; none for a bilinear model, which computes its factors
        itself.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None = None
    modules: list[nn.Module] = field(default_factory=list)

    @property
    def bias_name(self) -> str:
        """What the bias is called in the model, where there is one."""
        return self.name.removesuffix("weight") + "bias"

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight [p, q] and, where there is one, the bias [p]."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def matrix(self, values: dict[nn.Parameter, Tensor]) -> Tensor:
        """[∂W | ∂b], [p, q] or [p, q + 1]."""
        if self.bias is None:
            return values[self.weight]
        return torch.cat([values[self.weight], values[self.bias][:, None]], dim=1)

    def unpack(self, matrix: Tensor) -> dict[nn.Parameter, Tensor]:
        """The inverse of `matrix`."""
        if self.bias is None:
            return {self.weight: matrix}
        return {self.weight: matrix[:, :-1], self.bias: matrix[:, -1]}


def find_layers(model: nn.Module) -> list[Layer]:
    """The layers with Kronecker factors: a bilinear model itself, and every trainable nn.Linear.

    One weight used by several modules is one layer, unless their biases differ: then it is none (its
    parameters fall to the diagonal). A frozen bias is not part of its layer.
    """
    names: dict[Tensor, str] = {p: n.replace("_orig_mod.", "") for n, p in model.named_parameters()}
    layers: dict[nn.Parameter, Layer] = {}
    odd: set[nn.Parameter] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear) or not module.weight.requires_grad:
            continue
        bias = module.bias if module.bias is not None and module.bias.requires_grad else None
        weight = cast(nn.Parameter, module.weight)
        layer = layers.setdefault(weight, Layer(names[weight], weight, bias))
        layer.modules.append(module)
        if layer.bias is not bias:
            odd.add(weight)
    if is_bilinear(model) and model.weight.requires_grad:
        layers[model.weight] = Layer(names[model.weight], model.weight)
    return [layer for weight, layer in layers.items() if weight not in odd]


@dataclass
class Capture:
    """What the hooks saw in one forward pass: per layer, inputs [..., q] and the graph edges of the outputs [..., p]."""

    inputs: dict[Layer, list[Tensor]] = field(default_factory=dict)
    edges: dict[Layer, list[GradientEdge]] = field(default_factory=dict)

    def calls(self) -> list[tuple[Layer, Tensor, GradientEdge]]:
        """Every use of a layer: its inputs and the edge of its outputs; layer by layer."""
        return [
            (layer, x, edge)
            for layer, xs in self.inputs.items()
            for x, edge in zip(xs, self.edges[layer], strict=True)
        ]


@contextmanager
def capture(model: nn.Module, layers: list[Layer]) -> Iterator[Capture]:
    """Records inputs and outputs of the layers in forward passes inside the block; no hook is left behind.

    Graph edges, not tensors, are kept for the outputs: they stay right when a following module works in
    place.
    """
    seen = Capture()

    def hook_of(layer: Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                x = cast(Tensor, args[0] if args else kwargs["input"])
                seen.inputs.setdefault(layer, []).append(x)
                seen.edges.setdefault(layer, []).append(get_gradient_edge(output))

        return hook

    handles = [
        module.register_forward_hook(hook_of(layer), with_kwargs=True)
        for layer in layers
        for module in layer.modules
    ]
    try:
        with eager(model):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def eager(model: nn.Module) -> AbstractContextManager[object]:
    """Runs compiled modules of `model` uncompiled, so that hooks fire and graphs are those of autograd."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def shapes_of_one_and_two(
    model: nn.Module, layers: list[Layer], inputs: Tensor
) -> list[tuple[Layer, torch.Size, torch.Size]]:
    """Every use of a layer, with the shape of its inputs for one image and for two: what grows counts the images.

    Two forward passes, on copies of the first image.
    """
    seen = []
    for n in (1, 2):
        with torch.enable_grad(), capture(model, layers) as calls:
            model(inputs[:1].expand(n, *inputs.shape[1:]))
        seen.append([(layer, x.shape) for layer, x, _ in calls.calls()])
    return [(layer, one, two) for (layer, one), (_, two) in zip(*seen, strict=True)]


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Runs forward passes of `model` so that their gradients can be differentiated again.

    The fused attention kernels have no second derivative, and neither have graphs of `torch.compile`. So inside the
    block attention uses the math kernel (the whole attention matrix is formed: memory grows with the square of the
    tokens) and compiled modules run eagerly. Only the forward pass has to run inside, and whatever was allowed before
    is allowed again afterwards.
    """
    with sdpa_kernel(SDPBackend.MATH), eager(model):
        yield


def warn_slow(reason: str) -> None:
    """Says that the fast routes do not fit."""
    log.warning(
        "the Jacobian is taken by torch.func, an image at a time, because %s: training nn.Linear layers only (LoRA "
        "factors are such) would be several times faster",
        reason,
    )


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass.

    inputs: [..., q].
    edge: of the outputs [..., p] in the graph.
    images: the dimension that counts images.
    """

    layer: Layer
    inputs: Tensor
    edge: GradientEdge
    images: int

    def by_image(self, x: Tensor) -> Tensor:
        """Inputs or output gradients [..., k] as [b, T, k]."""
        x = x.movedim(self.images, 0)
        return x.reshape(len(x), -1, x.shape[-1])


@dataclass
class HookJacobian(Jacobian):
    """J of the images of one forward pass, whose graph it keeps; `seconds` that pass took."""

    graph: Tensor
    calls: list[Call]
    inputs: Tensor
    route: "HookRoute"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.logits, self.vector = self.graph.detach(), self.route.vector

    def relinearised(self, images: slice) -> Jacobian:
        return self.route.linearise(self.inputs[images])

    def pull(self, cotangents: Tensor) -> Tensor:
        """As in Jacobian: m backward passes. ValueError, with the cost, for more rows than MOST_ROWS or the memory hold."""
        b, _, m = cotangents.shape
        self._check_affordable(b, m)
        rows = torch.zeros(b, m, self.vector.size, dtype=self.vector.dtype, device=cotangents.device)
        for j in range(m):
            for call, g in self._backward(cotangents[..., j]):
                self._add_product(rows[:, j], call.layer, call.by_image(g), call.by_image(call.inputs))
        return rows

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        total = torch.zeros(1, self.vector.size, dtype=self.vector.dtype, device=cotangents.device)
        for call, g in self._backward(cotangents):
            self._add_product(total, call.layer, g.flatten(0, -2)[None], call.inputs.flatten(0, -2)[None])
        return total.double().square().sum()

    def _backward(self, cotangent: Tensor) -> Iterator[tuple[Call, Tensor]]:
        """The gradients of Σ cotangent ∘ logits, for cotangent [b, C], at the outputs of every call that has one."""
        edges: list[GradientEdge] = [call.edge for call in self.calls]
        with torch.enable_grad():
            found = torch.autograd.grad(
                self.graph, edges, cotangent.to(self.graph.dtype), retain_graph=True, allow_unused=True
            )
        return ((call, g) for call, g in zip(self.calls, found, strict=True) if g is not None)

    def _add_product(self, row: Tensor, layer: Layer, g: Tensor, x: Tensor) -> None:
        """Adds Σ_t g_t x_tᵀ, for g [b, T, p] and x [b, T, q], to the layer's part of row [b, n]."""
        dtype = self.vector.dtype
        g = g.to(dtype)
        self.vector.view(row, layer.name).add_(g.mT @ x.detach().to(dtype))
        if layer.bias is not None:
            self.vector.view(row, layer.bias_name).add_(g.sum(1))

    def _check_affordable(self, b: int, m: int) -> None:
        size = b * m * self.vector.size * self.vector.dtype.itemsize
        if m <= MOST_ROWS and (b == 1 or size <= 4 * self.route.memory):
            return
        raise ValueError(
            f"{m} outputs an image need {m} backward passes, here about {2 * m * self.seconds:.0f} s, and {size / 1e9:.1f} GB "
            f"of Jacobian rows for {b} images: take an observation with one output (softmax, cosine), or fewer images a block"
        )


class HookRoute(JacobianRoute):
    """The route of models that train linear layers alone.

    The model must treat images independently. The first batch is looked at with one image and with two: the
    dimension of every layer's inputs that grows counts the images. Where a layer has none (it sees class
    prompts, say, not images) the model takes the general route.
    """

    needs = "a model that trains only nn.Linear layers"

    def __init__(self, model: nn.Module, vector: ParameterVector, memory: int):
        super().__init__(model, vector, memory)
        self.layers = find_layers(model)
        self.general = FunctionalRoute(model, vector, memory)
        self.dims: list[int] | None = None
        self.name, self.separable = "hooks", True

    @staticmethod
    def fits(model: nn.Module, vector: ParameterVector) -> bool:
        return not HookRoute.outside(model, vector)

    @staticmethod
    def outside(model: nn.Module, vector: ParameterVector) -> list[str]:
        """The names of the trainable parameters that keep the model from this route."""
        owned = {id(p) for layer in find_layers(model) if layer.modules for p in layer.parameters}
        return [name for name, p in vector.parameters.items() if id(p) not in owned]

    def linearise(self, inputs: Tensor) -> Jacobian:
        if self.dims is None and self.separable:
            self._look(inputs)
        if self.dims is None:
            return self.general.linearise(inputs)
        start = time.perf_counter()
        with torch.enable_grad(), capture(self.model, self.layers) as seen:
            logits = self.model(inputs)
        calls = [Call(*call, dim) for call, dim in zip(seen.calls(), self.dims, strict=True)]
        return HookJacobian(logits, calls, inputs, self, time.perf_counter() - start)

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
