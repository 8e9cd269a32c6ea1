"""Routes to the Jacobian, against torch.func.jacrev."""

import pytest
import torch
from kalman_models import batch, bilinear, full_jacobian
from torch import nn

from clipkal.optim import KalmanFilter
from clipkal.optim.kalman.categorical import Categorical
from clipkal.optim.kalman.observation import ModelNoise
from clipkal.optim.kalman.prior import centred_logits
from clipkal.optim.model import make_route
from clipkal.optim.model.bilinear import BilinearRoute
from clipkal.optim.model.jacobian import PROBES, FunctionalRoute, ParameterVector


class Net(nn.Module):
    """A small net with a frozen layer, a scalar parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5).requires_grad_(False)
        self.second = nn.Linear(5, 4)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("shift", torch.randn(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.gain * torch.tanh(self.first(inputs)) + self.shift)


def _model(kind: str) -> nn.Module:
    if kind == "net":
        return Net().double()
    model = bilinear()
    nn.init.normal_(model.weight)
    return model


@pytest.mark.parametrize("kind", ["bilinear", "net"])
@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_every_route_gives_the_jacobian(kind: str, memory: int) -> None:
    model = _model(kind)
    vector = ParameterVector(model)
    x, y = batch()
    J = full_jacobian(model, x)
    routes = ["func"] if kind == "net" else ["func", "bilinear"]
    for name in routes:
        jacobian = make_route(model, vector, name, memory).linearise(x)
        cotangents = torch.randn(8, 4, 3).double()
        torch.testing.assert_close(jacobian.pull(cotangents), cotangents.mT @ J)
        measurement = Categorical().measure(jacobian.logits.detach(), y, ModelNoise())
        rows = measurement.cotangents().mT @ J
        torch.testing.assert_close(jacobian.rows(measurement), rows)
        squares = jacobian.squared_rows(measurement)
        torch.testing.assert_close(sum(squares.values()), rows.square().sum())
        gradient = torch.einsum("bc,bcn->n", measurement.score(), J)
        torch.testing.assert_close(jacobian.gradient_norm2(measurement.score()), gradient.square().sum())


def test_the_cheapest_route_that_fits_is_taken() -> None:
    model = bilinear()
    assert isinstance(make_route(model, ParameterVector(model)), BilinearRoute)
    net = Net()
    assert isinstance(make_route(net, ParameterVector(net)), FunctionalRoute)
    with pytest.raises(ValueError, match="BilinearModel"):
        make_route(net, ParameterVector(net), "bilinear")
    with pytest.raises(ValueError, match="auto, bilinear, hooks, func"):
        make_route(net, ParameterVector(net), "hook")


def test_a_bilinear_model_that_trains_more_takes_the_general_route() -> None:
    model = bilinear()
    model.bias = nn.Parameter(torch.zeros(4))
    assert isinstance(make_route(model, ParameterVector(model)), FunctionalRoute)


def test_the_vector_is_the_parameters_in_order() -> None:
    net = Net()
    vector = ParameterVector(net)
    assert vector.names == ["gain", "second.weight", "second.bias"]
    before = vector.gather()
    assert before.shape == (vector.size,) == (25,)
    vector.add_(torch.arange(25.0))
    torch.testing.assert_close(vector.gather() - before, torch.arange(25.0))
    assert vector.unflatten(before)["second.weight"].shape == (4, 5)
    stacked = torch.stack([before, before + 1])
    torch.testing.assert_close(vector.flatten(vector.unflatten(stacked), leading=1), stacked)
    vector.assign_(before)
    torch.testing.assert_close(vector.gather(), before, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [16, 400])
def test_of_many_rows_the_size_of_a_jacobian_is_estimated(classes: int) -> None:
    """The ratio rule starts a filter on a net of any number of classes, at about the p₀ that all rows would give."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    x = torch.randn(20, 6).double()
    route = make_route(model, ParameterVector(model), "hooks")
    jacobian = route.linearise(x)
    J = full_jacobian(model, x)
    exact = (J - J.mean(1, keepdim=True)).square().sum()
    found = torch.stack(list(jacobian.squared_rows(centred_logits(jacobian.logits)).values())).sum()
    torch.testing.assert_close(found, exact, rtol=1e-9 if classes <= PROBES else 0.1, atol=0)
    filtered = KalmanFilter(model, "softmax")
    filtered.step(x, torch.randint(classes, (20,)))
    assert filtered.prior_variance is not None
