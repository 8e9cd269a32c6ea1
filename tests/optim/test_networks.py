"""A Kalman filter with its defaults learns a small network from scratch in one pass."""

import pytest
import torch
from kalman_models import bilinear
from sklearn.datasets import load_digits
from torch import nn

from clipkal.optim import KalmanFilter, OnlineKalman


def cnn() -> nn.Module:
    first = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 10))


def mlp(activation: type[nn.Module], hidden: int = 1, width: int = 32) -> nn.Module:
    inner = [layer for _ in range(hidden - 1) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), activation(), *inner, nn.Linear(width, 10))


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images[order], torch.tensor(data.target)[order]


NETS = {
    "cnn": cnn,
    "relu": lambda: mlp(nn.ReLU),
    "tanh": lambda: mlp(nn.Tanh),
    "three relus": lambda: mlp(nn.ReLU, hidden=3),
    "two gelus": lambda: mlp(nn.GELU, hidden=2),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("covariance", "enough"), [("diagonal", 0.5), ("lowrank", 0.75)])
def test_a_network_learns_in_one_pass(name: str, seed: int, covariance: str, enough: float) -> None:
    torch.manual_seed(seed)
    (images, labels), model = digits(seed), NETS[name]()
    optimiser = KalmanFilter(model, covariance=covariance)
    for start in range(0, 400, 40):
        optimiser.step(images[start : start + 40], labels[start : start + 40])
    with torch.no_grad():
        accuracy = (model(images[400:]).argmax(1) == labels[400:]).double().mean()
    assert accuracy > enough


def test_a_step_never_makes_its_own_block_less_likely() -> None:
    torch.manual_seed(0)
    (images, labels), model = digits(0), mlp(nn.ReLU, hidden=3)
    optimiser = KalmanFilter(model, prior=2.0, block=None)  # too wide by far
    loss = lambda b: float(nn.functional.cross_entropy(model(images[b]), labels[b]).detach())
    for start in range(0, 64, 8):
        part = slice(start, start + 8)
        before = loss(part)
        optimiser.step(images[part], labels[part])
        assert loss(part) <= before * (1 + 1e-6)


def test_what_begins_at_zero_or_is_one_layer_is_no_network() -> None:
    def change() -> nn.Module:  # LoRA's: A is there already, B is not
        model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 4, bias=False))
        nn.init.zeros_(model[1].weight)
        return model

    assert KalmanFilter(mlp(nn.ReLU)).ratio == pytest.approx(0.3)
    assert KalmanFilter(mlp(nn.ReLU), ratio=3.0).ratio == 3.0
    assert KalmanFilter(change(), priors={"0.weight": 1.0}).ratio == 3.0
    assert KalmanFilter(nn.Linear(6, 4)).ratio == 3.0
    assert KalmanFilter(bilinear()).ratio == 3.0
    assert OnlineKalman(bilinear()).ratio == 10.0


def test_a_resumed_filter_knows_what_it_began_as() -> None:
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 4, bias=False))
    nn.init.zeros_(model[1].weight)
    optimiser = KalmanFilter(model, priors={"0.weight": 0.1})
    optimiser.step(torch.randn(8, 6), torch.arange(8) % 4)
    resumed = KalmanFilter(model, priors={"0.weight": 0.1})
    resumed.load_state_dict(optimiser.state_dict())
    assert not resumed.network
