"""Low-rank paths inside a frozen model: wherever it applies a targeted weight, W x becomes W x + scale · B A x.

A `TorchFunctionMode` sees every `linear`, `conv2d` and `multi_head_attention_forward` of a forward pass and knows
a targeted weight by its identity. So no module of the model is replaced or written to, and whatever the
architecture, a weight is adapted in every place that it is used. `torch.func` goes through.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ATTENTION = inspect.signature(F.multi_head_attention_forward)


@dataclass(frozen=True)
class Path:
    """A low-rank path into the outputs `start` to `stop` of a weight."""

    start: int
    stop: int
    module: nn.Module


class LowRankPaths(TorchFunctionMode):
    """While it is entered, the targeted weights have their paths beside them.

    paths: for each weight its paths, in ascending and disjoint ranges of output rows.
    """

    def __init__(self, paths: Mapping[Tensor, Sequence[Path]]):
        super().__init__()
        self.paths = {id(weight): list(own) for weight, own in paths.items()}
        self.handlers: dict[Any, Callable[..., Any]] = {
            F.linear: self._linear,
            F.conv2d: self._conv2d,
            F.multi_head_attention_forward: self._attention,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = self.handlers.get(func)
        return (handler or func)(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = F.linear(x, weight, bias)
        return y if id(weight) not in self.paths else y + self._change(x, weight)

    def _change(self, x: Tensor, weight: Tensor) -> Tensor:
        """The sum of the weight's paths at x [..., in], [..., out]."""
        pieces: list[Tensor] = []
        row = 0
        for path in self.paths[id(weight)]:
            pieces += [x.new_zeros(*x.shape[:-1], path.start - row), path.module(x)]
            row = path.stop
        pieces.append(x.new_zeros(*x.shape[:-1], len(weight) - row))
        pieces = [piece for piece in pieces if piece.shape[-1]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def _conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if id(weight) not in self.paths:
            return y
        patches = F.unfold(x, weight.shape[2:], dilation, padding, stride).mT  # [B, places, in · h · w]
        return y + self._change(patches, weight).mT.reshape(y.shape)

    def _attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """`F.multi_head_attention_forward` in its own parts, where one of its weights is targeted."""
        bound = ATTENTION.bind(*args, **kwargs)
        bound.apply_defaults()
        a = bound.arguments
        weights = [a[f"{name}_weight"] for name in ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj")]
        if all(weight is None or id(weight) not in self.paths for weight in weights):
            return F.multi_head_attention_forward(*args, **kwargs)
        q, k, v = (_split_heads(t, a["num_heads"]) for t in self._projected(a))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=a["attn_mask"])
        out = self._linear(mixed.transpose(1, 2).flatten(2), a["out_proj_weight"], a["out_proj_bias"])
        return out.transpose(0, 1), None

    def _projected(self, a: dict[str, Any]) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, T, d]; `a` holds tokens first, [T, B, d]."""
        tokens = [a[name].transpose(0, 1) for name in ("query", "key", "value")]
        if not a["use_separate_proj_weight"]:  # self-attention: one fused weight, one input
            return self._linear(tokens[0], a["in_proj_weight"], a["in_proj_bias"]).chunk(3, -1)
        biases = (None, None, None) if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
        if a["query"] is a["key"]:
            tokens[0] = tokens[1]
        if a["key"] is a["value"]:
            tokens[2] = tokens[1]
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        return tuple(self._linear(x, a[n], b) for x, n, b in zip(tokens, names, biases, strict=True))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, d] to [B, heads, T, d / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
