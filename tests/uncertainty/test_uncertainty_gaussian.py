"""The Gaussian predictives: Monte Carlo against sampling, and the probit against Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkal.uncertainty import monte_carlo, plugin, probit, sampled

F64 = torch.float64


def problem(n: int, c: int, sd: float, common: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(n, c, generator=generator, dtype=F64)
    w = torch.randn(n, c, c, generator=generator, dtype=F64) / c**0.5
    return mean, sd**2 * (0.5 * w @ w.mT + 0.5 * torch.eye(c, dtype=F64)) + common


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_monte_carlo_matches_numpy_multivariate_normal() -> None:
    mean, covariance = problem(4, 3, 1.5)
    rng = np.random.default_rng(0)
    pairs = zip(mean.numpy(), covariance.numpy(), strict=True)
    drawn = [rng.multivariate_normal(m, s, 40_000) for m, s in pairs]
    z = torch.from_numpy(np.stack(drawn, 1))
    ours, theirs = monte_carlo(mean, covariance, 40_000, seeded()), sampled([z])
    for field in ("probs", "entropy", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), rtol=0, atol=0.01)


@pytest.mark.parametrize("c", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("common", [0.0, 100.0])
def test_probit_is_close_to_monte_carlo(c: int, common: float) -> None:
    mean, covariance = problem(60, c, 1.0, common)
    reference = monte_carlo(mean, covariance, 4000, seeded())
    ours = probit(mean, covariance)
    naive = (mean / (1 + math.pi / 8 * covariance.diagonal(dim1=1, dim2=2)).sqrt()).softmax(1)
    assert (ours.probs - reference.probs).abs().max() < 0.12
    assert (ours.confidence - reference.confidence).mean().abs() < 0.02
    gap = (ours.probs - reference.probs).abs().mean()
    assert gap < (plugin(mean).probs - reference.probs).abs().mean()
    if common:
        assert gap < 0.2 * (naive - reference.probs).abs().mean()


def test_two_classes_are_the_textbook_probit() -> None:
    mean, covariance = problem(20, 2, 2.0)
    gap = mean[:, 0] - mean[:, 1]
    variance = covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    expected = torch.sigmoid(gap / (1 + math.pi / 8 * variance).sqrt())
    torch.testing.assert_close(probit(mean, covariance).probs[:, 0], expected)


@pytest.mark.parametrize("method", ["probit", "monte_carlo"])
def test_common_part_and_zero_covariance(method: str) -> None:
    mean, covariance = problem(5, 4, 1.0)

    def predict(m: Tensor, s: Tensor) -> Tensor:
        return (probit(m, s) if method == "probit" else monte_carlo(m, s, 500, seeded())).probs

    shifted = predict(mean + 7, covariance + 1000)
    torch.testing.assert_close(shifted, predict(mean, covariance), rtol=0, atol=1e-7)
    torch.testing.assert_close(predict(mean, 0 * covariance), plugin(mean).probs)


@pytest.mark.parametrize("rank", [1, 2])
def test_singular_covariance(rank: int) -> None:
    generator = seeded(5)
    w = torch.randn(3, 6, rank, generator=generator, dtype=F64)
    mean = torch.randn(3, 6, generator=generator, dtype=F64)
    z = mean + torch.einsum("ncr,snr->snc", w, torch.randn(40_000, 3, rank, generator=generator, dtype=F64))
    ours = monte_carlo(mean, w @ w.mT, 40_000, seeded())
    torch.testing.assert_close(ours.probs, sampled([z]).probs, rtol=0, atol=0.01)


def test_chunking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, covariance = problem(9, 4, 1.0)
    whole = monte_carlo(mean, covariance, 33, seeded())
    monkeypatch.setattr("clipkal.uncertainty.gaussian.BUDGET", 8 * 4 * (4 * 33 + 12) * 2)
    torch.testing.assert_close(
        monte_carlo(mean, covariance, 33, seeded()).probs, whole.probs, rtol=0, atol=1e-12
    )


def test_parts_add_up() -> None:
    one = probit(*problem(30, 6, 2.0))
    assert (one.epistemic >= 0).all() and one.epistemic.mean() > 0
    torch.testing.assert_close(one.entropy, one.aleatoric + one.epistemic)
    single = probit(torch.zeros(2, 1), torch.ones(2, 1, 1))
    assert single.probs.tolist() == [[1], [1]]


def test_bad_input_is_refused() -> None:
    mean, covariance = problem(3, 4, 1.0)
    bad = [
        (mean, covariance[:, :3]),
        (mean * math.nan, covariance),
        (mean, covariance * math.inf),
        (mean, covariance + torch.randn(3, 4, 4)),
        (mean[0], covariance),
        (mean, -covariance),
    ]
    for m, s in bad:
        for predict in (probit, lambda a, b: monte_carlo(a, b, 10, seeded())):
            with pytest.raises(ValueError):
                predict(m, s)
    with pytest.raises(ValueError, match="n must"):
        monte_carlo(mean, covariance, 0)
