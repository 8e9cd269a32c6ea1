"""The baselines: each is the library's own optimiser, behind one door."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipkal.errors import ConfigError
from clipkal.optim.base import BatchOptimizer
from clipkal.optim.first_order import BASELINES, HutchinsonFirstOrder, build_baseline
from clipkal.optim.natural_gradient.kfac import KFAC


def problem(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.randn(48, 6)
    return model, inputs, (inputs @ torch.randn(6, 3)).argmax(1)


RATES = {"sgd": 0.3, "adamw": 0.03, "adagrad": 0.3, "sam": 0.3, "sophia": 3.0, "kfac": 1.0}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_learns(name):
    model, inputs, targets = problem()
    optimizer = build_baseline(name, model, lr=RATES[name], weight_decay=1e-4)
    assert isinstance(optimizer, BatchOptimizer)
    losses = [optimizer.step(inputs, targets).loss for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.01)),
    ],
)
def test_the_torch_ones_are_torchs(name, build):
    model, inputs, targets = problem()
    other = copy.deepcopy(model)
    ours, theirs = build_baseline(name, model, lr=0.1, weight_decay=0.01), build(list(other.parameters()))
    for _ in range(5):
        ours.step(inputs, targets)
        theirs.zero_grad()
        F.cross_entropy(other(inputs), targets).backward()
        theirs.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_adamw_is_fused():
    model, _, _ = problem()
    assert build_baseline("adamw", model, lr=0.1).param_groups[0]["fused"]


def test_kfac_is_ours_and_takes_its_options():
    model, _, _ = problem()
    optimizer = build_baseline("kfac", model, lr=0.5, damping=0.2)
    assert isinstance(optimizer, KFAC)
    assert optimizer.damping.value == 0.2
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_sam_takes_the_gradient_at_the_perturbed_point():
    model, inputs, targets = problem()
    other = copy.deepcopy(model)
    build_baseline("sam", model, lr=0.1, rho=0.2, momentum=0.0).step(inputs, targets)
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
    optimizer = build_baseline("sophia", model, lr=0.1, update_period=3)
    assert isinstance(optimizer, HutchinsonFirstOrder)
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
    optimizer = build_baseline("sophia", model, lr=0.0, num_samples=1500, hessian_distribution="rademacher")
    optimizer.step(h, targets)

    def loss(weight):
        return F.cross_entropy(h @ weight.T + model[0].bias, targets)

    exact = (
        torch.autograd.functional.hessian(loss, model[0].weight.detach()).view(24, 24).diagonal().view(3, 8)
    )
    found = optimizer.state[model[0].weight]["hessian"]
    assert float((found - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("name", BASELINES)
def test_a_saved_state_resumes_bit_identically(name):
    runs = []
    for cut in (False, True):
        model, inputs, targets = problem()
        optimizer = build_baseline(name, model, lr=0.1)
        torch.manual_seed(1)  # Sophia draws from the global generator
        for _ in range(4):
            optimizer.step(inputs, targets)
        if cut:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model, _, _ = problem(seed=2)
            optimizer = build_baseline(name, model, lr=0.1)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        torch.manual_seed(2)
        for _ in range(9):
            optimizer.step(inputs, targets)
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", BASELINES)
def test_a_batch_that_is_not_finite_is_refused(name):
    model, inputs, targets = problem()
    optimizer = build_baseline(name, model, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    inputs[0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        optimizer.step(inputs, targets)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_frozen_parameters_stay_as_they_are():
    for name in BASELINES:
        model, inputs, targets = problem()
        model[0].requires_grad_(False)
        before = model[0].weight.clone()
        build_baseline(name, model, lr=0.1, weight_decay=0.1).step(inputs, targets)
        assert torch.equal(before, model[0].weight)


def test_sophia_runs_through_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
    optimizer = build_baseline("sophia", model, lr=0.1)
    optimizer.step(torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0]))


def test_an_unknown_name_is_told_the_nearest():
    model, _, _ = problem()
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        build_baseline("adam", model, lr=0.1)
    with pytest.raises(ConfigError, match="did you mean 'sophia'"):
        build_baseline("sofia", model, lr=0.1)


def test_an_unknown_option_and_a_bad_value_are_named():
    model, _, _ = problem()
    with pytest.raises(ConfigError, match="rho"):
        build_baseline("kfac", model, lr=0.1, rho=1)
    with pytest.raises(ConfigError, match="learning rate"):
        build_baseline("adamw", model, lr=-1.0)
