"""What a filter says of its covariance: the trace, and how many parameters the images determine."""

import pytest
import torch

from clipkal.adapters import LinearAdapter
from clipkal.optim import KalmanFilter


def filtered(covariance, **settings):
    generator = torch.Generator().manual_seed(0)
    unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)
    model = LinearAdapter(unit(4, 6), 10.0)
    optimizer = KalmanFilter(model, covariance=covariance, **settings)
    for _ in range(3):
        info = optimizer.step(unit(5, 6), torch.arange(5) % 4)
    return optimizer, info


def draws_trace(optimizer):
    """tr P from draws, which every covariance has."""
    draws = optimizer.covariance.sample(20_000, torch.Generator().manual_seed(1))
    return float(draws.double().square().sum(1).mean())


@pytest.mark.parametrize("covariance", ["diagonal", "subspace", "dense"])
def test_trace_and_effective_parameters(covariance):
    optimizer, _ = filtered(covariance)
    found = optimizer.monitor()
    assert found["trace"] == pytest.approx(draws_trace(optimizer), rel=0.02)
    n = optimizer.vector.size
    assert found["effective_parameters"] == pytest.approx(n - found["trace"] / optimizer.prior_variance)
    assert 0 < found["effective_parameters"] < n


def test_effective_parameters_are_bounded_by_what_was_seen():
    """Two images of four classes: P is p₀ I but for a term of rank 2 · 3, so that γ ≤ 6."""
    generator = torch.Generator().manual_seed(0)
    unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)
    optimizer = KalmanFilter(LinearAdapter(unit(4, 6), 10.0), covariance="dense", prior=1e6)
    optimizer.step(unit(2, 6), torch.arange(2))
    # A wide prior: all of them
    assert optimizer.monitor()["effective_parameters"] == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize("covariance, settings", [("lowrank", {}), ("diagonal", {"process_noise": 1e-3})])
def test_what_has_no_cheap_or_no_honest_figure_is_left_out(covariance, settings):
    found = filtered(covariance, **settings)[0].monitor()
    assert "effective_parameters" not in found and ("trace" in found) == (covariance == "diagonal")


def test_nothing_before_the_first_step():
    model = LinearAdapter(torch.eye(4, 6), 10.0)
    assert KalmanFilter(model, covariance="diagonal").monitor() == {}


def test_a_gate_counts_what_it_refused():
    _, info = filtered("diagonal", gate="mahalanobis_hard")
    assert info.metrics["gate_fired"] == pytest.approx(1 - info.metrics["gate_weight"])  # all or nothing
