"""Small models and independent oracles for the tests of the optimisers."""

import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from clipkal.optim import BatchOptimizer
from clipkal.optim.kalman.covariance.diagonal import Covariance


class Bilinear(nn.Module):
    """logits = exp(log_scale) · f (I₀ + W)ᵀ Tᵀ with features f [B, q], text T [C, p], a fixed I₀ [p, q]."""

    def __init__(self, text: Tensor, width: int, scale: float = 5.0, train_scale: bool = False):
        super().__init__()
        self.register_buffer("text", text)
        self.register_buffer("base", torch.eye(text.shape[1], width, dtype=text.dtype))
        self.weight = nn.Parameter(torch.zeros(text.shape[1], width, dtype=text.dtype))
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(scale), dtype=text.dtype), requires_grad=train_scale
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.log_scale.exp() * inputs @ (self.base + self.weight).mT @ self.text.mT

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_scale.detach().exp() * self.text, inputs


def bilinear(C: int = 4, p: int = 5, q: int = 6, dtype: torch.dtype = torch.float64, **settings) -> Bilinear:
    return Bilinear(torch.randn(C, p, dtype=dtype), q, **settings)


def batch(B: int = 8, q: int = 6, C: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(B, q, dtype=dtype), torch.randint(C, (B,))


def full_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """∂logits/∂θ [B, C, n] by torch.func.jacrev: independent of everything under test."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    parts = jacrev(lambda theta: functional_call(model, theta, (inputs,)))(parameters)
    return torch.cat(
        [part.flatten(2) if part.ndim > 2 else part[..., None] for part in parts.values()], dim=-1
    )


def ggn(model: nn.Module, inputs: Tensor, name: str) -> Tensor:
    """Mean over images of Jᵀ (diag π − π πᵀ) J for one parameter, from torch.func: [n, n]."""
    parameters = dict(model.named_parameters())

    def logits(value: Tensor, x: Tensor) -> Tensor:
        return functional_call(model, {**parameters, name: value}, (x[None],))[0]

    J = vmap(jacrev(logits), (None, 0))(parameters[name].detach(), inputs).flatten(2)
    pi = model(inputs).detach().softmax(-1)
    R = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    return torch.einsum("bcn,bcd,bdm->nm", J, R, J) / len(inputs)


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit; NaN equals NaN."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(nan=7e7), other.nan_to_num(nan=7e7))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def assert_resumes(
    make_model: Callable[[], nn.Module],
    make: Callable[[nn.Module], BatchOptimizer],
    data: list[tuple[Tensor, Tensor]],
    split: int,
) -> tuple[BatchOptimizer, BatchOptimizer]:
    """An optimiser whose state is written after `split` batches, and the one that read it, which goes on bit for bit."""
    model, other = make_model(), make_model()
    optimiser, file = make(model), io.BytesIO()
    for x, y in data[:split]:
        optimiser.step(x, y)
    torch.save((model.state_dict(), optimiser.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = make(other)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    infos = []
    for each in (optimiser, resumed):
        torch.manual_seed(1)  # SophiaH draws from the global generator
        infos.append([each.step(x, y) for x, y in data[split:]])
    assert infos[0] == infos[1]
    assert same(model.state_dict(), other.state_dict())
    assert same(optimiser.state_dict(), resumed.state_dict())
    return optimiser, resumed


def dense_of(covariance: Covariance) -> Tensor:
    """P [n, n] of any covariance, from the tensors of its state alone."""
    state = covariance.tensors()
    if "P" in state:
        return state["P"]
    if "rows" in state:
        return torch.linalg.inv(state["diagonal"].diag() + state["rows"].mT @ state["rows"])
    if "left" not in state:
        return state["variance"].diag()
    basis = torch.einsum("ta,rb->trab", state["left"], state["right"]).flatten(2).flatten(0, 1)
    inside = basis.mT * (state["variance"].flatten() - state["outside"]) @ basis
    return inside + state["outside"] * torch.eye(basis.shape[1]).to(basis)
