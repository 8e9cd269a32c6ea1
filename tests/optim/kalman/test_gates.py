"""Robust gates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kalman_models import batch, bilinear, full_jacobian, theta
from scipy.stats import chi2

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.observation import MahalanobisHard
from clipkal.optim.kalman.parts import PARTS, named


@given(st.floats(0, 1e300), st.floats(0, 1e300), st.integers(1, 1000))
def test_weights_lie_in_the_unit_interval_and_fall_with_distance(d2: float, more: float, dof: int) -> None:
    distances = torch.tensor([d2, d2 + more], dtype=torch.float64)
    for name in PARTS["gate"]:
        near, far = named("gate", name).weights(distances, distances, dof).tolist()
        assert 0 <= far <= near <= 1


def test_thresholds_are_chi_squared_quantiles() -> None:
    c = chi2.ppf(0.99, 3)
    distances = torch.tensor([0.5 * c, c, 2 * c], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    assert named("gate", "mahalanobis_hard").weights(distances, zero, 3).tolist() == [1, 1, 0]
    soft = named("gate", "mahalanobis_soft").weights(distances, zero, 3)
    torch.testing.assert_close(soft, torch.tensor([1, 1, 0.5], dtype=torch.float64))
    torch.testing.assert_close(named("gate", "imq").weights(zero, distances, 3), 1 / (1 + distances / c))


@pytest.mark.parametrize("gate", ["mahalanobis_hard", "mahalanobis_soft", "imq"])
@pytest.mark.parametrize("route", ["bilinear", "func"])
def test_a_gate_divides_the_noise_of_its_image(gate: str, route: str) -> None:
    """Regression with unit noise: a gated step is the step with noise 1/w for the outlier, 1 for the other."""
    model, plain = bilinear(C=2), bilinear(C=2)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 6, dtype=torch.float64)
    y = model(x).detach() + torch.tensor([[0.01, 0.0], [60.0, -80.0]], dtype=torch.float64)
    settings = {"covariance": "dense", "prior": 0.01, "block": None, "route": route}
    filtered = KalmanFilter(model, "gaussian", gate=gate, **settings)
    info = filtered.step(x, y)
    J = full_jacobian(plain, x)
    P = 0.01 * torch.eye(J.shape[-1], dtype=torch.float64)
    e = y - plain(x).detach()
    eye = torch.eye(2, dtype=torch.float64)
    d2 = torch.stack([r @ torch.linalg.solve(j @ P @ j.mT + eye, r) for j, r in zip(J, e, strict=True)])
    w = named("gate", gate).weights(d2, e.square().sum(-1), 2)
    assert info.metrics["gate_weight"] == pytest.approx(float(w.mean()))
    precision = P.inverse() + sum(wi * j.mT @ j for wi, j in zip(w, J, strict=True))
    expected = torch.linalg.solve(precision, sum(wi * j.mT @ r for wi, j, r in zip(w, J, e, strict=True)))
    torch.testing.assert_close(theta(model) - theta(plain), expected, rtol=1e-9, atol=1e-12)


def test_a_rejected_batch_changes_nothing() -> None:
    class Never(MahalanobisHard):
        def weights(self, mahalanobis, residual, dof):
            return torch.zeros_like(mahalanobis)

    model = bilinear()
    filtered = KalmanFilter(model, gate=Never(), prior=0.1)
    info = filtered.step(*batch())
    assert torch.equal(model.weight, torch.zeros_like(model.weight))
    torch.testing.assert_close(
        filtered.covariance.variance, torch.full((30,), 0.1, dtype=torch.float64), rtol=0, atol=0
    )
    assert info.metrics["gate_weight"] == 0


def test_the_gate_sees_the_noise_before_the_outlier_changes_it() -> None:
    """An outlier in an ordinary stream is rejected with the previous R; R̂ with it in would absorb it."""
    model = bilinear(C=3)
    filtered = KalmanFilter(model, "gaussian", "residual", gate="mahalanobis_hard", prior=1e-4)
    x = torch.randn(9, 6, dtype=torch.float64)
    y = model(x).detach() + 0.1 * torch.randn(9, 3).double()
    filtered.step(x[:8], y[:8])
    level, before = filtered.noise.level, model.weight.detach().clone()
    info = filtered.step(x[8:], y[8:] + 5.0)
    assert info.metrics["gate_weight"] == 0
    assert torch.equal(model.weight, before)
    assert filtered.noise.level == level
    assert chi2.ppf(0.99, 3) * level < 5.0**2 / 2  # it would have been an outlier by far


def test_unknown_names_and_bad_quantiles_are_refused() -> None:
    with pytest.raises(ValueError, match="none, mahalanobis_hard"):
        named("gate", "median")
    with pytest.raises(ValueError, match="quantile"):
        MahalanobisHard(1.0)
    with pytest.raises(ValueError, match="categorical, categorical_merged"):
        named("observation", "poisson")
