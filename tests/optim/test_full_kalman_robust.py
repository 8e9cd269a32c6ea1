"""Kalman: choices of hyper-parameters, awkward data, refused data, checkpoints, large-problem routes."""

import math

import pytest
import torch
from full_kalman_models import curvature, problem, reduced, shots
from kalman_models import Bilinear, assert_resumes
from torch import Tensor
from torch.nn import functional as F

from clipkal.optim.full_kalman import Kalman
from clipkal.optim.full_kalman.evidence import log_determinant, rademacher
from clipkal.optim.full_kalman.hyperparameters import CrossValidation, assign_folds, posterior_mean
from clipkal.optim.full_kalman.mode import approach, find_mode, hessian_factor, solve
from clipkal.optim.full_kalman.posterior import LaplacePosterior
from clipkal.optim.full_kalman.problem import Sites


def test_conjugate_gradients_solve_as_cholesky_does() -> None:
    model, x, y, _, _ = shots(6, 8)
    small = reduced(model, x, y, 0.09)
    sites = Sites.at(small.offset)
    rhs = torch.randn(3, small.size, dtype=torch.float64)
    exact, _ = solve(small, sites, rhs, hessian_factor(small, sites), 0.0)
    found, products = solve(small, sites, rhs, None, 1e-11)
    torch.testing.assert_close(found, exact, atol=1e-8, rtol=1e-8)
    assert products < 80
    matrix = small.hessian_matrix(sites)
    torch.testing.assert_close(matrix.diagonal(), small.hessian_diagonal(sites))
    eye = torch.eye(small.size, dtype=torch.float64)
    torch.testing.assert_close(small.hessian(sites, eye), matrix, atol=1e-9, rtol=1e-9)


def test_the_lanczos_log_determinant_is_close_and_exact_for_enough_probes() -> None:
    model, x, y, _, _ = shots(5, 6, d=16)
    small = reduced(model, x, y, 0.25)
    sites = Sites.at(small.offset)
    exact = float(torch.logdet(small.hessian_matrix(sites)))
    few = log_determinant(small, sites, rademacher(8, small.size, 0, small.offset))
    many = log_determinant(small, sites, rademacher(2000, small.size, 0, small.offset), 20)
    assert few == pytest.approx(exact, rel=0.03)
    assert many == pytest.approx(exact, rel=0.003)


def test_cg_and_direct_fits_agree() -> None:
    results = []
    for solver in ("direct", "cg"):
        model, x, y, test, _ = shots(5, 6, d=16)
        f = Kalman(model.double(), prior=0.3, solver=solver, posterior_temperature=1.0, precision="float64")  # type: ignore[arg-type]
        f.step(x.double(), y)
        results.append((model.weight.detach(), f.logit_covariance(test.double())))
    torch.testing.assert_close(results[0], results[1], atol=1e-8, rtol=1e-8)


def test_float32_solves_land_where_float64_does() -> None:
    probs = []
    for precision in ("float32", "float64"):
        model, x, y, test, _ = shots(20, 8)
        Kalman(model, prior=0.3, solver="cg", precision=precision).step(x, y)  # type: ignore[arg-type]
        probs.append(model(test).detach().softmax(-1))
    assert (probs[0] - probs[1]).abs().max() < 1e-2


