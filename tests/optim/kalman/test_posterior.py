"""Draws of the logits: their own Gaussian at the linearised model; of the parameters where there are very many classes."""

import pytest
import torch
from kalman_models import batch, bilinear, full_jacobian
from torch import nn

from clipkal.optim import KalmanFilter
from clipkal.optim.kalman.posterior import ANCHORS
from clipkal.optim.model.jacobian import MOST_ROWS


def small_net(classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, classes)).double()


@pytest.mark.parametrize("covariance", ["diagonal", "lowrank", "dense"])
@pytest.mark.parametrize("make", [small_net, bilinear])
def test_draws_have_the_moments_of_the_linearised_model(covariance: str, make) -> None:
    model = make()
    filtered = KalmanFilter(model, covariance=covariance, prior=0.2, posterior_temperature=0.5)
    filtered.step(*batch())
    new = batch(B=3)[0]
    draws = filtered.logit_samples(new, 40_000, torch.Generator().manual_seed(1))
    J = full_jacobian(model, new)
    expected = filtered.logit_covariance(new)
    if covariance == "dense":
        torch.testing.assert_close(expected, 0.5 * J @ filtered.covariance.P @ J.mT)
    deviations = (draws - model(new).detach()).transpose(0, 1)
    largest = float(expected.abs().max())
    assert deviations.mean(1).abs().max() < 0.02 * largest**0.5
    found = deviations.mT @ deviations / 40_000
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.03 * largest)


def test_draws_do_not_depend_on_how_many_images_are_asked_for() -> None:
    filtered = KalmanFilter(small_net(), prior=0.2)
    filtered.step(*batch())
    filtered.memory = 1  # one image's Jacobian at a time
    new = batch(B=3)[0]
    few = filtered.logit_samples(new, 5, torch.Generator().manual_seed(2))
    filtered.memory = 1 << 28
    torch.testing.assert_close(few, filtered.logit_samples(new, 5, torch.Generator().manual_seed(2)))


def test_of_very_many_classes_the_parameters_are_drawn() -> None:
    """A pass through the model for every draw: then images share the draws, here two equal images."""
    filtered = KalmanFilter(small_net(MOST_ROWS + 1), "softmax", prior=0.2)
    filtered.step(*batch())
    twice = batch(B=1)[0].repeat(2, 1)
    draws = filtered.logit_samples(twice, 3, torch.Generator().manual_seed(3))
    assert draws.std(0).min() > 0
    torch.testing.assert_close(draws[:, 0], draws[:, 1])


def read_by_shots(classes: int = 4, **settings: object) -> tuple[KalmanFilter, torch.Tensor]:
    """A filter of a small net that has seen two batches, and the images of both."""
    filtered = KalmanFilter(small_net(classes), "softmax", prior=0.2, readout="shots", **settings)
    first, second = batch(B=20), batch(B=20)
    for images, labels in (first, second):
        filtered.step(images, labels)
    return filtered, torch.cat((first[0], second[0]))


def test_by_shots_all_images_have_the_mean_covariance_of_the_kept_shots() -> None:
    filtered, seen = read_by_shots(posterior_temperature=0.5)
    new = batch(B=3)[0]
    filtered.readout = "exact"
    expected = filtered.logit_covariance(seen[:ANCHORS]).mean(0)
    filtered.readout = "shots"
    for found in filtered.logit_covariance(new):
        torch.testing.assert_close(found, expected)
    draws = filtered.logit_samples(new, 40_000, torch.Generator().manual_seed(1))
    deviations = (draws - filtered.model(new).detach()).transpose(0, 1)
    largest = float(expected.abs().max())
    torch.testing.assert_close(
        deviations.mT @ deviations / 40_000, expected.expand(3, 4, 4), rtol=0.05, atol=0.03 * largest
    )


def test_by_shots_nothing_is_linearised_again_until_the_filter_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    filtered, seen = read_by_shots()
    looked: list[int] = []
    linearise = filtered.route.linearise
    monkeypatch.setattr(filtered.route, "linearise", lambda x: (looked.append(len(x)), linearise(x))[1])
    for images in seen.split(10):
        filtered.logit_samples(images, 2, torch.Generator().manual_seed(0))
    assert sum(looked) == ANCHORS
    filtered.step(*batch(B=2))
    looked.clear()
    filtered.logit_samples(seen[:3], 2)
    assert sum(looked) == ANCHORS


def test_by_shots_very_many_classes_are_read_from_drawn_models() -> None:
    filtered, seen = read_by_shots(MOST_ROWS + 1)
    found = filtered.logit_covariance(seen[:1])[0]
    J = full_jacobian(filtered.model, seen[:4])
    exact = ((J * filtered.covariance.variance) @ J.mT).mean(0)
    # 32 drawn models, which are not linear
    assert float(found.trace() / exact.trace()) == pytest.approx(1, abs=0.35)


def test_the_kept_shots_are_part_of_the_state_and_an_old_state_is_read_exactly() -> None:
    filtered, seen = read_by_shots()
    state = filtered.state_dict()
    resumed = KalmanFilter(filtered.model, "softmax", prior=0.2, readout="shots")
    resumed.load_state_dict(state)
    torch.testing.assert_close(resumed.logit_covariance(seen[:1]), filtered.logit_covariance(seen[:1]))
    resumed.anchors = None
    filtered.readout = "exact"
    torch.testing.assert_close(resumed.logit_covariance(seen[:1]), filtered.logit_covariance(seen[:1]))
