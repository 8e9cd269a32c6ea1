"""The baselines: each is the library's own optimiser, behind one door."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim import KFAC, SAM, SGD, Adagrad, AdamW, FirstOrder, Sophia, StepInfo


def problem(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.randn(48, 6)
    return model, inputs, (inputs @ torch.randn(6, 3)).argmax(1)


@pytest.mark.parametrize(
    ("kind", "lr"), [(SGD, 0.3), (AdamW, 0.03), (Adagrad, 0.3), (SAM, 0.3), (Sophia, 3.0), (KFAC, 1.0)]
)
def test_every_baseline_learns(kind, lr):
    model, inputs, targets = problem()
    optimizer = kind(model, lr=lr, weight_decay=1e-4)
    losses = [optimizer.step(inputs, targets).loss for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("kind", "theirs", "more"),
    [
        (SGD, torch.optim.SGD, {"momentum": 0.9}),
        (AdamW, torch.optim.AdamW, {}),
        (Adagrad, torch.optim.Adagrad, {}),
    ],
)
def test_the_torch_ones_are_torchs(kind, theirs, more):
    model, inputs, targets = problem()
    other = copy.deepcopy(model)
    ours = kind(model, lr=0.1, weight_decay=0.01)
    plain = theirs(other.parameters(), lr=0.1, weight_decay=0.01, **more)
    for _ in range(5):
        ours.step(inputs, targets)
        plain.zero_grad()
        F.cross_entropy(other(inputs), targets).backward()
        plain.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [SGD, AdamW, Adagrad, SAM, Sophia])
def test_a_step_says_the_norm_of_the_gradient_at_its_point(kind):
    model, inputs, targets = problem()
    loss = F.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = torch.cat([one.flatten() for one in gradients]).norm()
    found = kind(model, lr=0.1).step(inputs, targets).metrics["gradient_norm"]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_adamw_is_fused():
    assert AdamW(problem()[0]).param_groups[0]["fused"]


def test_sam_takes_the_gradient_at_the_perturbed_point():
    model, inputs, targets = problem()
    other = copy.deepcopy(model)
    SAM(model, lr=0.1, rho=0.2, momentum=0.0).step(inputs, targets)
    parameters = list(other.parameters())
    g = torch.autograd.grad(F.cross_entropy(other(inputs), targets), parameters)
    norm = sum(x.square().sum() for x in g).sqrt()
    moved = copy.deepcopy(other)
    for p, x in zip(moved.parameters(), g, strict=True):
        p.data += 0.2 * x / norm
    there = torch.autograd.grad(F.cross_entropy(moved(inputs), targets), list(moved.parameters()))
    for a, p, x in zip(model.parameters(), parameters, there, strict=True):
        assert torch.allclose(a, p - 0.1 * x, atol=1e-6)


def test_sophia_estimates_its_hessian_only_when_due():
    model, inputs, targets = problem()
    optimizer = Sophia(model, lr=0.1, update_period=3)
    weight = model[0].weight
    seen = []
    for _ in range(5):
        optimizer.step(inputs, targets)
        seen.append(optimizer.state[weight]["hessian"].clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed == [False, False, True, False]
    assert weight.grad is None or not weight.grad.requires_grad


def test_sophia_estimates_the_diagonal_of_the_hessian():
    model, inputs, targets = problem()
    model, h = model[2:], model[:2](inputs).detach()
    optimizer = Sophia(model, lr=0.0, num_samples=1500, hessian_distribution="rademacher")
    optimizer.step(h, targets)

    def loss(weight):
        return F.cross_entropy(h @ weight.T + model[0].bias, targets)

    exact = torch.autograd.functional.hessian(loss, model[0].weight.detach()).view(24, 24).diagonal()
    found = optimizer.state[model[0].weight]["hessian"]
    assert float((found - exact.view(3, 8)).norm() / exact.norm()) < 0.1


def test_sophia_runs_through_attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    optimizer = Sophia(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), lr=0.1)
    optimizer.step(torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("kind", [SGD, AdamW, Adagrad, SAM, Sophia])
def test_settings_out_of_range_and_unknown_ones_are_named(kind):
    with pytest.raises(ValueError, match="lr should be greater than or equal to 0, not -1"):
        kind(problem()[0], lr=-1.0)
    with pytest.raises(TypeError, match="rate"):
        kind(problem()[0], rate=0.1)


def test_first_order_says_what_its_optimiser_saw():
    model, inputs, targets = problem()
    loss = float(F.cross_entropy(model(inputs), targets).detach())
    found = AdamW(model).step(inputs, targets)
    assert found == StepInfo(loss=loss, metrics={"gradient_norm": found.metrics["gradient_norm"]})


def test_first_order_shares_groups_and_state_with_its_optimiser():
    model, inputs, targets = problem()
    inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    wrapped = FirstOrder(model, inner)
    scheduler = torch.optim.lr_scheduler.StepLR(wrapped, 1, gamma=0.5)
    wrapped.step(inputs, targets)
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.5
    wrapped.load_state_dict(wrapped.state_dict())
    assert wrapped.param_groups is wrapped.optimizer.param_groups
    assert wrapped.state is wrapped.optimizer.state


def test_what_is_refused_is_named():
    model, inputs, targets = problem()
    broken = inputs.clone()
    broken[2, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="inputs: 1 of 288"):
        SGD(model).step(broken, targets)
    before = model[0].weight.detach().clone()
    wrapped = FirstOrder(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=lambda z, y: z.sum() / 0)
    with pytest.raises(FloatingPointError, match="loss"):
        wrapped.step(inputs, targets)
    assert torch.equal(model[0].weight, before)


class Climbing(torch.optim.SGD):
    """Like SAM: climbs, evaluates through the closure, then takes the new gradient from where it began."""

    radius = 0.1

    def step(self, closure):  # type: ignore[override]
        (weight, *_) = self.param_groups[0]["params"]
        with torch.no_grad():
            weight.add_(self.radius)
        closure()
        with torch.no_grad():
            weight.sub_(self.radius)
        super().step()


def test_a_closure_optimiser_gets_the_gradient_where_it_asks():
    model, inputs, targets = problem()
    start, moved = copy.deepcopy(model), copy.deepcopy(model)
    info = FirstOrder(model, Climbing(model.parameters(), lr=0.5), closure=True).step(inputs, targets)
    assert info.loss == pytest.approx(F.cross_entropy(start(inputs), targets).item())
    with torch.no_grad():
        moved[0].weight.add_(0.1)
    F.cross_entropy(moved(inputs), targets).backward()
    torch.testing.assert_close(model[0].weight, start[0].weight - 0.5 * moved[0].weight.grad)


def test_a_closure_that_fails_half_way_puts_the_parameters_back():
    model, inputs, targets = problem()
    before = model[0].weight.detach().clone()
    optimizer = Climbing(model.parameters(), lr=0.5)
    optimizer.radius = float("inf")
    with pytest.raises(FloatingPointError):
        FirstOrder(model, optimizer, closure=True).step(inputs, targets)
    assert torch.equal(model[0].weight, before)