@pytest.mark.parametrize("prior", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("per_class", [1, 8])
def test_the_descent_reaches_the_mode_from_afar(per_class: int, prior: float) -> None:
    """First steps that overshoot by far (many classes, one shot, a wide prior) included."""
    model, x, y, _, _ = shots(40, per_class, d=64)
    small = reduced(model, x, y, prior, "float32")
    found, logits, products = approach(small, small.zeros(), 0.01)
    mode = find_mode(small, small.zeros(), 1e-3, direct=False)
    assert (found - mode.x).norm() < 0.03 * max(1.0, float(mode.x.norm())) and products < 80
    torch.testing.assert_close(logits, small.logits(found), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("prior", ["crossval", "evidence"])
@pytest.mark.parametrize("per_class", [1, 2, 8])
def test_the_choice_is_sane_and_beats_the_zero_shot_model(per_class: int, prior: str) -> None:
    model, x, y, test, labels = shots(10, per_class)
    before = float(F.cross_entropy(model(test).detach(), labels))
    f = Kalman(model, prior=prior)  # type: ignore[arg-type]
    info = f.step(x, y)
    assert 0.2 < info.metrics["prior_logit_sd"] < 200
    assert 0 <= info.metrics["temperature"] <= 1
    plug = float(F.cross_entropy(model(test).detach(), labels))
    draws = f.logit_samples(test, 100, torch.Generator().manual_seed(0)).softmax(-1).mean(0)
    sampled = float(F.nll_loss(draws.log(), labels))
    assert plug < before + 0.02
    assert sampled < before + (0.02 if prior == "crossval" else 0.15)  # the isotropic prior averages timidly
    if per_class == 8:
        assert plug < (0.85 if prior == "crossval" else 0.95) * before


def test_at_one_shot_nothing_is_held_out_and_the_hyper_prior_decides() -> None:
    model, x, y, _, _ = shots(10, 1)
    info = Kalman(model, prior_logit_sd=5.0).step(x, y)
    assert info.metrics["prior_logit_sd"] == pytest.approx(5.0)
    assert info.metrics["evaluations"] == 0


def test_separable_shots_do_not_send_the_prior_to_infinity() -> None:
    text = torch.eye(4)
    model = Bilinear(text, 4, 10.0)
    info = Kalman(model).step(text.repeat(6, 1), torch.arange(4).repeat(6))
    assert info.metrics["prior_logit_sd"] < 200 and torch.isfinite(model.weight).all()


def test_temperature_by_cross_validation_is_one_of_its_grid() -> None:
    model, x, y, _, _ = shots(6, 6)
    info = Kalman(model, posterior_temperature="crossval").step(x, y)
    assert 0 <= info.metrics["temperature"] <= 1


def test_folds_are_balanced_and_single_images_are_never_held_out() -> None:
    model, x, y, _, _ = shots(5, 8)
    y = y.clone()
    y[0], y[1:8] = 0, 1
    small = reduced(model, x, y, precision="float32")
    fold = assign_folds(small, 4, 100)
    assert fold[0] == -1 and (fold[1:] >= 0).all()
    for c in range(1, 5):
        counts = torch.bincount(fold[y == c], minlength=4)
        assert counts.max() - counts.min() <= 1
    few = assign_folds(small, 4, 4)
    assert [int((few[y == c] >= 0).sum()) for c in range(1, 5)] == [4] * 4


def test_the_ratio_rule_puts_the_curvatures_in_the_given_ratio() -> None:
    model, x, y = problem(15, 4, 6)
    f = Kalman(model, prior="ratio", ratio=2.5, solver="direct")
    p0 = f.step(x, y).metrics["p0"]
    _, middle = curvature(3 * x @ model.text.T)
    trace = p0 * 9 * torch.einsum("ncd,ce,de->n", middle, model.text, model.text) * x.square().sum(-1)
    assert float(trace.sum()) / (15 * 3) == pytest.approx(2.5)


def test_a_step_brings_the_logit_scale_back_to_its_reference() -> None:
    """So that the model's logits are the MAP's, whatever became of the scale meanwhile."""
    model, x, y, test, _ = shots(6, 4)
    other = Bilinear(model.text, 32, 8.0)
    filters = [Kalman(m, prior=0.2, posterior_temperature=1e-12) for m in (model, other)]
    other.log_scale.data += 0.5
    for f in filters:
        f.step(x, y)
    assert torch.equal(other.log_scale, model.log_scale)
    torch.testing.assert_close(other.weight, model.weight, atol=1e-5, rtol=1e-4)
    sample = filters[1].logit_samples(test, 1, torch.Generator().manual_seed(0))[0]
    torch.testing.assert_close(
        sample.log_softmax(-1), other(test).detach().log_softmax(-1), atol=1e-3, rtol=1e-3
    )


AWKWARD = {
    "two classes": lambda: problem(6, 2, 5),
    "one image": lambda: problem(1, 3, 5),
    "more classes than dimensions": lambda: problem(12, 9, 4),
    "more images than dimensions": lambda: problem(30, 3, 4),
}


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("prior", ["crossval", "evidence", "ratio"])
def test_awkward_shapes(name: str, prior: str) -> None:
    model, x, y = AWKWARD[name]()
    _works(model, x, y, prior)


@pytest.mark.parametrize("prior", ["crossval", "evidence", "ratio"])
@pytest.mark.parametrize(
    "case", ["duplicates", "zero features", "one class absent", "identical text", "mixed"]
)
def test_awkward_data(case: str, prior: str) -> None:
    model, x, y = problem(12, 4, 6)
    if case == "duplicates":
        x = x[:1].expand(12, -1).clone()
    if case == "zero features":
        x = torch.zeros_like(x)
    if case == "one class absent":
        y = y.clamp(max=2)
    if case == "identical text":
        model = Bilinear(model.text[:1].expand(4, -1).clone(), 6, 3.0)
    if case == "mixed":
        x[3:] = 0.0
    _works(model, x, y, prior)


def _works(model: Bilinear, x: Tensor, y: Tensor, prior: str) -> None:
    for solver in ("auto", "cg"):
        fresh = Bilinear(model.text, x.shape[1], 3.0)
        f = Kalman(fresh, prior=prior, solver=solver)  # type: ignore[arg-type]
        info = f.step(x, y)
        assert info.log_evidence is not None and math.isfinite(info.log_evidence)
        draws = f.logit_samples(x, 4, torch.Generator().manual_seed(0))
        assert torch.isfinite(draws).all() and torch.isfinite(fresh.weight).all()
        assert torch.isfinite(f.logit_covariance(x)).all()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda x, y: (x.index_fill(0, torch.tensor(2), math.nan), y), FloatingPointError),
        (lambda x, y: (x, y + 1), ValueError),
        (lambda x, y: (x, y - 1), ValueError),
        (lambda x, y: (x, y[:-1]), ValueError),
        (lambda x, y: (x, y.double()), ValueError),
        (lambda x, y: (x[:0], y[:0]), ValueError),
    ],
)
def test_bad_batches_are_refused_and_leave_everything_as_it_was(damage, error) -> None:
    model, x, y = problem(9, 3, 5)
    f = Kalman(model)
    f.step(x, y)
    before, samples = model.weight.detach().clone(), _samples(f, x)
    with pytest.raises(error):
        f.step(*damage(x, y))
    assert torch.equal(model.weight, before) and len(f.seen) == 9  # type: ignore[arg-type]
    assert torch.equal(_samples(f, x), samples)


