"""Kalman against the same mathematics written out densely (float64), and against scikit-learn."""

import math

import pytest
import torch
from full_kalman_models import curvature, dense, fixed, full_jacobian, problem, unit
from kalman_models import Bilinear
from torch.nn import functional as F

from clipkal.optim.full_kalman import Kalman
from clipkal.optim.full_kalman.mode import find_mode
from clipkal.optim.full_kalman.problem import Sites, full_weight, reduce

SHAPES = pytest.mark.parametrize(("n", "c", "d"), [(12, 3, 6), (5, 4, 8), (20, 9, 4), (1, 2, 3)])
SOLVERS = pytest.mark.parametrize("solver", ["direct", "cg"])


@SOLVERS
@SHAPES
def test_map_evidence_and_covariance_are_those_of_newton_on_the_full_parameter_vector(
    n, c, d, solver
) -> None:
    """The covariance is the inverse of the explicit precision, at images inside and outside the span of the data."""
    model, x, y = problem(n, c, d)
    text = model.text.clone()
    theta, covariance, evidence, offset = dense(text, 3.0, x, y, 0.7)
    f = fixed(model, solver=solver)
    info = f.step(x, y)
    expected = offset + 3.0 * x @ theta.view(d, d).T @ text.T
    torch.testing.assert_close(
        model(x).detach().log_softmax(-1), expected.log_softmax(-1), atol=1e-8, rtol=1e-8
    )
    torch.testing.assert_close(model.weight.detach(), theta.view(d, d), atol=1e-7, rtol=1e-7)
    assert info.loss == pytest.approx(float(F.cross_entropy(offset, y)))
    if solver == "direct":
        assert info.log_evidence == pytest.approx(evidence, abs=1e-9)
    test = unit(torch.randn(7, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    jacobian = full_jacobian(text, 3.0, test)
    expected = jacobian @ covariance @ jacobian.mT
    torch.testing.assert_close(f.logit_covariance(test), expected, atol=1e-8, rtol=1e-8)


def test_an_image_outside_the_span_keeps_the_prior_variance() -> None:
    model, x, y = problem(4, 3, 6)
    x = torch.cat((x[:, :5], torch.zeros(4, 1, dtype=torch.float64)), 1)
    f = fixed(model)
    f.step(x, y)
    test = torch.eye(6, dtype=torch.float64)[-1:]
    prior = 0.7 * 9.0 * model.text @ model.text.T
    torch.testing.assert_close(f.logit_covariance(test)[0], prior)
    draws = f.logit_samples(test, 20000, torch.Generator().manual_seed(0))[:, 0].double()
    torch.testing.assert_close(draws.T.cov(), prior, atol=0.05 * float(prior.diagonal().max()), rtol=0.05)


@SOLVERS
def test_samples_have_the_mean_and_covariance_of_the_posterior(solver: str) -> None:
    n = 20000
    model, x, y = problem(6, 4, 8)
    f = fixed(model, solver=solver)
    f.step(x, y)
    test = torch.cat((x[:2], torch.eye(8, dtype=torch.float64)[:2]))
    draws = f.logit_samples(test, n, torch.Generator().manual_seed(3)).double()
    expected = f.logit_covariance(test)
    sd = expected.diagonal(dim1=1, dim2=2).sqrt()
    z = (draws.mean(0) - model(test).detach()) / sd * math.sqrt(n)
    assert z.abs().max() < 4.5
    for i in range(len(test)):
        error = (draws[:, i].T.cov() - expected[i]) / (sd[i][:, None] * sd[i][None, :])
        assert error.abs().max() * math.sqrt(n) < 6.0


def test_weight_samples_give_the_same_distribution_of_logits() -> None:
    model, x, y = problem(6, 4, 5)
    f = fixed(model)
    f.step(x, y)
    weight = f.sample(20000, torch.Generator().manual_seed(0))
    test = torch.eye(5, dtype=torch.float64)[:2]
    logits = 3.0 * test @ model.text.T + 3.0 * test @ weight.mT @ model.text.T
    expected = f.logit_covariance(test)
    for i in range(2):
        scale = float(expected[i].diagonal().max())
        torch.testing.assert_close(logits[:, i].T.cov(), expected[i], atol=0.06 * scale, rtol=0.0)


def test_the_temperature_scales_the_covariance_and_leaves_the_map() -> None:
    covariances, weights = [], []
    for temperature in (1.0, 0.25, 0.0):
        model, x, y = problem()
        f = fixed(model, posterior_temperature=temperature)
        f.step(x, y)
        covariances.append(f.logit_covariance(x))
        weights.append(model.weight.detach())
    torch.testing.assert_close(covariances[1], 0.25 * covariances[0])
    assert covariances[2].abs().max() == 0 and torch.equal(weights[0], weights[2])
    draws = f.logit_samples(x, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws[0].double(), model(x).detach(), atol=1e-5, rtol=1e-5)


def test_scikit_learn_finds_the_same_map() -> None:
    """Prior N(0, p₀ I) on the class weights V = s T W: with orthonormal text rows it is ridge-penalised multinomial regression."""
    from sklearn.linear_model import LogisticRegression

    model, x, y = problem(30, 4, 6, scale=2.0)
    text = torch.linalg.qr(
        torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0].T
    model = Bilinear(text, 6, 2.0)
    with torch.no_grad():
        x = x - x @ text.T @ text @ torch.linalg.pinv(text.T @ text)  # zero-shot logits vanish
    fixed(model, p0=0.5).step(x, y)
    sk = LogisticRegression(C=0.5 * 4.0, fit_intercept=False, tol=1e-12, max_iter=10000)
    sk.fit(x.numpy(), y.numpy())
    torch.testing.assert_close(
        model(x).detach().softmax(-1), torch.from_numpy(sk.predict_proba(x.numpy())), atol=1e-6, rtol=1e-5
    )


@SOLVERS
def test_the_gradient_vanishes_at_the_map(solver: str) -> None:
    model, x, y = problem(40, 5, 8)
    fixed(model, p0=2.0, solver=solver).step(x, y)
    objective = F.cross_entropy(model(x), y, reduction="sum") + model.weight.square().sum() / (2 * 2.0)
    (gradient,) = torch.autograd.grad(objective, model.weight)
    assert gradient.abs().max() < 1e-6


def test_one_relinearised_step_is_the_natural_gradient_step() -> None:
    """The first Newton step from W = 0 is θ + P⁺ ∇ log p (Ollivier 2018), with P⁺ from the explicit precision."""
    model, x, y = problem(10, 3, 5)
    text, offset = model.text, 3.0 * x @ model.text.T
    reduced, v_f, v_t = reduce(3.0 * text, x, offset, y, "float64")
    reduced = reduced.with_amplitude(math.sqrt(0.1))
    mode = find_mode(reduced, reduced.zeros(), 1e9, direct=True)
    assert mode.iterations == 1
    jacobian = full_jacobian(text, 3.0, x)
    probs, middle = curvature(offset)
    precision = torch.eye(25) / 0.1 + torch.einsum("ncx,ncd,ndy->xy", jacobian, middle, jacobian)
    gradient = torch.einsum("ncx,nc->x", jacobian, F.one_hot(y, 3).double() - probs)
    natural = torch.linalg.solve(precision, gradient).view(5, 5)
    torch.testing.assert_close(full_weight(reduced, mode.x, v_f, v_t), natural, atol=1e-10, rtol=1e-8)


def test_site_curvature_is_diag_pi_minus_pi_pi_and_its_root_squares_to_it() -> None:
    logits = 5 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sites, eye = Sites.at(logits), torch.eye(6, dtype=torch.float64)
    _, expected = curvature(logits)
    rows = eye[:, None, :].expand(6, 4, 6)
    torch.testing.assert_close(sites.curvature(rows).permute(1, 0, 2), expected)
    root = sites.root(rows).permute(1, 2, 0)
    torch.testing.assert_close(root @ root.mT, expected)


@pytest.mark.parametrize("prior", ["crossval", "evidence", "ratio", 0.5])
def test_neither_the_order_of_images_nor_that_of_classes_matters(prior: str | float) -> None:
    model, x, y = problem(24, 4, 6, seed=3)
    y = y[torch.randperm(24, generator=torch.Generator().manual_seed(5))]
    images, classes = torch.randperm(24), torch.tensor([2, 0, 3, 1])
    other = Bilinear(model.text[classes], 6, 3.0)
    options = {"prior": prior, "precision": "float64"}
    one = Kalman(model, **options).step(x, y)  # type: ignore[arg-type]
    two = Kalman(other, **options).step(x[images], classes.argsort()[y[images]])  # type: ignore[arg-type]
    assert one.log_evidence == pytest.approx(two.log_evidence, rel=1e-4)
    torch.testing.assert_close(
        model(x).detach().softmax(-1)[:, classes], other(x).detach().softmax(-1), atol=1e-3, rtol=1e-2
    )


def test_batches_in_any_order_end_where_one_step_does() -> None:
    model, x, y = problem(20, 4, 6)
    again, _, _ = problem(20, 4, 6)
    fixed(model).step(x, y)
    f = fixed(again)
    f.step(x[12:], y[12:])
    f.step(x[:12], y[:12])
    torch.testing.assert_close(again.weight, model.weight, atol=1e-8, rtol=1e-8)
