"""The filters against other people's Bayesian software: scikit-learn's posteriors and laplace-torch's full Laplace."""

import warnings

import numpy as np
import pytest
import torch
from kalman_models import Bilinear, batch, full_jacobian
from sklearn.linear_model import BayesianRidge
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clipkal.optim import Kalman, KalmanFilter
from clipkal.optim.kalman.observation import FixedNoise

NOISE, PRIOR = 0.3, 0.7


@pytest.mark.parametrize("block", [1, 4, None])
def test_regression_of_fixed_precisions_is_scikit_learns_bayesian_ridge(block: int | None) -> None:
    """Gamma hyper-priors of weight 1e14 hold BayesianRidge at the precisions we name."""
    model = Bilinear(torch.ones(1, 1).double(), 5, scale=1.0)
    nn.init.zeros_(model.base)
    x, y, new = torch.randn(30, 5).double(), torch.randn(30, 1).double(), torch.randn(6, 5).double()
    filtered = KalmanFilter(model, "gaussian", FixedNoise(NOISE), "dense", prior=PRIOR, block=block)
    filtered.step(x, y)
    sure = 1e14
    precisions = {"alpha_1": sure, "alpha_2": sure * NOISE, "lambda_1": sure, "lambda_2": sure * PRIOR}
    oracle = BayesianRidge(fit_intercept=False, **precisions).fit(x.numpy(), y[:, 0].numpy())
    np.testing.assert_allclose([oracle.alpha_, oracle.lambda_], [1 / NOISE, 1 / PRIOR], rtol=1e-12)
    np.testing.assert_allclose(model.weight.detach().numpy()[0], oracle.coef_, rtol=1e-9)
    np.testing.assert_allclose(filtered.covariance.P.numpy(), oracle.sigma_, rtol=1e-9, atol=1e-12)
    mean, std = oracle.predict(new.numpy(), return_std=True)
    np.testing.assert_allclose(model(new)[:, 0].detach().numpy(), mean, rtol=1e-9)
    variance = filtered.logit_covariance(new)[:, 0, 0].numpy() + NOISE
    np.testing.assert_allclose(variance, std**2, rtol=1e-9)


def laplace_of(net: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: float):
    """laplace-torch's full Laplace posterior of a net at its present parameters, by BackPACK's GGN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from laplace import FullLaplace
        from laplace.curvature.backpack import BackPackGGN

        found = FullLaplace(net, "classification", prior_precision=precision, backend=BackPackGGN)
        found.fit(DataLoader(TensorDataset(x, y), batch_size=len(x)))
    return found


def test_the_dense_filters_covariance_is_laplace_torchs() -> None:
    """One joint update of a small net: P⁺⁻¹ = P₀⁻¹ + GGN at the parameters before the step."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, y = batch(B=12)
    oracle = laplace_of(net, x, y, 1 / PRIOR)
    filtered = KalmanFilter(net, covariance="dense", prior=PRIOR, block=None)
    filtered.step(x, y)
    torch.testing.assert_close(
        filtered.covariance.P, oracle.posterior_covariance.detach(), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize(("solver", "tolerance"), [("direct", 1e-8), ("cg", 0.01)])
def test_the_posterior_and_evidence_of_kalman_are_laplace_torchs(solver: str, tolerance: float) -> None:
    """A linear map at its MAP: covariance of the logits at new images, log marginal likelihood (`cg`: by Lanczos)."""
    model = Bilinear(torch.eye(4).double(), 6, scale=2.0)
    x, y = batch(B=20)
    new = torch.randn(5, 6).double()
    filtered = Kalman(model, prior=PRIOR, posterior_temperature=1.0, precision="float64", solver=solver)
    evidence = filtered.step(x, y).log_evidence
    net = nn.Sequential(nn.Linear(6, 4, bias=False)).double()
    net[0].weight.data.copy_(2 * (model.base + model.weight))
    oracle = laplace_of(net, x, y, 1 / (4 * PRIOR))
    oracle.mean = 2 * model.weight.detach().flatten()  # its prior mean is 0, ours the base
    J = full_jacobian(net, new)
    covariance = J @ oracle.posterior_covariance.detach() @ J.mT
    torch.testing.assert_close(filtered.logit_covariance(new), covariance, rtol=1e-7, atol=1e-9)
    assert evidence == pytest.approx(float(oracle.log_marginal_likelihood()), rel=tolerance)