def _samples(f: Kalman, x: Tensor) -> Tensor:
    f._samples.clear()
    return f.logit_samples(x, 5, torch.Generator().manual_seed(0))


def test_a_checkpoint_brings_back_bit_identical_results() -> None:
    model, x, y, test, _ = shots(5, 4)
    data = [(x[:12], y[:12]), (x[12:], y[12:])]
    f, g = assert_resumes(lambda: Bilinear(model.text, 32, 8.0), Kalman, data, split=1)
    assert torch.equal(_samples(f, test), _samples(g, test))
    assert torch.equal(f.logit_covariance(test), g.logit_covariance(test))


def test_a_state_with_a_frozen_logit_scale_loads_and_one_with_a_learnt_scale_is_refused() -> None:
    model, x, y = problem()
    f = Kalman(model)
    f.step(x, y)
    state = f.laplace.state()  # type: ignore[union-attr]
    state["exact"] = state.pop("direct")
    wide = {"scale_sd": 0.0, "scale_mean": 1.0}
    assert torch.equal(
        LaplacePosterior.from_state(state | {"model": state["model"] | wide}).mode.x, state["mode"]["x"]
    )
    with pytest.raises(ValueError, match="scale='evidence'"):
        LaplacePosterior.from_state(state | {"model": state["model"] | wide | {"scale_sd": 1.0}})


