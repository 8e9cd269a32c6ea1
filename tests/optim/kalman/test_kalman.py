"""The filter as a whole: invariances, refusals, state, several epochs, and that it learns."""

import copy
from typing import Any

import pytest
import torch
from kalman_models import Bilinear, assert_resumes, batch, bilinear, same, theta
from torch import nn
from torch.nn import functional as F

from clipkal.optim import KalmanCLIP, KalmanFilter, LoKO, OnlineKalman, RKalman
from clipkal.optim.kalman.categorical import Categorical
from clipkal.optim.kalman.observation import FixedNoise

COVARIANCES = ["diagonal", "subspace", "lowrank", "dense"]
PRESETS = [OnlineKalman, RKalman, LoKO, KalmanCLIP]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4))


@pytest.mark.parametrize("observation", ["categorical", "softmax", "probs"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_names_of_the_classes_do_not_matter(observation: str, covariance: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    x, y = batch()
    models = bilinear(), bilinear()
    models[1].text.copy_(models[0].text[order])
    for model, targets in zip(models, (y, order.argsort()[y]), strict=True):
        KalmanFilter(model, observation, covariance=covariance, block=3).step(x, targets)
    torch.testing.assert_close(models[1].weight, models[0].weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_order_of_a_joint_batch_does_not_matter_but_that_of_a_sequential_one_does(
    covariance: str,
) -> None:
    x, y = batch()
    order = torch.randperm(8)
    moved = {}
    for block in (None, 2):
        models = bilinear(), bilinear()
        models[1].load_state_dict(models[0].state_dict())
        for model, images in zip(models, (torch.arange(8), order), strict=True):
            KalmanFilter(model, covariance=covariance, block=block, prior=0.5).step(x[images], y[images])
        moved[block] = (models[0].weight - models[1].weight).abs().max()
    assert moved[None] < 1e-9
    assert moved[2] > 1e-6


def test_a_constant_added_to_all_logits_does_not_matter() -> None:
    class Shifted(Bilinear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) + 1000.0

    x, y = batch()
    text = torch.randn(4, 5).double()
    models = Bilinear(text, 6), Shifted(text, 6)
    for model in models:
        KalmanFilter(model).step(x, y)
    torch.testing.assert_close(models[1].weight, models[0].weight, rtol=1e-8, atol=1e-10)


def test_a_duplicate_at_half_the_power_is_one_image() -> None:
    model, double = bilinear(), bilinear()
    double.load_state_dict(model.state_dict())
    x, y = batch(B=1)
    KalmanFilter(model, prior=0.3).step(x, y)
    KalmanFilter(double, prior=0.3, epochs=2, block=None).step(x.repeat(2, 1), y.repeat(2))
    torch.testing.assert_close(double.weight, model.weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rho_as", ["absolute", "relative"])
def test_without_rho_rkalman_is_kalman(rho_as: str) -> None:
    x, y = batch()
    models = bilinear(), bilinear()
    models[1].load_state_dict(models[0].state_dict())
    OnlineKalman(models[0]).step(x, y)
    RKalman(models[1], rho=0.0, rho_as=rho_as).step(x, y)
    assert torch.equal(models[0].weight, models[1].weight)


def test_relative_rho_is_free_of_scale_and_warms_up() -> None:
    x, y = batch()
    filtered = KalmanFilter(bilinear(), prior=0.2, rho=0.1, rho_as="relative", warmup=2)
    assert filtered.step(x, y).metrics["regularisation"] == 0
    halfway = filtered.step(x, y).metrics["regularisation"]
    fresh = KalmanFilter(bilinear(), prior=0.2, rho=0.1, rho_as="relative")
    assert fresh.step(x, y).metrics["regularisation"] == pytest.approx(0.1 / 0.2)
    assert halfway > 0


def test_the_ratio_rule_sets_the_prior_variance_of_the_centred_logits() -> None:
    x, _ = batch(B=20)
    for scale in (1.0, 100.0):
        model = bilinear(scale=scale)
        filtered = KalmanFilter(model, ratio=0.8)
        jacobian = filtered.route.linearise(x)
        assert filtered._initialise(jacobian, torch.zeros(20, dtype=torch.int64))
        variance = filtered.vector.view(filtered.covariance.variance, "weight")
        left, right = model.jacobian_factors(x)
        centred = left - left.mean(0)
        spread = torch.einsum("ca,ab,ib->ic", centred.square(), variance, right.square())
        assert float(spread.sum() / (20 * 3)) == pytest.approx(0.8)


def test_the_ratio_rule_for_a_scalar_observation_is_hph_over_r() -> None:
    x, y = batch(B=20)
    model = bilinear()
    filtered = KalmanFilter(model, "cosine", ratio=1.7)
    R0 = (1 - model(x).detach().gather(1, y[:, None]) / 5).square().mean() + 1e-4
    filtered.step(x, y)
    hph = filtered.prior_variance * model.text[y].square().sum(1) * x.square().sum(1)
    assert float(hph.mean() / R0) == pytest.approx(1.7)


def test_a_saturated_softmax_output_does_not_make_the_prior_explode() -> None:
    """Where the model is sure ∂π_y/∂θ vanishes: the centred logits bound p₀ where the ratio alone would not."""
    x, _ = batch(B=20)
    model = bilinear(scale=300.0)
    y = model(x).argmax(-1)
    filtered = KalmanFilter(model, "softmax")
    filtered.step(x, y)
    left, right = model.jacobian_factors(x)
    spread = filtered.prior_variance * (left - left.mean(0)).square().sum() / 3 * right.square().sum(1).mean()
    assert float(spread) == pytest.approx(10.0)


def test_tempering_tempers_the_gradient_that_regularises() -> None:
    x, y = batch()
    plain, tempered = (KalmanFilter(bilinear(), prior=0.2, rho=0.1, epochs=e) for e in (1, 4))
    tempered.model.load_state_dict(plain.model.state_dict())
    first, second = (f.step(x, y).metrics["regularisation"] for f in (plain, tempered))
    assert second == pytest.approx(first / 16)


def test_a_first_batch_with_no_jacobian_is_skipped() -> None:
    model = bilinear()
    filtered = KalmanFilter(model)
    x, y = batch()
    assert filtered.step(0 * x, y).metrics == {"skipped": 1.0}
    with pytest.raises(RuntimeError, match="no batch"):
        filtered.logit_samples(x, 2)
    assert "prior_variance" in filtered.step(x, y).metrics


@pytest.mark.parametrize("make", PRESETS)
def test_finite_images_whose_logits_overflow_are_refused_and_change_nothing(make: Any) -> None:
    """Also in the first batch."""
    model = bilinear(dtype=torch.float32)
    filtered = make(model)
    for _ in range(2):
        before = copy.deepcopy((model.state_dict(), filtered.state_dict()))
        x, y = batch(dtype=torch.float32)
        x[5, 1:3] = 1e38
        with pytest.raises(FloatingPointError):
            filtered.step(x, y)
        assert same((model.state_dict(), filtered.state_dict()), before)
        filtered.step(*batch(dtype=torch.float32))


@pytest.mark.parametrize(
    "settings",
    [
        {"observation": "probs", "noise": "residual_full", "gate": "imq"},
        {"rho": 0.1, "rho_as": "relative", "warmup": 2, "fading": 0.95},
    ],
)
def test_a_restored_filter_goes_on_bit_for_bit(settings: dict) -> None:
    data = [batch(dtype=torch.float32) for _ in range(4)]
    make = lambda model: KalmanFilter(model, **settings)
    assert_resumes(lambda: bilinear(dtype=torch.float32), make, data, split=2)


@pytest.mark.parametrize("covariance", ["diagonal", "lowrank", "dense"])
@pytest.mark.parametrize("observation", ["categorical", "softmax"])
def test_it_fits_a_small_net(covariance: str, observation: str) -> None:
    torch.manual_seed(4)
    model = net()
    x, y = torch.randn(64, 6), torch.randint(4, (64,))
    x += 3 * F.one_hot(y, 6)
    filtered = KalmanFilter(model, observation, covariance=covariance, epochs_as="optimiser")
    losses = [filtered.step(x[i : i + 16], y[i : i + 16]).loss for _ in range(3) for i in range(0, 64, 16)]
    assert losses[-1] < 0.5 * losses[0]
    draws = filtered.logit_samples(x[:5], 7, torch.Generator().manual_seed(0))
    assert draws.shape == (7, 5, 4)
    assert draws.std(0).min() > 0


@pytest.mark.parametrize("make", PRESETS)
def test_presets_learn_a_linear_adapter_in_one_epoch(make: Any) -> None:
    torch.manual_seed(6)
    model = bilinear(C=6, p=8, q=8, scale=10.0, dtype=torch.float32)
    model.text.copy_(F.normalize(model.text, dim=-1))
    y = torch.arange(6).repeat(20)
    x = F.normalize(F.one_hot(y, 8) + 0.2 * torch.randn(120, 8), dim=-1)
    order = torch.randperm(120)
    before = F.cross_entropy(model(x), y)
    filtered = make(model)
    for images in order.split(16):
        filtered.step(x[images], y[images])
    assert F.cross_entropy(model(x), y) < 0.6 * before


def test_autocast_reaches_the_model_but_not_the_algebra() -> None:
    found = []
    for enabled in (False, True):
        torch.manual_seed(8)
        model = bilinear(C=6, p=16, q=16, dtype=torch.float32, scale=1.0)
        filtered = KalmanFilter(model, prior=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for _ in range(2):
                filtered.step(*batch(q=16, C=6, dtype=torch.float32))
        found.append((theta(model), filtered.covariance.variance))
    for exact, cast in zip(*found, strict=True):
        assert cast.dtype == torch.float32
        torch.testing.assert_close(cast, exact, rtol=0.05, atol=0.02)
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("make", [bilinear, lambda: net().double()])
def test_a_compiled_forward_gives_the_same_filter(make: Any) -> None:
    x, y = batch()
    plain, other = make(), make()
    other.load_state_dict(plain.state_dict())
    compiled = torch.compile(other, backend="eager")
    for model in (plain, compiled):
        filtered = KalmanFilter(model, prior=0.3)
        filtered.step(x, y)
        assert filtered.logit_samples(x, 2).shape == (2, 8, 4)
    torch.testing.assert_close(theta(other), theta(plain))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs_as": "all"}, "tempered"),
        ({"block": 0}, "block"),
        ({"covariance": "full"}, "diagonal, subspace"),
        ({"observation": "categorical", "noise": "fixed"}, "its own noise"),
        ({"noise": "pink"}, "unknown noise"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KalmanFilter(bilinear(), **settings)


@pytest.mark.parametrize("make", [bilinear, lambda: net().double()])
def test_unit_temperature_draws_a_prior_of_unit_logit_variance_and_survives_a_checkpoint(make: Any) -> None:
    x, y = batch()
    model = make()
    plain, unit = (KalmanFilter(model, prior=3.0, posterior_temperature=t) for t in (1.0, "unit"))
    plain.step(x, y)
    plain.load_state_dict(copy.deepcopy(plain.state_dict()))
    unit.step(x, y)
    jacobian = unit.route.linearise(x)
    J = jacobian.pull(torch.eye(4).double().expand(8, 4, 4))
    centred = J - J.mean(1, keepdim=True)
    T = unit.temperature
    assert 3.0 * T * float(centred.square().sum()) / (8 * 3) == pytest.approx(1.0, rel=0.5)
    assert T < 1
    resumed = KalmanFilter(model, prior=3.0, posterior_temperature="unit")
    resumed.load_state_dict(unit.state_dict())
    assert resumed.temperature == T
    covariance = unit.logit_covariance(x)
    unit.temperature = 1.0
    torch.testing.assert_close(covariance, T * unit.logit_covariance(x))
    draws = [f.logit_samples(x, 3, torch.Generator().manual_seed(1)) for f in (unit, resumed)]
    if isinstance(model, Bilinear):
        deviations = [d - model(x).detach() for d in draws]
        torch.testing.assert_close(deviations[1], T**0.5 * deviations[0])


def test_targets_are_checked() -> None:
    filtered = KalmanFilter(bilinear())
    x, y = batch()
    for bad in (y + 2, y - 1, y[:3], y.float()):
        with pytest.raises(ValueError, match=r"targets|0…3"):
            filtered.step(x, bad)
    regression = KalmanFilter(bilinear(), "gaussian", FixedNoise(1.0))
    with pytest.raises(FloatingPointError, match="targets"):
        regression.step(x, torch.full((8, 4), float("nan")).double())


def test_merging_unlikely_classes_changes_next_to_nothing() -> None:
    torch.manual_seed(9)
    x, y = batch(B=24, q=16, C=60)
    found = []
    for merge in (0.0, 0.01):
        torch.manual_seed(10)
        model = bilinear(C=60, p=16, q=16, scale=4.0)
        filtered = KalmanFilter(model, Categorical(merge=merge), block=4)
        filtered.step(x, y)
        found.append(theta(model))
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()
    assert not torch.equal(*found)
