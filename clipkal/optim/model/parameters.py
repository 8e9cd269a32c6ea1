"""The trainable parameters of a model seen as one vector θ [n], and back."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clipkal.optim.base import trainable_parameters


class ParameterVector:
    """Where each trainable parameter lives in θ: contiguous, in `model.named_parameters()` order.

    names, shapes, offsets: one entry a parameter. size: n. `dtype` is at least float32: a covariance in half
    precision loses its small variances. Parameters must share one device.
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
        return torch.cat(
            [p.reshape((*p.shape[:leading], -1)) for p in (parts[n] for n in self.names)], dim=-1
        )

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
