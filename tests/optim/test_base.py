"""The shape every optimiser has, and the first-order adaptor."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipkal.optim import BatchOptimizer, FirstOrder, StepInfo


def _model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 4)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 3), torch.randint(4, (6,))


def test_first_order_takes_the_step_its_optimiser_would() -> None:
    ours, theirs = _model(), _model()
    adaptor = FirstOrder(ours, torch.optim.AdamW(ours.parameters(), lr=0.1))
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    for _ in range(3):
        x, y = _batch()
        loss = F.cross_entropy(theirs(x), y)
        info = adaptor.step(x, y)
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert info == StepInfo(loss=float(loss.detach()))
    assert torch.equal(ours.weight, theirs.weight)


def test_first_order_shares_groups_and_state_with_its_optimiser() -> None:
    model = _model()
    inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    adaptor = FirstOrder(model, inner)
    scheduler = torch.optim.lr_scheduler.StepLR(adaptor, 1, gamma=0.5)
    adaptor.step(*_batch())
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.5
    adaptor.load_state_dict(adaptor.state_dict())
    assert adaptor.param_groups is adaptor.optimizer.param_groups
    assert adaptor.state is adaptor.optimizer.state


def test_a_nan_in_the_batch_leaves_model_and_state_alone() -> None:
    model = _model()
    adaptor = FirstOrder(model, torch.optim.Adam(model.parameters(), lr=0.1))
    adaptor.step(*_batch())
    before, state = model.weight.detach().clone(), repr(adaptor.state_dict())
    x, y = _batch()
    x[2, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="inputs: 1 of 18"):
        adaptor.step(x, y)
    assert torch.equal(model.weight, before)
    assert repr(adaptor.state_dict()) == state


def test_an_infinite_loss_is_refused() -> None:
    model = _model()
    adaptor = FirstOrder(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=lambda z, y: z.sum() / 0)
    before = model.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="loss"):
        adaptor.step(*_batch())
    assert torch.equal(model.weight, before)


class _TwoStep(torch.optim.SGD):
    """Like SAM: climbs, evaluates through the closure, then takes the new gradient from where it began."""

    def step(self, closure):  # type: ignore[override]
        (weight, *_) = self.param_groups[0]["params"]
        with torch.no_grad():
            weight.add_(self.radius)
        closure()
        with torch.no_grad():
            weight.sub_(self.radius)
        super().step()

    radius = 0.1


def test_a_closure_optimiser_gets_the_gradient_where_it_asks() -> None:
    ours, theirs = _model(), _model()
    x, y = _batch()
    adaptor = FirstOrder(ours, _TwoStep(ours.parameters(), lr=0.5), closure=True)
    info = adaptor.step(x, y)
    assert info.loss == pytest.approx(F.cross_entropy(theirs(x), y).item())
    moved = _model()
    with torch.no_grad():
        moved.weight.add_(0.1)
    F.cross_entropy(moved(x), y).backward()
    torch.testing.assert_close(ours.weight, theirs.weight - 0.5 * moved.weight.grad)


def test_a_closure_that_fails_half_way_puts_the_parameters_back() -> None:
    model = _model()
    before = model.weight.detach().clone()
    optimizer = _TwoStep(model.parameters(), lr=0.5)
    optimizer.radius = float("inf")
    with pytest.raises(FloatingPointError):
        FirstOrder(model, optimizer, closure=True).step(*_batch())
    assert torch.equal(model.weight, before)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = _model().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to optimise"):

        class Still(BatchOptimizer):
            def step(self, inputs, targets):  # type: ignore[override]
                return StepInfo(0.0)

        Still(model)