def test_a_generator_names_its_draws_in_any_batches() -> None:
    model, x, y, test, _ = shots(4, 4)
    f = Kalman(model)
    f.step(x, y)
    generator = torch.Generator().manual_seed(7)
    whole = f.logit_samples(test, 6, generator)
    parts = torch.cat([f.logit_samples(t, 6, generator) for t in test.split(13)], 1)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert whole.shape == (6, len(test), 4) and whole.dtype == torch.float32
    assert not torch.equal(whole, f.logit_samples(test, 6, torch.Generator().manual_seed(8)))
    assert not torch.equal(f.logit_samples(test, 6), f.logit_samples(test, 6))


def test_only_bilinear_models_are_taken() -> None:
    with pytest.raises(TypeError, match="bilinear"):
        Kalman(torch.nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="step"):
        Kalman(problem()[0]).logit_samples(torch.zeros(1, 6), 2)


def test_the_mean_of_p0_is_that_of_its_posterior() -> None:
    """Gaussian score and Gaussian hyper-prior: the mean is in closed form; a flat score leaves the hyper-prior's."""
    score = lambda u: -0.5 * (u - 1.0) ** 2 / 1.5 - 0.5 * (u - 4.0) ** 2 / 4.0
    u, looks = posterior_mean(score, 4.0)
    assert u == pytest.approx((1 / 1.5 + 4 / 4) / (1 / 1.5 + 1 / 4), abs=0.05) and looks <= 7
    assert posterior_mean(lambda u: -50.0 * (u - 4.0) ** 2, 4.0) == (pytest.approx(4.0), 3)


def test_images_held_out_judge_p0_and_are_not_learnt_from() -> None:
    model, x, y, test, labels = shots(10, 1)
    f = Kalman(model, prior_spread=1.0)
    f.hold_out(test[:30], labels[:30])
    info = f.step(x, y)
    assert info.metrics["evaluations"] > 2
    weight = model.weight.detach().clone()
    other, *_ = shots(10, 1)
    Kalman(other, prior=info.metrics["p0"]).step(x, y)
    torch.testing.assert_close(other.weight.detach(), weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("per_class", [1, 4])
def test_the_score_of_p0_is_the_held_out_likelihood_of_the_map(per_class: int) -> None:
    """Of images held out beside the shots, against a filter of its own for each fold."""
    model, x, y, test, labels = shots(6, per_class)
    f = Kalman(model, prior=0.3, precision="float64")
    f.step(x, y)
    assert f.laplace is not None and f.seen is not None
    reduced_model = f.laplace.model
    _, offset, right = f._read(test[:20])
    others = reduced_model.others(right, offset, labels[:20], f.laplace.right_basis)
    judge = CrossValidation(reduced_model, f.settings, others)
    expected = -float(F.cross_entropy(model(test[:20]).detach().double(), labels[:20], reduction="sum"))
    fold = assign_folds(reduced_model, 4, 8192)
    for k in range(4):
        if bool((fold == k).any()):
            one, *_ = shots(6, per_class)
            Kalman(one, prior=0.3, precision="float64").step(x[fold != k], y[fold != k])
            expected -= float(
                F.cross_entropy(one(x[fold == k]).detach().double(), y[fold == k], reduction="sum")
            )
    assert judge.score(reduced_model.amplitude) == pytest.approx(expected, rel=5e-3)
