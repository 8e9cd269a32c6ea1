"""Temperature scaling finds the temperature that made the data."""

import math

import pytest
import torch

from clipkal.uncertainty import fit_temperature, minimise_nll

INF = math.inf


def world(n: int, temperature: float, seed: int = 0, draws: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too sharp (or too flat) by `temperature`, and labels from the true softmax."""
    generator = torch.Generator().manual_seed(seed)
    shape = (draws, n, 6) if draws else (n, 6)
    z = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    probs = z.softmax(-1).mean(0) if draws else z.softmax(-1)
    return z * temperature, torch.multinomial(probs, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 20.0])
def test_recovers_the_true_temperature(temperature: float) -> None:
    assert fit_temperature(*world(4000, temperature)) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_recovers_it_for_draws(temperature: float) -> None:
    assert fit_temperature(*world(4000, temperature, draws=8)) == pytest.approx(temperature, rel=0.1)


def test_is_the_minimum_of_the_likelihood() -> None:
    z, labels = world(300, 2.0, seed=3)
    best = fit_temperature(z, labels, INF)

    def loss(t: float) -> float:
        return torch.nn.functional.cross_entropy(z / t, labels).item()

    assert loss(best) <= min(loss(best * f) for f in (0.99, 0.999, 1.001, 1.01))
    beta = 1.0  # an independent optimiser: Newton's method in 1/T, where the likelihood is convex
    for _ in range(50):
        p = (z * beta).softmax(1)
        mean = (p * z).sum(1)
        slope = (mean - z[torch.arange(300), labels]).sum()
        beta -= float(slope / ((p * z.square()).sum(1) - mean.square()).sum())
    assert best == pytest.approx(1 / beta, rel=1e-5)


def test_separable_few_shot_images_do_not_collapse_it() -> None:
    z = 10 * torch.eye(5).repeat(4, 1)
    labels = torch.arange(5).repeat(4)
    assert fit_temperature(z, labels, INF) < 0.2
    assert 0.4 < fit_temperature(z, labels) < 1.0


def test_order_and_common_shift_do_not_matter() -> None:
    z, labels = world(200, 2.0)
    first = fit_temperature(z, labels)
    order = torch.randperm(200)
    assert fit_temperature(z[order] + torch.randn(200, 1), labels[order]) == pytest.approx(first, rel=1e-5)


def test_extreme_logits_stay_finite() -> None:
    t = fit_temperature(1e4 * torch.randn(50, 4), torch.randint(0, 4, (50,)))
    assert math.isfinite(t) and 0.01 <= t <= 100


def test_bad_input_is_refused() -> None:
    z, labels = world(10, 1.0)
    for bad_z, bad_labels in [
        (z, labels[:5]),
        (z[:0], labels[:0]),
        (z * math.nan, labels),
        (z, labels + 6),
        (z[0], labels),
    ]:
        with pytest.raises(ValueError):
            fit_temperature(bad_z, bad_labels)
    with pytest.raises(ValueError, match="prior_sd"):
        minimise_nll(lambda t: t, 0)
