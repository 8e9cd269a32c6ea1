"""RING: the damping follows the squared gradient norm, and the direction is (F + λ I)⁻¹ g."""

import copy

import pytest
import torch
from kalman_models import ggn
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.natural_gradient.ring import RING

DOUBLE = torch.float64
PLAIN = {"units": "absolute", "kl_clip": None, "rho_warmup": 0, "damping": 1e-12}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 4, bias=False)).double()


def batch(B: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(B, 5, dtype=DOUBLE), torch.randint(0, 4, (B,))


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters())))


def fisher_blocks(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The GGN of each weight, [n, n]."""
    return [ggn(model, inputs, name) for name, _ in model.named_parameters()]


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def one_step(model: nn.Module, inputs: Tensor, targets: Tensor, **settings) -> tuple[list[Tensor], float]:
    before = [p.detach().clone() for p in model.parameters()]
    info = RING(model, fisher="ggn", **{**PLAIN, **settings}).step(inputs, targets)
    return [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)], info.metrics["damping"]


@pytest.mark.parametrize("rho", [0.01, 1.0, 30.0])
def test_one_image_the_step_is_exactly_f_plus_lambda_inverse_g(rho):
    model, (inputs, targets) = net(), batch(1)
    g, blocks = gradient(model, inputs, targets), fisher_blocks(model, inputs)
    steps, damping = one_step(model, inputs, targets, rho=rho, solver="eigen")
    assert damping == pytest.approx(rho * float(sum((x**2).sum() for x in g)))
    for step, grad, block in zip(steps, g, blocks, strict=True):
        exact = torch.linalg.solve(block + damping * torch.eye(len(block), dtype=DOUBLE), grad.flatten())
        assert error(step.flatten(), exact) < 1e-10


def test_a_linear_model_with_constant_output_curvature_is_exact():
    inputs, targets = batch(12)
    model = nn.Linear(5, 4, bias=False).double()
    nn.init.zeros_(model.weight)
    g, block = gradient(model, inputs, targets)[0], fisher_blocks(model, inputs)[0]
    (step,), damping = one_step(model, inputs, targets, rho=0.3, solver="eigen")
    exact = torch.linalg.solve(block + damping * torch.eye(20, dtype=DOUBLE), g.flatten())
    assert error(step.flatten(), exact) < 1e-10


def test_elsewhere_it_is_the_kronecker_product_plus_lambda():
    model, (inputs, targets) = net(), batch(9)
    g = gradient(model, inputs, targets)
    optimizer = RING(copy.deepcopy(model), rho=0.2, fisher="ggn", solver="eigen", **PLAIN)
    optimizer.step(inputs, targets)
    steps, damping = one_step(model, inputs, targets, rho=0.2, solver="eigen")
    for step, grad, block in zip(steps, g, optimizer.curvature.layers.values(), strict=True):
        A = torch.kron(block.factors.output, block.factors.input)
        exact = torch.linalg.solve(A + damping * torch.eye(len(A), dtype=DOUBLE), grad.flatten())
        assert error(step.flatten(), exact) < 1e-9


def test_the_split_damping_takes_a_shorter_step_in_every_direction():
    """Newton's Λ̃ ⊗ Γ̃ exceeds Λ ⊗ Γ + λ I, so ⟨g, δ⟩ is less; and neither exceeds that of g / λ."""
    model, (inputs, targets) = net(), batch(9)
    g = gradient(model, inputs, targets)
    exact, damping = one_step(copy.deepcopy(model), inputs, targets, rho=0.2, solver="eigen")
    split, _ = one_step(model, inputs, targets, rho=0.2, newton_steps=30, newton_tolerance=1e-12)
    for grad, a, b in zip(g, split, exact, strict=True):
        assert 0 < float((grad * a).sum()) < float((grad * b).sum()) <= float((grad**2).sum()) / damping


def test_the_damping_follows_the_gradient_down_to_its_floor():
    model, (inputs, targets) = net(), batch(64)
    optimizer = RING(model, rho=1.0, rho_warmup=2, damping=1e-3, update_interval=1, kl_clip=0.1)
    seen = [optimizer.step(inputs, targets).metrics for _ in range(60)]
    floor = seen[0]["damping"]  # ρ is zero at the first step
    assert floor == pytest.approx(1e-3 * optimizer.damping.unit)
    for k, metrics in enumerate(seen):
        rho = min(1.0, k / 2) * (optimizer.rho.unit or 0.0)
        assert metrics["damping"] == pytest.approx(max(floor, rho * metrics["gradient_norm"] ** 2))
    assert seen[1]["damping"] > seen[-1]["damping"]


def test_the_eigen_solver_lets_the_damping_move_between_refreshes():
    model, (inputs, targets) = net(), batch(32)
    optimizer = RING(model, solver="eigen", rho_warmup=0, update_interval=100, damping=1e-6)
    seen = [optimizer.step(inputs[i : i + 8], targets[i : i + 8]).metrics["damping"] for i in (0, 8, 16, 24)]
    assert len(set(seen)) == 4
