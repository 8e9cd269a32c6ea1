"""What every optimiser of the package promises, whatever it is made of. (One process = two: test_distributed.py.)"""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from kalman_models import assert_resumes, batch, bilinear, same
from torch import Tensor, nn

from clipkal import optim
from clipkal.optim import BatchOptimizer, StepInfo


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 4))


def linear_adapter() -> nn.Module:
    return bilinear(dtype=torch.float32)


NATURAL = {"momentum": 0.9, "update_interval": 3}
ON_A_NET: dict[str, Callable[[nn.Module], BatchOptimizer]] = {
    "SGD": optim.SGD,
    "AdamW": partial(optim.AdamW, weight_decay=0.1),
    "Adagrad": optim.Adagrad,
    "SAM": optim.SAM,
    "Sophia": partial(optim.Sophia, update_period=3),
    "FirstOrder": lambda model: optim.FirstOrder(model, torch.optim.Adam(model.parameters())),
    "KFAC": partial(optim.KFAC, **NATURAL, weight_decay=0.1),
    "KFAC, ggn": partial(optim.KFAC, **NATURAL, fisher="ggn"),
    "KFAC, newton": partial(optim.KFAC, **NATURAL, solver="newton"),
    "RING": partial(optim.RING, **NATURAL),
    "RING, eigen": partial(optim.RING, **NATURAL, solver="eigen"),
    "RENG": partial(optim.RENG, **NATURAL),
    "KalmanFilter": optim.KalmanFilter,
    "OnlineKalman": optim.OnlineKalman,
    "RKalman": optim.RKalman,
    "LoKO": optim.LoKO,
    "KalmanCLIP": optim.KalmanCLIP,
}
CASES = [pytest.param(net, make, id=name) for name, make in ON_A_NET.items()] + [
    pytest.param(linear_adapter, getattr(optim, name), id=f"{name}, bilinear")
    for name in (
        "AdamW",
        "Ensemble",
        "LaplaceAdamW",
        "KFAC",
        "RING",
        "RENG",
        "OnlineKalman",
        "RKalman",
        "LoKO",
        "KalmanCLIP",
        "Kalman",
    )
]
pytestmark = pytest.mark.parametrize(("make_model", "make"), CASES)


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    return [batch(dtype=torch.float32) for _ in range(n)]


def test_a_step_says_what_it_saw_and_calls_each_hook_once(make_model, make) -> None:
    model, calls = make_model(), []
    optimiser = make(model)
    optimiser.register_step_post_hook(lambda *_: calls.append(1))
    for x, y in batches(3):
        info = optimiser.step(x, y)
        assert isinstance(info, StepInfo)
        assert math.isfinite(info.loss)
        assert info.log_evidence is None or math.isfinite(info.log_evidence)
        assert all(map(math.isfinite, info.metrics.values()))
    assert len(calls) == 3


def test_a_restored_optimiser_goes_on_bit_for_bit(make_model, make) -> None:
    assert_resumes(make_model, make, batches(9), split=5)


@pytest.mark.parametrize("fault", ["nan in the inputs", "inf in the inputs", "nan in a parameter"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_refused_step_changes_nothing(make_model, make, steps: int, fault: str) -> None:
    model = make_model()
    optimiser = make(model)
    for x, y in batches(steps):
        optimiser.step(x, y)
    x, y = batch(dtype=torch.float32)
    if "inputs" in fault:
        x[5, 1] = float(fault[:3])
    else:
        next(p for p in model.parameters() if p.requires_grad).data[0, 0] = torch.nan
    before = copy.deepcopy((model.state_dict(), optimiser.state_dict()))
    with pytest.raises(FloatingPointError):
        optimiser.step(x, y)
    assert same((model.state_dict(), optimiser.state_dict()), before)


def test_frozen_parameters_stay_bit_identical_and_the_others_move(make_model, make) -> None:
    model = make_model()
    if isinstance(model, nn.Sequential):
        model[0].requires_grad_(False)
        model[3].bias.requires_grad_(False)  # beside a weight that is trained
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = make(model)
    for x, y in batches(3):
        optimiser.step(x, y)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) is not p.requires_grad, name


def test_a_model_without_trainable_parameters_is_refused(make_model, make) -> None:
    with pytest.raises(ValueError, match="parameter"):
        make(make_model().requires_grad_(False))
