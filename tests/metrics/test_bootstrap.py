"""Bootstrap intervals against a loop over resamples, the normal approximation, and their coverage."""

import math

import numpy as np
import pytest
import torch

from clipkal.metrics import bootstrap_intervals, ece, outcomes
from clipkal.metrics.bootstrap import resampled_means


def drawn(n: int, seed: int, bias: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes, confidence uniform in [.5, 1], right with probability confidence − bias: its ECE is the bias."""
    generator = torch.Generator().manual_seed(seed)
    confidence = 0.5 + 0.5 * torch.rand(n, generator=generator, dtype=torch.float64)
    labels = (torch.rand(n, generator=generator, dtype=torch.float64) >= confidence - bias).long()
    return torch.stack([confidence, 1 - confidence], 1), labels


def test_resampled_means_are_means_over_drawn_rows(monkeypatch) -> None:
    values = torch.randn(7, 3, dtype=torch.float64)
    rows = np.random.default_rng(4).integers(0, 7, (20, 7))
    torch.testing.assert_close(resampled_means(values, 20, 4), values[rows].mean(1))
    monkeypatch.setattr("clipkal.metrics.bootstrap.CHUNK", 10)
    assert resampled_means(values, 20, 4).shape == (20, 3)


def test_every_resample_has_the_metrics_of_its_images() -> None:
    probs, labels = drawn(60, 0, 0.2)
    found = outcomes(probs, labels)
    (got,) = bootstrap_intervals([found], 5, 40, seed=3)
    rows = np.random.default_rng(3).integers(0, 60, (40, 60))
    eces = [ece(probs[row], labels[row], 5) for row in rows]
    nlls = [found.nll[row].mean().item() for row in rows]
    low, high = np.percentile(eces, [2.5, 97.5])
    own = ece(probs, labels, 5)
    assert got["ece"] == pytest.approx((max(0, 2 * own - high), max(0, 2 * own - low)))
    assert got["nll"] == pytest.approx(tuple(np.percentile(nlls, [2.5, 97.5])))


def test_intervals_have_the_width_of_the_standard_error() -> None:
    probs, labels = drawn(4000, 1)
    found = outcomes(probs, labels)
    (got,) = bootstrap_intervals([found])
    for name, values in (("accuracy", found.correct.double()), ("nll", found.nll)):
        mean = values.mean().item()
        half = 1.96 * values.std().item() / math.sqrt(4000)
        assert got[name] == pytest.approx((mean - half, mean + half), abs=0.15 * half)


def test_predictions_of_the_same_images_are_resampled_together() -> None:
    probs, labels = drawn(300, 2)
    first = outcomes(probs, labels)
    second = outcomes(probs.flip(1), labels)
    both = bootstrap_intervals([first, second], resamples=50)
    assert both == [bootstrap_intervals([one], resamples=50)[0] for one in (first, second)]
    low, high = both[0]["accuracy"]
    assert both[1]["accuracy"] == pytest.approx((1 - high, 1 - low))
    assert bootstrap_intervals([]) == []
    with pytest.raises(ValueError, match="same images"):
        bootstrap_intervals([first, outcomes(probs[:9], labels[:9])])


@pytest.mark.parametrize("bias", [0.02, 0.08])
def test_intervals_cover_the_truth(bias: float) -> None:
    """95 % intervals over 200 test sets; the plain percentiles of ECE cover a true 2 % never."""
    hits = {"accuracy": 0, "ece": 0}
    truth = {"accuracy": 0.75 - bias, "ece": bias}
    for seed in range(200):
        (got,) = bootstrap_intervals([outcomes(*drawn(500, seed, bias))], resamples=200)
        for name, value in truth.items():
            hits[name] += got[name][0] <= value <= got[name][1]
    assert hits["accuracy"] >= 180 and hits["ece"] >= 160, hits


def test_an_infinite_nll_has_no_interval() -> None:
    (got,) = bootstrap_intervals([outcomes([[1.0, 0.0], [0.5, 0.5]], [1, 0])], resamples=9)
    assert got["nll"] == (None, None) and got["accuracy"] == (0, 1)


@pytest.mark.parametrize(("resamples", "level"), [(0, 0.9), (5, 0.0), (5, 1.0)])
def test_bad_settings(resamples: int, level: float) -> None:
    with pytest.raises(ValueError, match="level in"):
        bootstrap_intervals([outcomes([[1.0, 0.0]], [0])], resamples=resamples, level=level)
