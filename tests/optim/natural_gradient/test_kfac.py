"""The step KFAC, RING and RENG share: the direction, the trust region, the state, and that it learns."""

import copy
import math

import pytest
import torch
from kalman_models import bilinear, same, theta
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.natural_gradient.curvature import damped
from clipkal.optim.natural_gradient.kfac import KFAC
from clipkal.optim.natural_gradient.reng import RENG
from clipkal.optim.natural_gradient.ring import RING

DOUBLE = torch.float64
EXACT = {"units": "absolute", "kl_clip": None, "newton_steps": 30, "newton_tolerance": 1e-13}


class Attention(nn.Module):
    """Tokens through attention (default kernel, dropout), a norm and a head: what a tower is made of."""

    def __init__(self, d: int = 8, classes: int = 3, dropout: float = 0.0):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.LayerNorm(d)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(d, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens)[:, None].chunk(3, -1)
        x = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head(self.dropout(self.norm(self.out(x) + tokens)).mean(1))


def mlp(dtype: torch.dtype = DOUBLE, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.LayerNorm(5), nn.Linear(5, 4)).to(dtype)


def batches(
    n: int, B: int = 8, q: int = 6, C: int = 4, dtype: torch.dtype = DOUBLE
) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(7)
    return [(torch.randn(B, q, dtype=dtype), torch.randint(0, C, (B,))) for _ in range(n)]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).norm() <= tolerance * (1e-300 + b.norm()))


def loss_gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    loss = F.cross_entropy(model(inputs), targets)
    return torch.autograd.grad(loss, model.weight)[0]


@pytest.mark.parametrize(("classes", "d"), [(3, 6), (9, 6)])
def test_the_step_is_the_damped_kronecker_product_solved_densely(classes, d):
    torch.manual_seed(0)
    model, (inputs, targets) = bilinear(classes, d, d), batches(1, C=classes)[0]
    g = loss_gradient(model, inputs, targets)
    left, right = model.jacobian_factors(inputs)
    pi = model(inputs).detach().softmax(-1)
    Gamma = (left.T @ (torch.diag(pi.mean(0)) - pi.T @ pi / 8) @ left).detach()
    Lambda = right.T @ right / 8
    pi_split = ((Lambda.trace() / d) / (Gamma.trace() / d)).sqrt()
    eye = torch.eye(d, dtype=DOUBLE)
    A = torch.kron(Gamma + 0.01**0.5 / pi_split * eye, Lambda + pi_split * 0.01**0.5 * eye)
    KFAC(model, damping=0.01, lr=0.5, **EXACT).step(inputs, targets)
    assert close(model.weight.detach(), -0.5 * torch.linalg.solve(A, g.flatten()).view(d, d))


def test_a_layer_with_a_bias_and_a_norm_follow_their_equations():
    model, (inputs, targets) = mlp(), batches(1)[0]
    before = copy.deepcopy(model)
    optimizer = KFAC(model, damping=0.05, fisher="empirical", **EXACT)
    optimizer.step(inputs, targets)
    grads = torch.autograd.grad(F.cross_entropy(before(inputs), targets), list(before.parameters()))
    G = torch.cat([grads[4], grads[5][:, None]], 1)
    A = damped(optimizer.curvature.layers["3.weight"].factors, 0.05)
    delta = torch.linalg.solve(A["output"], G) @ torch.linalg.inv(A["input"])
    assert close(before[3].weight - model[3].weight, delta[:, :-1])
    assert close(before[3].bias - model[3].bias, delta[:, -1])
    h = 8 * grads[2] ** 2  # one backward pass of the batch: (Σ g)² / B
    assert close(before[2].weight - model[2].weight, grads[2] / (h + 0.05))


def test_the_two_solvers_part_by_the_root_of_the_damping():
    def moved(solver: str, damping: float) -> Tensor:
        torch.manual_seed(0)
        model, (inputs, targets) = nn.Linear(3, 3, bias=False).double(), batches(1, B=40, q=3, C=3)[0]
        before = model.weight.detach().clone()
        KFAC(model, damping=damping, fisher="empirical", solver=solver, **EXACT).step(inputs, targets)
        return before - model.weight.detach()

    for damping in (1e-6, 1e-8, 1e-10):
        exact = moved("eigen", damping)
        apart = float((moved("newton", damping) - exact).norm() / exact.norm())
        assert apart == pytest.approx(3.1 * damping**0.5, rel=0.03)


def test_newton_and_cholesky_invert_the_same_factors():
    data, found = batches(12), []
    for solver in ("cholesky", "newton"):
        model = mlp()
        optimizer = KFAC(model, solver=solver, newton_steps=60, newton_tolerance=1e-13)
        for inputs, targets in data:
            optimizer.step(inputs, targets)
        found.append(theta(model))
    assert close(*found, tolerance=1e-9)


def test_a_factor_that_cannot_be_inverted_refuses_the_step():
    model, (inputs, targets) = mlp(), batches(1)[0]
    before = theta(model)
    with pytest.raises(FloatingPointError, match="raise the damping"):
        KFAC(model, damping=1e-300, units="absolute").step(0 * inputs, targets)
    assert torch.equal(theta(model), before)


