"""Kalman against the same mathematics written out densely (float64), and against scikit-learn."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.full_kalman import Kalman
from clipkal.optim.full_kalman.likelihood import Sites


class Bilinear(nn.Module):
    """logits = exp(log_scale) · (right (I + W)ᵀ) textᵀ, p = q."""

    def __init__(self, text: Tensor, scale: float):
        super().__init__()
        self.register_buffer("text", text)
        self.weight = nn.Parameter(torch.zeros(text.shape[1], text.shape[1], dtype=text.dtype))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=text.dtype), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.log_scale.exp() * (inputs + inputs @ self.weight.T) @ self.text.T

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp() * self.text, inputs


def problem(
    n: int = 12, classes: int = 3, d: int = 6, scale: float = 3.0, seed: int = 0
) -> tuple[Bilinear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    unit = lambda x: F.normalize(x, dim=-1)
    text = unit(torch.randn(classes, d, dtype=torch.float64, generator=g) + 0.5)
    inputs = unit(torch.randn(n, d, dtype=torch.float64, generator=g) + 0.3)
    return Bilinear(text, scale), inputs, torch.arange(n) % classes


def fixed(model: Bilinear, p0: float = 0.7, **options: object) -> Kalman:
    options = {"prior": p0, "temperature": 1.0, "precision": "float64", **options}
    return Kalman(model, **options)  # type: ignore[arg-type]


def dense(
    text: Tensor, scale: float, inputs: Tensor, labels: Tensor, p0: float, scale_sd: float = 0.0
) -> tuple[Tensor, Tensor, float, Tensor]:
    """MAP [pq (+ 1)], posterior covariance, log evidence and offset by Newton on the full parameter vector."""
    n, (c, d) = len(inputs), text.shape
    offset = scale * inputs @ text.T
    jacobian = scale * torch.einsum("ca,nb->ncab", text, inputs).reshape(n, c, d * d)
    variance = torch.full((d * d,), p0, dtype=torch.float64)
    if scale_sd:
        jacobian = torch.cat((jacobian, offset[..., None]), -1)
        variance = torch.cat((variance, torch.tensor([scale_sd**2], dtype=torch.float64)))
    theta = torch.zeros_like(variance)
    onehot = F.one_hot(labels, c).double()

    def objective(at: Tensor) -> Tensor:
        log_p = ((offset + jacobian @ at).log_softmax(-1) * onehot).sum()
        return log_p - 0.5 * (at.square() / variance).sum()

    for _ in range(60):
        probs = (offset + jacobian @ theta).softmax(-1)
        middle = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
        precision = torch.diag(1 / variance) + torch.einsum("ncx,ncd,ndy->xy", jacobian, middle, jacobian)
        gradient = torch.einsum("ncx,nc->x", jacobian, onehot - probs) - theta / variance
        step = torch.linalg.solve(precision, gradient)
        while objective(theta + step) < objective(theta) - 1e-9:
            step = 0.5 * step
        theta = theta + step
    evidence = objective(theta) - 0.5 * (torch.logdet(precision) + variance.log().sum())
    return theta, torch.linalg.inv(precision), float(evidence), offset


SHAPES = [(12, 3, 6), (5, 4, 8), (20, 9, 4), (1, 2, 3)]


@pytest.mark.parametrize("solver", ["direct", "cg"])
@pytest.mark.parametrize(("n", "c", "d"), SHAPES)
def test_the_map_is_newtons_on_the_full_parameter_vector(n: int, c: int, d: int, solver: str) -> None:
    model, x, y = problem(n, c, d)
    text = model.text.clone()
    theta, _, evidence, offset = dense(text, 3.0, x, y, 0.7)
    info = fixed(model, solver=solver).step(x, y)
    expected = offset + 3.0 * x @ theta.view(d, d).T @ text.T
    torch.testing.assert_close(
        model(x).detach().log_softmax(-1), expected.log_softmax(-1), atol=1e-8, rtol=1e-8
    )
    torch.testing.assert_close(model.weight.detach(), theta.view(d, d), atol=1e-7, rtol=1e-7)
    assert info.loss == pytest.approx(float(F.cross_entropy(offset, y)))
    if solver == "direct":
        assert info.log_evidence == pytest.approx(evidence, abs=1e-9)


@pytest.mark.parametrize("scale", ["frozen", "evidence"])
@pytest.mark.parametrize("solver", ["direct", "cg"])
@pytest.mark.parametrize(("n", "c", "d"), SHAPES)
def test_the_covariance_is_the_inverse_of_the_explicit_precision(
    n: int, c: int, d: int, solver: str, scale: str
) -> None:
    """At images inside and outside the span of the data, scale in the state or not."""
    model, x, y = problem(n, c, d)
    text = model.text.clone()
    scale_sd = 0.3 if scale == "evidence" else 0.0
    _, covariance, evidence, _ = dense(text, 3.0, x, y, 0.7, scale_sd)
    f = fixed(model, scale=scale, solver=solver, scale_sd=0.3)
    info = f.step(x, y)
    if solver == "direct":
        assert info.log_evidence == pytest.approx(evidence, abs=1e-9)
    test = F.normalize(
        torch.randn(7, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    jacobian = 3.0 * torch.einsum("ca,nb->ncab", text, test).reshape(7, c, d * d)
    if scale_sd:
        jacobian = torch.cat((jacobian, (3.0 * test @ text.T)[..., None]), -1)
    expected = jacobian @ covariance @ jacobian.transpose(1, 2)
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


@pytest.mark.parametrize("solver", ["direct", "cg"])
@pytest.mark.parametrize("scale", ["frozen", "evidence"])
def test_draws_have_the_mean_and_covariance_of_the_posterior(solver: str, scale: str) -> None:
    n = 20000
    model, x, y = problem(6, 4, 8)
    f = fixed(model, solver=solver, scale=scale)
    f.step(x, y)
    test = torch.cat((x[:2], torch.eye(8, dtype=torch.float64)[:2]))
    draws = f.logit_samples(test, n, torch.Generator().manual_seed(3)).double()
    expected = f.logit_covariance(test)
    sd = expected.diagonal(dim1=1, dim2=2).sqrt()
    z = (draws.mean(0) - _map_logits(f, test)) / sd * math.sqrt(n)
    assert z.abs().max() < 4.5
    for i in range(len(test)):
        error = (draws[:, i].T.cov() - expected[i]) / (sd[i][:, None] * sd[i][None, :])
        assert error.abs().max() * math.sqrt(n) < 6.0


def _map_logits(f: Kalman, inputs: Tensor) -> Tensor:
    """MAP logits with their common shift: the model's own."""
    return f.model(inputs).detach()


