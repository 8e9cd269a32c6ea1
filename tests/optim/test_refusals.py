"""What no optimiser can do is one clear line, wherever it is asked."""

import math
from typing import Any

import pytest
import torch
from kalman_models import batch, bilinear, theta
from torch import nn
from torch.optim.lr_scheduler import StepLR

from clipkal.optim import (
    KFAC,
    RENG,
    RING,
    Kalman,
    KalmanCLIP,
    KalmanFilter,
    LoKO,
    OnlineKalman,
    RKalman,
)

FILTERS = [KalmanFilter, OnlineKalman, RKalman, LoKO, KalmanCLIP, Kalman]
NATURAL = [KFAC, RING, RENG]


@pytest.mark.parametrize("make", FILTERS + NATURAL)
def test_parameters_are_not_a_model(make: Any) -> None:
    with pytest.raises(
        TypeError, match=r"the model itself, a torch.nn.Module, not a generator: KalmanFilter\(model\)"
    ):
        make(bilinear().parameters())


@pytest.mark.parametrize("make", FILTERS + NATURAL)
def test_one_class_is_nothing_to_tell_apart(make: Any) -> None:
    model = bilinear(C=1)
    with pytest.raises(ValueError, match="the model has 1 class: a classifier needs at least two"):
        make(model).step(batch()[0], torch.zeros(8, dtype=torch.long))
    assert not model.weight.any()


@pytest.mark.parametrize("make", FILTERS)
def test_a_filter_has_no_learning_rate_to_schedule(make: Any) -> None:
    optimiser = make(bilinear())
    optimiser.load_state_dict(optimiser.state_dict())
    with pytest.raises(TypeError, match="no learning rate to schedule: leave the scheduler out"):
        StepLR(optimiser, 1)


@pytest.mark.parametrize("make", NATURAL)
def test_a_natural_gradient_can_be_scheduled(make: Any) -> None:
    scheduled, plain = make(model := bilinear(), lr=1.0), make(other := bilinear(), lr=1.0)
    other.load_state_dict(model.state_dict())
    scheduler = StepLR(scheduled, 1, gamma=0.0)
    first, second = batch(), batch()
    for optimiser in (scheduled, plain):
        optimiser.step(*first)
    assert torch.equal(model.weight, other.weight)
    scheduler.step()
    scheduled.step(*second)
    assert torch.equal(model.weight, other.weight)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("route", ["auto", "func", "hooks"])
def test_images_that_are_normalised_together_are_refused(route: str) -> None:
    model = net()
    model[1].requires_grad_(route == "auto")
    optimiser, before = KalmanFilter(model, route=route), theta(model)
    with pytest.raises(
        ValueError, match=r"BatchNorm1d '1' normalises by the images of the batch.*model\.eval\(\)"
    ):
        optimiser.step(*batch())
    assert torch.equal(theta(model), before)
    model.eval()
    assert math.isfinite(optimiser.step(*batch()).loss)


@pytest.mark.parametrize("make", NATURAL)
def test_natural_gradients_take_batch_norm_as_first_order_ones_do(make: Any) -> None:
    x, y = batch(B=32)
    optimiser = make(net())
    losses = [optimiser.step(x, y).loss for _ in range(10)]
    assert losses[-1] < losses[0]


nan, inf = math.nan, math.inf
IMPOSSIBLE = [
    *[(KalmanFilter, {"prior": value}) for value in (1e30, nan, inf, -1.0, 0.0, "wide", None)],
    *[(KalmanFilter, {"process_noise": value}) for value in (-1e-3, nan, inf, 1e30)],
    *[(KalmanFilter, {"fading": value}) for value in (0.0, 1.01, nan)],
    *[(KalmanFilter, {"rho": value}) for value in (-1.0, nan, inf)],
    *[(KalmanFilter, {name: nan}) for name in ("ratio", "warmup", "epochs", "posterior_temperature")],
    *[(KalmanFilter, {"posterior_temperature": value}) for value in (-1.0, "warm", inf)],
    (KalmanFilter, {"priors": {"weight": nan}}),
    *[(Kalman, {"prior": value}) for value in (1e30, nan, -1.0, 0.0, "wide")],
    *[(Kalman, {"posterior_temperature": value}) for value in (-0.1, "warm")],
    *[(Kalman, wrong) for wrong in ({"solver": "x"}, {"precision": "x"}, {"folds": 1}, {"ratio": 0.0})],
    *[(Kalman, {name: nan}) for name in ("posterior_temperature", "ratio", "folds", "probes")],
    *[
        (KFAC, {name: value})
        for name in ("lr", "damping", "weight_decay", "momentum")
        for value in (nan, inf, -1.0)
    ],
    *[(KFAC, {name: 1.0}) for name in ("momentum", "ema")],
    *[(KFAC, {name: "x"}) for name in ("fisher", "solver")],
    *[(make, wrong) for make in NATURAL for wrong in ({"damping": 0.0}, {"units": "x"})],
    *[(make, {"rho": value}) for make in (RING, RENG) for value in (nan, inf, -1.0)],
    (RING, {"rho_warmup": -1}),
]


@pytest.mark.parametrize(("make", "settings"), IMPOSSIBLE)
def test_a_setting_that_cannot_be_is_named(make: Any, settings: dict[str, Any]) -> None:
    name = next(iter(settings))
    said = "the prior of weight" if name == "priors" else name
    with pytest.raises(ValueError, match=rf"^{said} should be "):
        make(bilinear(), **settings)
