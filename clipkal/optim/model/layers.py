"""The linear layers of a model, what hooks see of them in a forward pass, and forward passes to differentiate twice."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipkal.optim.model.bilinear import is_bilinear


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
        return self.name.removesuffix("weight") + "bias"

    @property
    def parameters(self) -> list[nn.Parameter]:
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
    """What the hooks saw in one forward pass: per layer, inputs [..., q] and the graph edges of the outputs
    [..., p]."""

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


def eager(model: nn.Module) -> AbstractContextManager[object]:
    """Runs compiled modules of `model` uncompiled, so that hooks fire and graphs are those of autograd."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
