"""The diagonal filter: against the dense one cut to its diagonal, and its bilinear kernel against formed rows."""

import pytest
import torch
from kalman_models import Bilinear, batch, bilinear, theta

from clipkal.optim.kalman.categorical import Categorical
from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.covariance.diagonal import Diagonal
from clipkal.optim.kalman.filter import KalmanFilter

OBSERVATIONS = ["categorical", "softmax", "cosine", "probs"]


def _start(model: Bilinear) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.weight.copy_(
            0.2 * torch.randn(model.weight.shape, generator=generator, dtype=model.weight.dtype)
        )


def _uneven(filtered: KalmanFilter, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A first step, then variances that differ from entry to entry."""
    filtered.step(inputs, targets)
    variance = 0.1 + torch.rand(filtered.vector.size, dtype=torch.float64)
    if isinstance(filtered.covariance, Dense):
        filtered.covariance.P = torch.diag(variance)
    else:
        filtered.covariance.variance = variance.clone()
    return variance


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("block", [1, None])
@pytest.mark.parametrize("route", ["bilinear", "func"])
def test_one_update_is_the_dense_update_cut_to_its_diagonal(
    observation: str, block: int | None, route: str
) -> None:
    """One image at a time, or any number jointly."""
    x, y = batch(B=1 if block else 5)
    found = {}
    for covariance in (Dense(), Diagonal()):
        torch.manual_seed(5)
        model = bilinear()
        _start(model)
        filtered = KalmanFilter(model, observation, covariance=covariance, route=route, block=block)
        _uneven(filtered, x, y)
        info = filtered.step(x, y)
        P = filtered.covariance
        found[type(P)] = (
            theta(model),
            P.P.diagonal() if isinstance(P, Dense) else P.variance,
            info.log_evidence,
        )
    for dense, diagonal in zip(found[Dense], found[Diagonal], strict=True):
        torch.testing.assert_close(diagonal, dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("observation", [*OBSERVATIONS, "merged"])
@pytest.mark.parametrize("gate", ["none", "imq", "mahalanobis_soft"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (30, 5, 3), (40, 50, 3)])
def test_the_bilinear_kernel_is_the_general_one(
    observation: str, gate: str, shape: tuple[int, int, int]
) -> None:
    """Few classes, many classes, more classes than p, merged classes; with tempering."""
    C, p, q = shape
    x, y = batch(B=5, q=q, C=C)
    found = []
    for route in ("bilinear", "func"):
        torch.manual_seed(5)
        model = bilinear(C, p, q)
        _start(model)
        chosen = Categorical(merge=0.3) if observation == "merged" else observation
        filtered = KalmanFilter(model, chosen, gate=gate, route=route, block=2, epochs=3, prior=0.01)
        _uneven(filtered, x, y)
        info = filtered.step(x, y)
        found.append(
            (theta(model), filtered.covariance.variance, info.log_evidence, info.metrics["mahalanobis"])
        )
    for analytic, general in zip(*found, strict=True):
        torch.testing.assert_close(analytic, general, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("observation", ["gaussian", "categorical"])
@pytest.mark.parametrize("prior", [1e4, 1e7])
def test_float32_above_the_threshold_is_done_in_float64(observation: str, prior: float) -> None:
    """Near-duplicate images with a wide prior: float32 products would not even leave S positive definite."""
    x = torch.randn(1, 6) + 1e-3 * torch.randn(6, 6)
    y = torch.randn(6, 4) if observation == "gaussian" else torch.tensor([0, 1, 0, 0, 2, 0])
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(2)
        model = bilinear(dtype=torch.float32).to(dtype)
        filtered = KalmanFilter(model, observation, prior=prior, block=None)
        filtered.step(x.to(dtype), y.to(dtype) if observation == "gaussian" else y)
        found.append((theta(model).double(), filtered.covariance.variance.double()))
    for single, double in zip(*found, strict=True):
        assert (single - double).norm() < 1e-3 * double.norm()


def test_not_storing_the_regularisation_leaves_idle_variances_exactly_alone() -> None:
    model = bilinear()
    x, y = batch()
    x[:, 2] = 0  # the third column of the weight has no Jacobian
    filtered = KalmanFilter(model, prior=0.5, rho=1e3, store_regularisation=False)
    filtered.step(x, y)
    variance = filtered.covariance.variance.view(5, 6)
    assert (variance[:, 2] == 0.5).all()
    assert (variance <= 0.5).all()
    assert (variance[:, 0] < 0.5).any()


@pytest.mark.parametrize("gap", [0.0, 40.0, 400.0])
@pytest.mark.parametrize("gate", ["none", "mahalanobis_hard"])
def test_a_label_the_model_rules_out_is_taken_in_exactly(gap: float, gate: str) -> None:
    """π_y down to 1e-170 and up to 1 − 1e-170: the logit-space kernel against the whitened one on formed rows."""
    x, _ = batch(B=4)
    y = torch.tensor([0, 3, 0, 3])
    found = []
    for route in ("bilinear", "func"):
        torch.manual_seed(5)
        model = bilinear()
        with torch.no_grad():
            model.weight.copy_(
                torch.linalg.lstsq(model.text, torch.tensor([gap, 0, 0, 0.0]).double()[:, None])[0]
            )
            x[:, 0] = 1
        filtered = KalmanFilter(model, route=route, prior=0.2, gate=gate, block=None)
        info = filtered.step(x, y)
        found.append((theta(model), filtered.covariance.variance, info.log_evidence))
    for analytic, general in zip(*found, strict=True):
        torch.testing.assert_close(analytic, general, rtol=1e-8, atol=1e-10)
