"""Draws of the logits: their own Gaussian at the linearised model; of the parameters where there are very many classes."""

import pytest
import torch
from kalman_models import batch, bilinear, full_jacobian
from torch import nn

from clipkal.optim import KalmanFilter
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