def test_weight_draws_give_the_same_distribution_of_logits() -> None:
    model, x, y = problem(6, 4, 5)
    f = fixed(model, scale="evidence")
    f.step(x, y)
    weight, kappa = f.sample(20000, torch.Generator().manual_seed(0))
    test = torch.eye(5, dtype=torch.float64)[:2]
    logits = 3.0 * test @ model.text.T * kappa[:, None, None] + 3.0 * test @ weight.mT @ model.text.T
    expected = f.logit_covariance(test)
    for i in range(2):
        scale = float(expected[i].diagonal().max())
        torch.testing.assert_close(logits[:, i].T.cov(), expected[i], atol=0.06 * scale, rtol=0.0)


def test_the_temperature_scales_the_covariance_and_leaves_the_map() -> None:
    covariances, weights = [], []
    for temperature in (1.0, 0.25, 0.0):
        model, x, y = problem()
        f = fixed(model, temperature=temperature)
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
    model = Bilinear(text, 2.0)
    with torch.no_grad():
        x = x - x @ text.T @ text @ torch.linalg.pinv(text.T @ text)  # zero-shot logits vanish
    fixed(model, p0=0.5).step(x, y)
    sk = LogisticRegression(C=0.5 * 4.0, fit_intercept=False, tol=1e-12, max_iter=10000)
    sk.fit(x.numpy(), y.numpy())
    torch.testing.assert_close(
        model(x).detach().softmax(-1), torch.from_numpy(sk.predict_proba(x.numpy())), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("solver", ["direct", "cg"])
def test_the_gradient_vanishes_at_the_map(solver: str) -> None:
    model, x, y = problem(40, 5, 8)
    fixed(model, p0=2.0, solver=solver).step(x, y)
    objective = F.cross_entropy(model(x), y, reduction="sum") + model.weight.square().sum() / (2 * 2.0)
    (gradient,) = torch.autograd.grad(objective, model.weight)
    assert gradient.abs().max() < 1e-6


def test_one_relinearised_step_is_the_natural_gradient_step() -> None:
    """The first Newton step from W = 0 is θ + P⁺ ∇ log p (Ollivier 2018), with P⁺ from the explicit precision."""
    from clipkal.optim.full_kalman.basis import reduce
    from clipkal.optim.full_kalman.newton import find_mode

    model, x, y = problem(10, 3, 5)
    text, offset = model.text, 3.0 * x @ model.text.T
    reduced, v_f, v_t = reduce(3.0 * text, x, offset, y, 0.0, "float64")
    reduced = reduced.with_amplitude(math.sqrt(0.1))
    mode = find_mode(reduced, reduced.zeros(), 1e9, direct=True)
    assert mode.iterations == 1
    jacobian = 3.0 * torch.einsum("ca,nb->ncab", text, x).reshape(10, 3, 25)
    probs = offset.softmax(-1)
    middle = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    precision = torch.eye(25) / 0.1 + torch.einsum("ncx,ncd,ndy->xy", jacobian, middle, jacobian)
    gradient = torch.einsum("ncx,nc->x", jacobian, F.one_hot(y, 3).double() - probs)
    natural = torch.linalg.solve(precision, gradient).view(5, 5)
    matrix, _ = reduced.split(mode.x)
    ours = math.sqrt(0.1) * v_t[:, : matrix.shape[1]] @ matrix.T @ v_f.T
    torch.testing.assert_close(ours, natural, atol=1e-10, rtol=1e-8)


def test_site_curvature_is_diag_pi_minus_pi_pi_and_its_root_squares_to_it() -> None:
    logits = 5 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sites, eye = Sites.at(logits), torch.eye(6, dtype=torch.float64)
    probs = logits.softmax(-1)
    expected = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    rows = eye[:, None, :].expand(6, 4, 6)
    torch.testing.assert_close(sites.curvature(rows).permute(1, 0, 2), expected)
    root = sites.root(rows).permute(1, 2, 0)
    torch.testing.assert_close(root @ root.mT, expected)


@pytest.mark.parametrize("prior", ["crossval", "evidence", "ratio", 0.5])
def test_neither_the_order_of_images_nor_that_of_classes_matters(prior: str | float) -> None:
    model, x, y = problem(24, 4, 6, seed=3)
    y = y[torch.randperm(24, generator=torch.Generator().manual_seed(5))]
    images, classes = torch.randperm(24), torch.tensor([2, 0, 3, 1])
    other = Bilinear(model.text[classes], 3.0)
    options = {"prior": prior, "scale": "evidence", "precision": "float64"}
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
