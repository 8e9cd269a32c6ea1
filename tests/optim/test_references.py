"""References around AdamW: laplace-torch's posterior against Kalman's and closed forms, and the members of an ensemble."""

import math

import pytest
import torch
from kalman_models import Bilinear, batch, bilinear, full_jacobian
from torch import nn
from torch.func import functional_call

from clipkal.optim import TFB, Ensemble, Kalman, LaplaceAdamW

PRIOR = 0.3


@pytest.fixture
def uniform():
    """Every image with every label, and a model whose MAP is W = 0: all Hessians are alike, so B ⊗ A is exact."""
    model = Bilinear(torch.randn(4, 5).double(), 6, scale=2.0)
    nn.init.zeros_(model.base)
    images = torch.randn(7, 6).double()
    return model, images.repeat_interleave(4, 0), torch.arange(4).repeat(7)


def test_laplace_is_the_kalman_posterior_where_the_curvature_is_the_same(uniform):
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    model, x, y = uniform
    new = torch.randn(9, 6).double()
    reference = LaplaceAdamW(model, prior_precision=1 / PRIOR)
    report = reference.conclude([(x[:10], y[:10]), (x[10:], y[10:])], [{"weight": model.weight.detach()}])
    found = reference.posterior.logit_covariance(new)
    filtered = Kalman(model, prior=PRIOR, posterior_temperature=1.0, precision="float64", solver="direct")
    evidence = filtered.step(x, y).log_evidence
    assert model.weight.abs().max() < 1e-9
    torch.testing.assert_close(found, filtered.logit_covariance(new), rtol=1e-6, atol=1e-9)
    assert report["log_marginal_likelihood"] == pytest.approx(evidence, rel=1e-6)


def concluded(**words) -> tuple[LaplaceAdamW, dict[str, float]]:
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    model, (x, y) = bilinear(), batch(B=30)
    reference = LaplaceAdamW(model, **words)
    for _ in range(20):
        reference.step(x, y)
    return reference, reference.conclude([(x, y)], [{"weight": model.weight.detach().clone()}])


def test_the_covariance_of_laplace_is_that_of_its_factors_and_of_its_draws():
    reference, _ = concluded(prior_precision=2.0, lr=0.05)
    new, spread = torch.randn(3, 6).double(), reference.spread
    basis = torch.kron(spread.left, spread.right)  # of W, flattened row by row
    J = full_jacobian(reference.model, new)
    torch.testing.assert_close(
        reference.logit_covariance(new),
        J @ basis @ torch.diag(spread.deviation.flatten() ** 2) @ basis.T @ J.mT,
    )
    draws = reference.logit_samples(new, 40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), reference.model(new).detach(), atol=0.1, rtol=0)
    centred = (draws - draws.mean(0)).transpose(0, 1)
    empirical = centred.mT @ centred / len(draws)
    scale = float(empirical.diagonal(dim1=1, dim2=2).max())
    torch.testing.assert_close(reference.logit_covariance(new), empirical, atol=0.03 * scale, rtol=0)


def test_one_draw_of_laplace_is_one_function():
    reference, _ = concluded(prior_precision=2.0)
    new, seed = torch.randn(5, 6).double(), lambda: torch.Generator().manual_seed(3)
    whole = reference.logit_samples(new, 4, seed())
    parts = [reference.logit_samples(new[rows], 4, seed()) for rows in (slice(2), slice(2, 5))]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


def test_the_prior_precision_has_the_largest_marginal_likelihood():
    _, report = concluded()
    for factor in (0.7, 1.4):
        torch.manual_seed(0)  # the same model and images again
        _, other = concluded(prior_precision=factor * report["prior_precision"])
        assert other["log_marginal_likelihood"] < report["log_marginal_likelihood"]


def test_laplace_needs_a_bilinear_model_and_its_library(monkeypatch):
    with pytest.raises(TypeError, match="adapter=linear"):
        LaplaceAdamW(nn.Linear(3, 2))
    monkeypatch.setitem(__import__("sys").modules, "laplace", None)
    with pytest.raises(ImportError, match=r"pip install 'clipkal\[laplace\]'"):
        LaplaceAdamW(bilinear())


def members(model: nn.Module, count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {name: torch.randn_like(p) for name, p in model.named_parameters() if p.requires_grad}
        for _ in range(count)
    ]


