"""Posteriors read by classes that nothing was learnt from, against the closed form and against draws of W (float64)."""

import pytest
import torch
from full_kalman_models import dense, fixed, full_jacobian, problem
from torch.nn import functional as F

from clipkal.adapters import LinearAdapter
from clipkal.optim import KalmanFilter
from clipkal.optim.full_kalman.posterior import OtherClasses

D, NEW = 6, 5


def unit(n: int, seed: int, d: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, dtype=torch.float64, generator=generator), dim=-1)


def covariance(samples: torch.Tensor) -> torch.Tensor:
    """Of draws [S, B, C] for each image [B, C, C]."""
    centred = samples.double() - samples.double().mean(0)
    return torch.einsum("sbc,sbe->bce", centred, centred) / len(samples)


def assert_close(found: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
    assert (found - wanted).abs().max() < share * wanted.abs().max()


@pytest.fixture
def learnt():
    model, inputs, labels = problem()
    optimizer = fixed(model, posterior_temperature=0.8)
    optimizer.step(inputs, labels)
    return model, optimizer


def test_samples_of_kalman_for_other_classes_are_those_of_w_itself(learnt):
    model, optimizer = learnt
    images, text = unit(4, 1), unit(NEW, 2)
    reference = optimizer.reference_scale.exp()
    model.text = text
    draws = optimizer.logit_samples(images, 40_000, torch.Generator().manual_seed(3))
    w = optimizer.sample(40_000, torch.Generator().manual_seed(4))
    offset = reference * images @ text.T
    wanted = offset + reference * torch.einsum("bq,npq,cp->nbc", images, w, text)
    assert_close(draws.mean(0), wanted.mean(0), 0.03)
    assert_close(draws.mean(0), model(images), 0.03)
    assert_close(covariance(draws), covariance(wanted), 0.05)
    assert_close(covariance(draws), optimizer.logit_covariance(images), 0.05)


@pytest.mark.parametrize(("classes", "d"), [(3, 6), (4, 8), (9, 4)])
def test_moments_of_kalman_for_other_classes_are_in_closed_form(classes, d):
    model, inputs, labels = problem(12, classes, d)
    theta, sigma, _, _ = dense(model.text.clone(), 3.0, inputs, labels, 0.7)
    optimizer = fixed(model)
    optimizer.step(inputs, labels)
    images, text = unit(7, 1, d), unit(NEW, 2, d)
    offset, jacobian = 3.0 * images @ text.T, full_jacobian(text, 3.0, images)
    model.text = text
    exact = {"atol": 1e-7, "rtol": 1e-7}
    torch.testing.assert_close(model(images).detach(), offset + jacobian @ theta, **exact)
    torch.testing.assert_close(optimizer.logit_covariance(images), jacobian @ sigma @ jacobian.mT, **exact)


def test_the_same_draws_stand_for_the_same_functions_of_both_kinds_of_classes(learnt):
    model, optimizer = learnt
    images, learnt_text = unit(4, 1), model.text
    drawn = lambda: optimizer.logit_samples(images, 7, torch.Generator().manual_seed(5))
    first = drawn()
    model.text = torch.cat((learnt_text, unit(NEW, 2)))
    torch.testing.assert_close(drawn()[..., : len(learnt_text)], first, atol=1e-5, rtol=1e-5)
    in_parts = [
        optimizer.logit_samples(part, 7, torch.Generator().manual_seed(5)) for part in images.split([1, 3])
    ]
    torch.testing.assert_close(torch.cat(in_parts, 1), drawn(), atol=1e-5, rtol=1e-5)
    model.text = learnt_text
    assert torch.equal(drawn(), first)


def test_classes_in_the_learnt_span_need_no_more_directions(learnt):
    model, optimizer = learnt
    mixed = F.normalize(model.text[:2] + 0.3 * model.text[1:], dim=-1)
    other = OtherClasses.of(optimizer.laplace, optimizer.reference_scale.exp() * mixed)
    assert other.wide.left_basis.shape == optimizer.laplace.left_basis.shape
    beyond = OtherClasses.of(optimizer.laplace, unit(NEW, 2)).wide.left_basis
    torch.testing.assert_close(beyond.T @ beyond, torch.eye(6, dtype=torch.float64))


def test_learning_goes_on_from_the_learnt_classes_after_a_look_at_others(learnt):
    model, optimizer = learnt
    _, inputs, labels = problem(seed=7)
    text = model.text
    model.text = unit(NEW, 2)
    optimizer.logit_samples(inputs, 2)
    model.text = text
    optimizer.step(inputs, labels)
    again, first_inputs, first_labels = problem()
    other = fixed(again, posterior_temperature=0.8)
    other.step(first_inputs, first_labels)
    other.step(inputs, labels)
    torch.testing.assert_close(model.weight, again.weight)


@pytest.mark.parametrize("form", ["diagonal", "subspace", "dense", "lowrank"])
def test_a_kalman_filter_reads_its_covariance_of_w_by_other_classes(form):
    adapter = LinearAdapter(unit(3, 0), 4.0)
    optimizer = KalmanFilter(adapter, covariance=form)
    optimizer.step(unit(12, 1), torch.arange(12) % 3)
    images, text = unit(4, 2), unit(NEW, 3)
    deviations = optimizer.covariance.sample(100_000, torch.Generator().manual_seed(4)).view(-1, D, D)
    of_w = 4.0 * torch.einsum("bq,npq,cp->nbc", images, deviations, text)
    with adapter.classes(text), torch.no_grad():
        exact, mean = optimizer.logit_covariance(images), adapter(images)
        drawn = optimizer.logit_samples(images, 4000, torch.Generator().manual_seed(5))
    assert drawn.shape == (4000, 4, NEW)
    assert_close(covariance(of_w), exact, 0.03)
    assert_close(covariance(drawn), exact, 0.12)
    assert (drawn.mean(0) - mean).abs().max() < 0.1 * exact.amax().sqrt()
