"""RENG: its gradient is that of ℓ + (ρ/2) ‖∇ℓ‖², by double backpropagation."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.backends import cuda
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from clipkal.optim.model.layers import eager, twice_differentiable
from clipkal.optim.natural_gradient.kfac import KFAC, differentiate
from clipkal.optim.natural_gradient.reng import RENG, hessian_gradient
from clipkal.optim.parallel.shards import Shards

DOUBLE = torch.float64


class Attention(nn.Module):
    """open_clip's ingredients: nn.MultiheadAttention on the default kernel, a norm, a head."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x).mean(1))


def problem(kind: str, dtype: torch.dtype = DOUBLE) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    if kind == "attention":
        return Attention().to(dtype), torch.randn(6, 5, 8, dtype=dtype), torch.randint(0, 3, (6,))
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    return model, torch.randn(12, 5, dtype=dtype), torch.randint(0, 3, (12,))


def flat(values: dict[nn.Parameter, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in values.values()])


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def double(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    with twice_differentiable(model):
        loss = F.cross_entropy(model(inputs), targets)
    g, Hg = hessian_gradient(loss, list(model.parameters()), Shards.of(len(inputs), inputs.device))
    return flat(g), flat(Hg)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_the_hessian_vector_term_against_torch_func(kind):
    model, inputs, targets = problem(kind)
    g, Hg = double(model, inputs, targets)

    def loss(parameters):
        return F.cross_entropy(functional_call(model, parameters, (inputs,)), targets)

    parameters = {n: p.detach() for n, p in model.named_parameters()}
    with twice_differentiable(model):
        direction = grad(loss)(parameters)
        exact = jvp(grad(loss), (parameters,), (direction,))[1]
    assert error(g, torch.cat([v.flatten() for v in direction.values()])) < 1e-12
    assert error(Hg, torch.cat([v.flatten() for v in exact.values()])) < 1e-10


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_the_hessian_vector_term_against_a_central_difference(kind):
    model, inputs, targets = problem(kind)
    g, Hg = double(model, inputs, targets)

    def gradient_at(step: float) -> Tensor:
        other, offset = copy.deepcopy(model), 0
        for p in other.parameters():
            p.data += step * g[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
        return flat(differentiate(F.cross_entropy(other(inputs), targets), list(other.parameters())))

    assert error((gradient_at(1e-4) - gradient_at(-1e-4)) / 2e-4, Hg) < 1e-6


def test_the_preconditioned_gradient_is_that_of_the_penalised_loss():
    model, inputs, targets = problem("mlp")
    optimizer = RENG(model, rho=0.3, rho_warmup=0, units="absolute")
    loss = F.cross_entropy(model(inputs), targets)
    parameters = list(model.parameters())
    graph = torch.autograd.grad(loss, parameters, create_graph=True)
    penalised = loss + 0.15 * sum(g.square().sum() for g in graph)
    expected = torch.autograd.grad(penalised, parameters)
    found = optimizer._evaluate(inputs, targets, refresh=False).objective
    for p, e in zip(parameters, expected, strict=True):
        assert error(found[p], e) < 1e-12


def test_the_step_is_kfac_of_that_gradient():
    model, inputs, targets = problem("mlp")
    plain = copy.deepcopy(model)
    a, b = RENG(model, rho=0.3, rho_warmup=0, kl_clip=None), KFAC(plain, kl_clip=None)
    start = [p.detach().clone() for p in model.parameters()]
    g, Hg = double(model, inputs, targets)
    rho = 0.3 * float(g.norm() / Hg.norm())  # "relative"
    a.step(inputs, targets)
    b.step(inputs, targets)
    objective, offset = {}, 0
    for p in plain.parameters():
        n = p.numel()
        objective[p] = (g + rho * Hg)[offset : offset + n].view_as(p)
        offset += n
    direction = b.curvature.precondition(objective, b.layers, b._names)
    for before, after, p in zip(start, model.parameters(), plain.parameters(), strict=True):
        assert error(before - after, direction[p]) < 1e-10


def test_the_math_kernel_is_set_for_the_forward_pass_and_put_back():
    model, inputs, targets = problem("attention", torch.float32)
    kernels = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled)
    before, during = [k() for k in kernels], []
    model.register_forward_hook(lambda *_: during.append([k() for k in kernels]))
    RENG(model, rho_warmup=0).step(inputs, targets)
    assert during == [[False, False, True]]
    assert [k() for k in kernels] == before
    with pytest.raises(ZeroDivisionError), twice_differentiable(model):
        raise ZeroDivisionError
    assert [k() for k in kernels] == before


def test_without_the_guard_the_default_kernel_has_no_second_derivative():
    """Why the guard exists; if this fails, torch has learnt it and the guard may go."""
    model, inputs, targets = problem("attention", torch.float32)
    loss = F.cross_entropy(model(inputs), targets)
    with pytest.raises(RuntimeError, match="not implemented"):
        hessian_gradient(loss, list(model.parameters()), Shards.of(len(inputs), inputs.device))


def test_eager_is_free_for_a_model_that_is_not_compiled():
    with eager(nn.Linear(2, 2)) as nothing:
        assert nothing is None