def test_the_draws_of_an_ensemble_are_its_members_and_the_model_is_their_mean():
    model, inputs = bilinear(), torch.randn(5, 6).double()
    optimiser = Ensemble(model, members=3)
    assert optimiser.posterior is None
    kept = members(model, 3)
    optimiser.conclude([], kept)
    each = [functional_call(model, member, (inputs,)) for member in kept]
    draws = optimiser.posterior.logit_samples(inputs, 6)
    torch.testing.assert_close(draws, torch.stack([*each, *each]))
    torch.testing.assert_close(model(inputs), torch.stack(each).mean(0))
    assert draws.softmax(-1).mean(0).sum(-1).allclose(torch.ones(5).double())


@pytest.mark.parametrize("make", [Ensemble, LaplaceAdamW])
def test_a_state_reads_the_same(make):
    if make is Ensemble:
        reference = Ensemble(bilinear(), members=2)
        reference.conclude([], members(reference.model, 2))
    else:
        reference, _ = concluded()
    again = make(reference.model)
    assert again.posterior is None
    again.load_state_dict(reference.state_dict())
    inputs, seed = torch.randn(4, 6).double(), lambda: torch.Generator().manual_seed(1)
    found, expected = (one.posterior.logit_samples(inputs, 2, seed()) for one in (again, reference))
    assert torch.equal(found, expected) and math.isfinite(float(found.sum()))


@pytest.mark.parametrize("words", [{"members": 1}, {"members": 17}])
def test_an_ensemble_has_from_two_to_sixteen_members(words):
    with pytest.raises(ValueError, match="members"):
        Ensemble(bilinear(), **words)


class LowRankModel(nn.Module):
    """logits = (W + B A) x, and through a tanh, so that noise costs something."""

    def __init__(self, B: float = 1.0):
        super().__init__()
        self.frozen = nn.Linear(6, 4, bias=False, dtype=torch.float64).requires_grad_(False)
        self.path = nn.Module()
        self.path.down = nn.Linear(6, 2, bias=False, dtype=torch.float64)
        self.path.up = nn.Linear(2, 4, bias=False, dtype=torch.float64)
        self.path.up.weight.data.mul_(B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.path.up(self.path.down(x))


def test_the_noise_of_tfb_is_isotropic_in_the_columns_of_b():
    reference = TFB(LowRankModel())
    reference.width = 0.3
    x = torch.randn(3, 6).double()
    draws = reference.logit_samples(x, 20_000, torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(reference.model.path.up.weight.detach())[0]
    for i in range(3):
        expected = 0.09 * x[i].square().sum() * basis @ basis.T
        torch.testing.assert_close(draws[:, i].T.cov(), expected, atol=0.03 * float(expected.max()), rtol=0)
    torch.testing.assert_close(draws.mean(0), reference.model(x).detach(), atol=0.05, rtol=0)


def test_tfb_is_as_wide_as_the_shots_allow():
    reference, (x, y) = TFB(LowRankModel(), tolerance=0.1), batch(B=12)
    report = reference.conclude([(x[:5], y[:5]), (x[5:], y[5:])], [])
    assert 0.09 < report["anchor_loss_widened"] - report["anchor_loss"] <= 0.1
    assert reference._loss([(x, y)], 1.05 * reference.width) > report["anchor_loss"] + 0.1
    wider = TFB(reference.model, tolerance=0.2)
    assert wider.conclude([(x, y)], [])["width"] > report["width"]
    again = TFB(reference.model)
    again.load_state_dict(reference.state_dict())
    seed = lambda: torch.Generator().manual_seed(2)
    whole = again.posterior.logit_samples(x, 3, seed())
    assert torch.equal(whole, reference.logit_samples(x, 3, seed()))
    torch.testing.assert_close(whole[:, :4], reference.logit_samples(x[:4], 3, seed()))


def test_a_lora_at_zero_has_no_width():
    reference, (x, y) = TFB(LowRankModel(B=0.0)), batch(B=12)
    assert reference.conclude([(x, y)], [])["width"] == 0
    draws = reference.logit_samples(x, 2)
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], reference.model(x))
    with pytest.raises(TypeError, match="adapter=lora"):
        TFB(bilinear())
