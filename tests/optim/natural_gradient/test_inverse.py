"""Newton's iteration against `linalg.inv`: cold, warm, rescaled, ill-conditioned, batched, refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkal.optim.natural_gradient.inverse import newton_inverse


def spectrum(n: int, decades: float, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A symmetric positive definite [n, n] with eigenvalues 1 … 10^-decades."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return ((Q * torch.logspace(0, -decades, n, dtype=torch.float64)) @ Q.T).to(dtype)


def relative_error(found: Tensor, A: Tensor) -> float:
    exact = torch.linalg.inv(A.double())
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("decades", [0, 2, 4, 6])
def test_a_cold_start_in_float64_is_the_inverse(decades):
    A = spectrum(48, decades)
    found = newton_inverse(A, tolerance=1e-12, steps=5)
    assert found.start == "cold"
    assert relative_error(found.inverse, A) < 1e-14 * 10**decades


@pytest.mark.parametrize(
    ("decades", "bound", "float64"), [(1, 1e-6, False), (3, 1e-4, False), (7, 1e-6, True)]
)
def test_float32_is_as_good_as_its_precision_and_retries_in_float64_beyond(decades, bound, float64):
    A = spectrum(48, decades, dtype=torch.float32)
    found = newton_inverse(A, steps=5, tolerance=1e-7)
    assert found.inverse.dtype == torch.float32
    assert found.float64 is float64
    assert relative_error(found.inverse, A) < bound


@pytest.mark.parametrize("decades", [2, 4, 5])
def test_ill_conditioned_float32_is_at_least_as_good_as_linalg_inv(decades):
    A = spectrum(64, decades, dtype=torch.float32)
    lapack = relative_error(torch.linalg.inv(A), A)
    assert relative_error(newton_inverse(A, steps=5, tolerance=1e-7).inverse, A) < 2 * lapack


def test_a_factor_that_moved_little_needs_at_most_three_steps_from_the_last_inverse():
    A = spectrum(64, 1)
    moved = 0.95 * A + 0.05 * spectrum(64, 1, seed=1)
    found = newton_inverse(moved, torch.linalg.inv(A), steps=3)
    assert found.start == "warm"
    assert found.steps <= 3
    assert float((torch.eye(64) - moved @ found.inverse).norm()) < 1e-3


def test_the_residual_squares_at_each_step():
    A, X = spectrum(16, 1), torch.linalg.inv(spectrum(16, 1) + 0.02 * spectrum(16, 1, seed=1))
    R = torch.eye(16) - A @ X
    after = newton_inverse(A, X, steps=1)
    assert float((torch.eye(16) - A @ after.inverse - R @ R).abs().max()) < 1e-12
    assert after.residual == pytest.approx(float(R.norm()) ** 2)


def test_a_last_inverse_outside_the_ball_is_rescaled_and_needs_fewer_steps_than_a_cold_start():
    A = spectrum(64, 5)
    gained = A + 0.05 * spectrum(64, 0.5, seed=1)
    found = newton_inverse(gained, torch.linalg.inv(A), tolerance=1e-10, steps=5)
    assert found.start == "rescaled"
    assert relative_error(found.inverse, gained) < 1e-9
    lost = newton_inverse(A, torch.linalg.inv(gained), tolerance=1e-10, steps=5)
    assert relative_error(lost.inverse, A) < 1e-9


def test_a_useless_last_inverse_restarts_cold():
    A = spectrum(8, 1)
    found = newton_inverse(A, torch.full((8, 8), float("nan"), dtype=A.dtype), tolerance=1e-9, steps=5)
    assert found.start == "cold"
    assert relative_error(found.inverse, A) < 1e-6


def test_factors_of_equal_size_go_together():
    A = torch.stack([spectrum(12, d, seed=int(d)) for d in (0, 1, 3)])
    assert relative_error(newton_inverse(A, tolerance=1e-12, steps=8).inverse, A) < 1e-12
    starts = torch.stack([torch.linalg.inv(A[0]), torch.linalg.inv(A[1]), 100 * torch.eye(12)])
    assert relative_error(newton_inverse(A, starts, tolerance=1e-12, steps=8).inverse, A) < 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_no_inverse_is_refused(value):
    A = torch.eye(4)
    A[1, 1] = value
    with pytest.raises(FloatingPointError, match="damping"):
        newton_inverse(A)


def test_autocast_does_not_reach_it():
    A = spectrum(16, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = newton_inverse(A, steps=5)
    assert relative_error(found.inverse, A) < 1e-4


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 20),
    decades=st.floats(0, 8),
    magnitude=st.floats(-12, 12),
    seed=st.integers(0, 99),
    drift=st.floats(0, 10),
)
def test_any_positive_definite_factor_from_any_last_inverse(n, decades, magnitude, seed, drift):
    A = 10**magnitude * spectrum(n, decades, seed)
    last = torch.linalg.inv(A + drift * 10**magnitude * spectrum(n, decades / 2, seed + 1))
    found = newton_inverse(A, last, steps=12, tolerance=1e-13)
    assert relative_error(found.inverse, A) < 1e-13 * 10**decades + 1e-9
