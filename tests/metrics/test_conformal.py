"""Conformal sets: exact order statistics, coverage on exchangeable data, and what breaks it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkal.metrics import SplitConformal, prediction_sets
from clipkal.metrics.conformal import (
    SCORES,
    aps,
    lac,
    mondrian_thresholds,
    score,
    smallest_calibration,
    threshold,
)


def drawn(n: int, seed: int, sharpness: float = 2.0, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Probabilities and labels that are drawn from others: a miscalibrated predictor on exchangeable data."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((1.2 * logits).softmax(1), 1, generator=generator)[:, 0]
    return (sharpness * logits).softmax(1), labels


def test_threshold_is_the_order_statistic_and_infinite_below_the_least_count() -> None:
    scores = torch.arange(1, 20).double()
    assert threshold(scores, 0.1) == 18 and threshold(scores, 0.5) == 10
    assert threshold(torch.arange(9).double(), 0.1) == 8  # (1 − .1) · 10 is 9, not 9.000000000000002
    assert threshold(torch.arange(8).double(), 0.1) == math.inf
    assert [smallest_calibration(alpha) for alpha in (0.5, 0.1, 0.05, 0.01)] == [1, 9, 19, 99]


def test_aps_against_a_loop() -> None:
    probs, _ = drawn(20, 0)
    uniform = torch.rand(20, dtype=torch.float64)
    for p, u, found in zip(probs, uniform, aps(probs, uniform), strict=True):
        expected = [p[p > own].sum() + u * own for own in p]
        torch.testing.assert_close(found, torch.stack(expected))
    assert lac(probs).argmin(1).tolist() == probs.argmax(1).tolist()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_split_conformal_covers_exchangeable_images_at_any_calibration(kind: str, alpha: float) -> None:
    """Over many draws of 40 calibration images, coverage is 1 − α within the sampling error, for bad models too."""
    for sharpness in (0.5, 6.0):
        covered = [
            SplitConformal(*drawn(40, seed, sharpness), kind, alpha, seed).judge(
                *drawn(200, 10_000 + seed, sharpness)
            )["coverage"]
            for seed in range(200)
        ]
        mean = sum(covered) / len(covered)
        exact = math.ceil(round((1 - alpha) * 41, 9)) / 41  # without ties
        assert mean == pytest.approx(exact, abs=4 * 0.07 / 200**0.5)


@pytest.mark.parametrize("kind", SCORES)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.integers(1, 60))
def test_sets_are_nested_in_alpha_and_full_with_too_few_images(kind, seed, one, other, n) -> None:
    probs, labels = drawn(n, seed)
    test, _ = drawn(30, seed + 1)
    uniform = torch.rand(30, dtype=torch.float64)
    held = score(kind, probs, torch.rand(n, dtype=torch.float64)).gather(1, labels[:, None])[:, 0]
    strict, loose = sorted((one, other))
    scores = score(kind, test, uniform)
    small, large = (prediction_sets([(held, scores)], alpha) for alpha in (loose, strict))
    assert (small <= large).all()
    assert (large == (scores <= threshold(held, strict))).all()
    if n < smallest_calibration(strict):
        assert large.all()


def test_naive_split_conformal_on_the_shots_that_adapt_breaks_and_cross_conformal_does_not() -> None:
    """Nearest-mean classifiers of 4 shots a class: the naive sets miss far more than α, leave-one-out ones do not."""
    classes, shots, d, alpha = 5, 4, 20, 0.2
    generator = torch.Generator().manual_seed(0)

    def images(labels: Tensor, centres: Tensor) -> Tensor:
        return centres[labels] + 1.2 * torch.randn(len(labels), d, generator=generator, dtype=torch.float64)

    def scores(x: Tensor, y: Tensor, of: Tensor) -> Tensor:
        means = torch.stack([x[y == c].mean(0) for c in range(classes)])
        return 1 - (-torch.cdist(of, means).square()).softmax(1)

    covered: dict[str, list[float]] = {"naive": [], "jackknife": [], "jackknife+": []}
    for _ in range(60):
        centres = 0.7 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, classes, (classes * shots,), generator=generator)
        if labels.bincount(minlength=classes).min() < 2:
            continue
        truth = torch.randint(0, classes, (100,), generator=generator)
        x, test = images(labels, centres), images(truth, centres)
        own = scores(x, labels, x).gather(1, labels[:, None])[:, 0]
        keep = ~torch.eye(len(x), dtype=torch.bool)
        folds = []
        for i, row in enumerate(keep):
            both = scores(x[row], labels[row], torch.cat([x[i : i + 1], test]))
            folds.append((both[0, labels[i]][None], both[1:]))
        full = scores(x, labels, test)
        kinds = {
            "naive": [(own, full)],
            "jackknife": [(torch.cat([held for held, _ in folds]), full)],
            "jackknife+": folds,
        }
        for name, given_ in kinds.items():
            sets = prediction_sets(given_, alpha)
            covered[name].append(sets.gather(1, truth[:, None]).double().mean().item())
    mean = {name: sum(values) / len(values) for name, values in covered.items()}
    assert mean["naive"] < 1 - alpha - 0.1, mean
    assert mean["jackknife"] > 1 - alpha - 0.05 and mean["jackknife+"] > 1 - alpha - 0.03, mean


def test_sets_by_class_cover_every_class_where_pooled_ones_do_not() -> None:
    """A predictor that is sure of class 0 and blind for class 5."""
    probs, labels = drawn(4000, 1)
    probs = probs * torch.tensor([3.0, 1, 1, 1, 1, 0.2])
    probs = probs / probs.sum(1, keepdim=True)
    calibration, test = slice(0, 2000), slice(2000, None)
    by = SplitConformal(probs[calibration], labels[calibration], "lac", 0.1)
    assert by.own is not None
    scores = lac(probs[test])
    for c in (0, 5):
        here = labels[test] == c
        own = (scores[here, c] <= by.own[c]).double().mean()
        assert own == pytest.approx(0.9, abs=4 * (0.09 / int(here.sum())) ** 0.5 + 0.03)
    blind = labels[test] == 5
    assert (scores[blind, 5] <= by.pooled).double().mean() < 0.85
    judged = by.judge(probs[test], labels[test])
    assert judged["mondrian"]["coverage"] == pytest.approx(0.9, abs=0.03)
    few = mondrian_thresholds(torch.rand(50), torch.arange(50) % 6, 6, 0.1)
    assert few is None  # 8 or 9 images a class
    assert SplitConformal(probs[:50], labels[:50]).judge(probs, labels)["mondrian"] is None


@pytest.mark.parametrize("kind", SCORES)
def test_judging_is_by_the_sets_and_the_same_in_chunks(kind: str, monkeypatch) -> None:
    calibration, (probs, labels) = drawn(100, 2), drawn(300, 3)
    split = SplitConformal(*calibration, kind, 0.2, seed=5)
    found = split.judge(probs, labels)
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    sets = score(kind, probs, uniform) <= split.pooled
    assert found["size"] == pytest.approx(sets.sum(1).double().mean().item())
    assert found["coverage"] == pytest.approx(sets[torch.arange(300), labels].double().mean().item())
    assert found["empty"] == pytest.approx((~sets.any(1)).double().mean().item())
    assert found["full"] == pytest.approx(sets.all(1).double().mean().item())
    monkeypatch.setattr("clipkal.metrics.conformal.CHUNK", 20)
    assert split.judge(probs, labels) == found


def test_too_few_calibration_images_are_said() -> None:
    found = SplitConformal(*drawn(8, 4), "lac", 0.1).judge(*drawn(50, 5))
    assert (found["coverage"], found["size"], found["full"]) == (1, 6, 1)


def test_bad_input_is_refused() -> None:
    probs, labels = drawn(10, 6)
    with pytest.raises(ValueError, match="alpha"):
        SplitConformal(probs, labels, alpha=1.0)
    with pytest.raises(ValueError, match="one of lac, aps"):
        SplitConformal(probs, labels, "raps")
    with pytest.raises(ValueError, match="classes"):
        SplitConformal(probs, labels).judge(probs[:, :2] / probs[:, :2].sum(1, keepdim=True), labels % 2)
    with pytest.raises(ValueError, match="calibration scores"):
        prediction_sets([])
    with pytest.raises(ValueError, match="not finite"):
        prediction_sets([(torch.tensor([math.nan]), probs)])
