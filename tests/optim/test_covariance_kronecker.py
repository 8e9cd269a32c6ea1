"""The Kronecker covariance: dense where it is exact."""

import pytest
import torch
from kalman_models import Bilinear, batch, bilinear, full_jacobian, theta
from torch import nn

from clipkal.optim.kalman.covariance import Dense, Kronecker
from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.noise import FixedNoise


def _dense(covariance: Kronecker) -> torch.Tensor:
    basis = torch.kron(covariance.gamma_vectors, covariance.lam_vectors)
    return basis * covariance._variance().flatten() @ basis.mT


def _pair(**settings) -> tuple[KalmanFilter, KalmanFilter]:
    models = bilinear(scale=1.5), bilinear(scale=1.5)
    models[1].load_state_dict(models[0].state_dict())
    dense, kronecker = (
        KalmanFilter(model, covariance=covariance, prior=0.4, **settings)
        for model, covariance in zip(models, (Dense(), Kronecker()), strict=True)
    )
    return dense, kronecker


def _check(dense: KalmanFilter, kronecker: KalmanFilter) -> None:
    torch.testing.assert_close(theta(kronecker.model), theta(dense.model), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(_dense(kronecker.covariance), dense.covariance.P, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("observation", ["categorical", "softmax"])
def test_one_image_is_exact(observation: str) -> None:
    dense, kronecker = _pair(observation=observation)
    x, y = batch(B=1)
    assert kronecker.step(x, y).log_evidence == pytest.approx(dense.step(x, y).log_evidence)
    _check(dense, kronecker)


@pytest.mark.parametrize("block", [2, None])
def test_linear_gaussian_regression_is_exact_for_any_number_of_images(block: int | None) -> None:
    dense, kronecker = _pair(observation="gaussian", noise=FixedNoise(0.3), block=block)
    for _ in range(3):
        x, y = torch.randn(7, 6).double(), torch.randn(7, 4).double()
        dense.step(x, y), kronecker.step(x, y)
    _check(dense, kronecker)


def test_regularisation_that_is_not_stored_leaves_the_statistics() -> None:
    dense, kronecker = _pair(observation="gaussian", rho=1e-3, store_regularisation=False, block=None)
    for _ in range(2):
        x, y = torch.randn(7, 6).double(), torch.randn(7, 4).double()
        dense.step(x, y), kronecker.step(x, y)
    _check(dense, kronecker)


def test_fading_memory_divides_p() -> None:
    _, kronecker = _pair()
    kronecker.step(*batch())
    before = _dense(kronecker.covariance)
    kronecker.covariance.predict(0.8, 0.0)
    torch.testing.assert_close(_dense(kronecker.covariance), before / 0.8)
    kronecker.covariance._decompose()
    torch.testing.assert_close(_dense(kronecker.covariance), before / 0.8)
    with pytest.raises(ValueError, match="process noise"):
        kronecker.covariance.predict(1.0, 0.1)


def test_samples_and_logit_covariance_agree_with_p() -> None:
    model = Bilinear(torch.randn(4, 5).double(), 6, train_scale=True)
    filtered = KalmanFilter(model, covariance="kronecker", prior=0.1)
    x, y = batch()
    filtered.step(x, y)
    P = torch.block_diag(_dense(filtered.covariance), filtered.covariance.extra.diag())
    draws = filtered.covariance.sample(40000, torch.Generator().manual_seed(0))
    assert (draws.mT @ draws / 40000 - P).abs().max() < 0.03 * P.abs().max()
    J = full_jacobian(model, x)
    torch.testing.assert_close(filtered.logit_covariance(x), J @ P @ J.mT)
    logits = filtered.logit_samples(x, 20000, torch.Generator().manual_seed(0))
    centred = logits - logits.mean(0)
    spread = torch.einsum("nbc,nbd->bcd", centred, centred) / 20000
    assert (spread - J @ P @ J.mT).abs().max() < 0.05 * spread.abs().max()


def test_other_models_are_refused() -> None:
    filtered = KalmanFilter(nn.Linear(6, 4), covariance="kronecker", prior=0.1)
    with pytest.raises(ValueError, match="bilinear"):
        filtered.step(*batch(dtype=torch.float32))