def test_the_trust_region_bounds_the_predicted_divergence():
    model, (inputs, targets) = mlp(), batches(1)[0]
    before = copy.deepcopy(model)
    info = KFAC(model, lr=2.0, kl_clip=1e-4, damping=1e-6, units="absolute").step(inputs, targets)
    assert info.metrics["step_scale"] < 1
    grads = torch.autograd.grad(F.cross_entropy(before(inputs), targets), list(before.parameters()))
    nu = info.metrics["step_scale"]
    moved = [b - p for b, p in zip(before.parameters(), model.parameters(), strict=True)]
    predicted = sum((g * m).sum() for g, m in zip(grads, moved, strict=True)) * 2.0 * nu  # lr² ν² ⟨δ, g⟩
    assert float(predicted.detach()) == pytest.approx(1e-4)


def test_momentum_and_weight_decay():
    plain, heavy = mlp(), mlp()
    data = batches(2)
    a = KFAC(plain, lr=0.1, **EXACT)
    b = KFAC(heavy, lr=0.1, momentum=0.5, **EXACT)
    start = theta(plain)
    a.step(*data[0])
    b.step(*data[0])
    first = theta(plain) - start
    assert torch.equal(theta(plain), theta(heavy))
    a.step(*data[1])
    b.step(*data[1])
    assert close(theta(heavy) - theta(plain), 0.5 * first)
    decayed = mlp()
    KFAC(decayed, lr=0.1, weight_decay=0.2, **EXACT).step(*data[0])
    assert close(theta(decayed), 0.98 * start + first)


@pytest.mark.parametrize("solver", ["cholesky", "newton", "eigen"])
@pytest.mark.parametrize("build", [RING, RENG])
def test_rho_zero_is_kfac_bit_for_bit(build, solver):
    for model in (mlp(torch.float32), Attention()):
        other = copy.deepcopy(model)
        shape = (4, 5, 8) if isinstance(model, Attention) else (8, 6)
        a, b = KFAC(model, solver=solver), build(other, rho=0, solver=solver)
        for k in range(6):
            torch.manual_seed(k)
            inputs, targets = torch.randn(shape), torch.randint(0, 3, (shape[0],))
            assert a.step(inputs, targets) == b.step(inputs, targets)
        assert torch.equal(theta(model), theta(other))


@pytest.mark.parametrize("build", [KFAC, RING, RENG])
def test_a_batch_whose_second_moment_is_not_finite_is_refused_and_changes_nothing(build):
    model, data = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), batches(4, dtype=torch.float32)
    optimizer = build(model, momentum=0.9, update_interval=1)
    for batch in data[:3]:
        optimizer.step(*batch)
    inputs, targets = data[3]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(FloatingPointError, match="factor"):
        optimizer.step(inputs * 1e30, targets)
    assert same((model.state_dict(), optimizer.state_dict()), before)


@pytest.mark.parametrize("build", [KFAC, RING, RENG])
def test_it_runs_under_bfloat16_autocast_with_float32_solves(build):
    torch.manual_seed(0)
    model = Attention()
    optimizer = build(model, rho_warmup=1) if build is not KFAC else build(model)
    tokens, targets = torch.randn(16, 5, 8), torch.randint(0, 3, (16,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [optimizer.step(tokens, targets).loss for _ in range(30)]
    assert losses[-1] < 0.95 * losses[0]
    for layer in optimizer.curvature.layers.values():
        assert all(t.dtype == torch.float32 for t in [layer.factors.input, *layer.inverse.values()])


@pytest.mark.parametrize("build", [KFAC, RENG])
def test_a_compiled_model_takes_the_same_steps(build):
    model = mlp(torch.float32)
    other = copy.deepcopy(model)
    a, b = build(model), build(torch.compile(other, backend="eager"))
    for batch in batches(4, dtype=torch.float32):
        a.step(*batch)
        b.step(*batch)
    assert close(theta(other), theta(model), 1e-5)
    b.load_state_dict(a.state_dict())


def test_a_trainable_scale_beside_the_bilinear_weight():
    torch.manual_seed(0)
    model = bilinear(4, 6, train_scale=True)
    optimizer = KFAC(model)
    for batch in batches(6):
        optimizer.step(*batch)
    assert set(optimizer.curvature.diagonals) == {"log_scale"}
    assert float(model.log_scale.detach()) != pytest.approx(math.log(5))


def test_it_learns_faster_than_gradient_descent():
    """Ill-scaled logistic regression, 20 steps of the full batch, against the best of five learning rates."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 10, dtype=DOUBLE) @ torch.diag(torch.logspace(0, -2, 10, dtype=DOUBLE))
    targets = (inputs @ torch.linspace(1, 100, 10, dtype=DOUBLE) + 0.1 * torch.randn(200) > 0).long()

    def start() -> nn.Linear:
        model = nn.Linear(10, 2).double()
        for p in model.parameters():
            nn.init.zeros_(p)
        return model

    def final(model: nn.Module) -> float:
        return float(F.cross_entropy(model(inputs), targets).detach())

    descent = []
    for lr in (0.1, 1.0, 10.0, 100.0, 1000.0):
        model = start()
        sgd = torch.optim.SGD(model.parameters(), lr=lr)
        for _ in range(20):
            sgd.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            sgd.step()
        descent.append(final(model))
    threshold = 0.75 * min(descent)
    for build, rho in ((KFAC, {}), (RING, {"rho": 0.1}), (RENG, {"rho": 0.1})):
        model = start()
        optimizer = build(model, update_interval=1, kl_clip=1.0, damping=0.1, **rho)
        for _ in range(20):
            optimizer.step(inputs, targets)
        assert final(model) < threshold, build
