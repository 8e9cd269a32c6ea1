"""Observation noise: whitening, and its estimate from residuals."""

import pytest
import torch
from kalman_models import Bilinear, full_jacobian
from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.observation import FixedNoise, ModelNoise, ResidualNoise
from clipkal.optim.kalman.parts import named


@pytest.mark.parametrize("shape", ["scalar", "full"])
def test_whitening_divides_by_a_root_of_r(shape: str) -> None:
    noise = ResidualNoise(shape=shape, initial=0.5, floor=1e-3)
    noise.initialise(torch.zeros(()), 3)
    moment = torch.randn(3, 3).double()
    noise.update(moment @ moment.mT, 4)
    assert noise.R is not None
    R = noise.R + 1e-3 * (torch.eye(3) if shape == "full" else 1)
    R = R.expand(3).diag() if shape == "scalar" else R
    error, columns = torch.randn(2, 3).double(), torch.randn(2, 5, 3).double()
    white, tall, log_det = noise.whiten(error, columns, None)
    torch.testing.assert_close(white.square().sum(-1), (error @ R.inverse() * error).sum(-1))
    torch.testing.assert_close(tall @ tall.mT, columns @ R.inverse() @ columns.mT)
    torch.testing.assert_close(log_det, torch.logdet(R).expand(2))


@pytest.mark.parametrize("shape", ["scalar", "full"])
def test_r_is_the_moving_average_of_posterior_residuals(shape: str) -> None:
    """R̂ = mean(ε εᵀ + H P⁺ Hᵀ) computed from the definition, in output space, with the dense filter."""
    model = Bilinear(torch.eye(2).double(), 3, scale=1.0)
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    noise = ResidualNoise(beta=0.9**0.25, shape=shape, floor=0.0)  # four images: 0.9 is kept
    filtered = KalmanFilter(model, "gaussian", noise, "dense", prior=0.3, block=None)
    R0 = (y - model(x)).detach().square().mean()
    J = full_jacobian(model, x)
    filtered.step(x, y)
    P = torch.linalg.inv(torch.eye(6).double() / 0.3 + torch.einsum("bij,bik->jk", J, J) / R0)
    after = (y - model(x)).detach()
    estimate = (after[:, :, None] * after[:, None, :] + J @ P @ J.mT).mean(0)
    expected = {
        "scalar": 0.9 * R0 + 0.1 * estimate.diagonal().mean(),
        "full": 0.9 * R0 * torch.eye(2).double() + 0.1 * estimate,
    }[shape]
    torch.testing.assert_close(noise.R, expected, rtol=1e-10, atol=1e-12)


def test_tempering_does_not_change_what_r_is_an_average_of() -> None:
    """At power 1/E the step uses noise E·R, yet R itself is still estimated from ε εᵀ + H P⁺ Hᵀ."""
    model = Bilinear(torch.eye(2).double(), 3, scale=1.0)
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    noise = ResidualNoise(beta=0.0, shape="full", floor=0.0)
    filtered = KalmanFilter(model, "gaussian", noise, "dense", prior=0.3, block=None, epochs=4)
    R0 = (y - model(x)).detach().square().mean()
    J = full_jacobian(model, x)
    filtered.step(x, y)
    P = torch.linalg.inv(torch.eye(6).double() / 0.3 + torch.einsum("bij,bik->jk", J, J) / (4 * R0))
    after = (y - model(x)).detach()
    expected = (after[:, :, None] * after[:, None, :] + J @ P @ J.mT).mean(0)
    torch.testing.assert_close(noise.R, expected, rtol=1e-10, atol=1e-12)


def test_a_first_image_that_is_right_does_not_make_outliers_of_all_the_others() -> None:
    model = Bilinear(5 * torch.eye(4).double(), 4, scale=1.0)
    x = torch.eye(4).double()
    nn.init.eye_(model.base)
    sure = model(x).softmax(-1).max()
    filtered = KalmanFilter(model, "probs", ResidualNoise(), block=1)
    filtered.step(x[:1], torch.tensor([0]))
    assert sure > 0.97
    uniform = (0.75**2 + 3 * 0.25**2) / 4  # mean square of one-hot less 1/4
    assert filtered.noise.level == pytest.approx(uniform / 2, rel=0.02)


@pytest.mark.parametrize("block", [1, 4, None])
def test_how_fast_r_forgets_does_not_depend_on_the_block(block: int | None) -> None:
    """Outputs that no parameter moves: R is a plain moving average of squared errors, β an image."""
    model = Bilinear(torch.zeros(2, 2).double(), 3, scale=1.0)
    x, y = torch.randn(8, 3).double(), torch.ones(8, 2).double()
    noise = ResidualNoise(beta=0.9, initial=3.0, floor=0.0)
    KalmanFilter(model, "gaussian", noise, prior=1e-12, block=block).step(x, y)
    assert noise.level == pytest.approx(3 * 0.9**8 + (1 - 0.9**8))


def test_r_finds_the_noise_of_a_regression() -> None:
    model = Bilinear(torch.eye(2).double(), 3, scale=1.0)
    truth = torch.randn(2, 3).double()
    filtered = KalmanFilter(model, "gaussian", ResidualNoise(beta=0.996), "dense", prior=10.0)
    for _ in range(300):
        x = torch.randn(8, 3).double()
        filtered.step(x, x @ truth.mT + 0.5 * torch.randn(8, 2).double())
    assert filtered.noise.level == pytest.approx(0.25, rel=0.15)


def test_settings_are_checked() -> None:
    for bad in ({"beta": 1.0}, {"shape": "round"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ResidualNoise(**bad)
    with pytest.raises(ValueError, match=r"variance should be greater than 0, not 0\.0"):
        FixedNoise(0.0)
    with pytest.raises(ValueError, match="residual_full"):
        named("noise", "white")
    with pytest.raises(ValueError, match="no noise of its own"):
        ModelNoise().whiten(torch.zeros(1, 1), torch.zeros(1, 1, 1), None)
