"""The hook route against torch.func.jacrev, in float64."""

import pytest
import torch
from kalman_models import full_jacobian
from torch import nn

from clipkal.optim import KalmanFilter
from clipkal.optim.model import make_route
from clipkal.optim.model.jacobian import MOST_ROWS, FunctionalJacobian, FunctionalRoute, ParameterVector
from clipkal.optim.model.layers import HookJacobian, HookRoute


class Tokens(nn.Module):
    """Layers that see [B, T, d], [T, B, d] and [B, d]; one of them is used twice and one has a frozen bias."""

    def __init__(self, sequence_first: bool = True, classes: int = 3):
        super().__init__()
        self.sequence_first = sequence_first
        self.first, self.twice = nn.Linear(4, 5), nn.Linear(5, 5, bias=False)
        self.head = nn.Linear(5, classes)
        self.head.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        x = x.transpose(0, 1) if self.sequence_first else x
        x = torch.tanh(self.twice(torch.tanh(self.twice(x)) + x))
        x = x.transpose(0, 1) if self.sequence_first else x
        return 1.3 * self.head(x.square().mean(1))


class Prompted(nn.Module):
    """A layer that sees class prompts, as many as there are images, and no image."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(4, 6), requires_grad=False)
        self.text = nn.Linear(6, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.text(self.prompts).T


def jacobian_of(model: nn.Module, x: torch.Tensor, route: str = "auto"):
    return make_route(model, ParameterVector(model), route).linearise(x)


@pytest.mark.parametrize("images", [1, 4, 6])  # 6 images of 6 tokens: sizes alone do not tell which is which
@pytest.mark.parametrize("sequence_first", [True, False])
def test_rows_are_those_of_jacrev(images: int, sequence_first: bool) -> None:
    torch.manual_seed(0)
    model = Tokens(sequence_first).double()
    x = torch.randn(images, 6, 4).double()
    J = full_jacobian(model, x)
    jacobian = jacobian_of(model, x)
    assert isinstance(jacobian, HookJacobian)
    cotangents = torch.randn(images, 3, 2).double()
    torch.testing.assert_close(jacobian.pull(cotangents), cotangents.mT @ J)
    gradient = torch.einsum("bc,bcn->n", cotangents[..., 0], J)
    torch.testing.assert_close(jacobian.gradient_norm2(cotangents[..., 0]), gradient.square().sum())
    assert not jacobian.logits.requires_grad


def test_a_layer_that_sees_no_images_takes_the_general_route() -> None:
    torch.manual_seed(0)
    model, x = Prompted().double(), torch.randn(4, 6).double()
    jacobian = jacobian_of(model, x)
    assert isinstance(jacobian, FunctionalJacobian)
    cotangents = torch.randn(4, 4, 2).double()
    torch.testing.assert_close(jacobian.pull(cotangents), cotangents.mT @ full_jacobian(model, x))


def test_it_fits_models_of_linear_layers_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert isinstance(make_route(net, ParameterVector(net)), HookRoute)
    normed = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert isinstance(make_route(normed, ParameterVector(normed)), FunctionalRoute)
    normed[1].requires_grad_(False)
    assert isinstance(make_route(normed, ParameterVector(normed)), HookRoute)
    normed[1].requires_grad_(True)
    with pytest.raises(ValueError, match=r"nn\.Linear"):
        make_route(normed, ParameterVector(normed), "hooks")


def test_too_many_rows_are_refused_with_their_cost() -> None:
    net = nn.Linear(2, MOST_ROWS + 1)
    kalman = KalmanFilter(net, "categorical", prior=1.0)
    before = net.weight.detach().clone()
    with pytest.raises(ValueError, match=rf"{MOST_ROWS + 1} outputs an image need {MOST_ROWS + 1} backward"):
        kalman.step(torch.randn(3, 2), torch.tensor([0, 1, 2]))
    assert torch.equal(net.weight, before)
    KalmanFilter(net, "softmax", prior=1.0).step(torch.randn(3, 2), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("block", [1, None])
@pytest.mark.parametrize("observation", ["softmax", "categorical"])
def test_a_filter_does_the_same_by_either_route(observation: str, block: int | None) -> None:
    states = []
    for route in ("hooks", "func"):
        torch.manual_seed(0)
        model, x, y = Tokens().double(), torch.randn(5, 6, 4).double(), torch.tensor([0, 1, 2, 0, 1])
        kalman = KalmanFilter(model, observation, prior=0.5, block=block, route=route)
        infos = [kalman.step(x, y) for _ in range(2)]
        states.append((kalman.vector.gather(), kalman.covariance.variance, infos[1].loss))
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b)


def test_covariances_of_the_logits_do_not_depend_on_how_many_fit_in_memory() -> None:
    torch.manual_seed(0)
    model, x, y = Tokens().double(), torch.randn(5, 6, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    kalman = KalmanFilter(model, "categorical", prior=0.5)
    kalman.step(x, y)
    J = full_jacobian(model, x)
    expected = J @ (kalman.covariance.variance[:, None] * J.mT)
    for memory in (1, 2500, 1 << 28):
        kalman.memory = memory
        torch.testing.assert_close(kalman.logit_covariance(x), expected)
