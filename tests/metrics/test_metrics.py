"""Every metric against an independent implementation written here in numpy, and the traps by name."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from clipkal.metrics import (
    accuracy,
    accuracy_at,
    adaptive_ece,
    aurc,
    auroc,
    brier,
    classification_metrics,
    e_aurc,
    ece,
    fpr95,
    msp,
    nll,
    per_class_accuracy,
    reliability,
    risk_at_coverage,
    risk_coverage,
)


def synthetic(n: int = 700, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probs, rng.integers(0, classes, n)


def reference_ece(probs: np.ndarray, labels: np.ndarray, bins: int) -> float:
    confidence, right = probs.max(1), probs.argmax(1) == labels
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = (confidence >= low) & ((confidence < high) | (b == bins - 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def reference_adaptive(probs: np.ndarray, labels: np.ndarray, bins: int) -> float:
    order = np.argsort(probs.max(1), kind="stable")
    confidence, right = probs.max(1)[order], (probs.argmax(1) == labels)[order]
    parts = np.array_split(np.arange(len(order)), bins)
    return sum(len(p) / len(order) * abs(right[p].mean() - confidence[p].mean()) for p in parts if len(p))


@pytest.mark.parametrize("bins", [1, 10, 15, 20])
@pytest.mark.parametrize("classes", [2, 7, 100])
def test_classification_metrics_match_numpy(classes: int, bins: int) -> None:
    probs, labels = synthetic(classes=classes)
    result = classification_metrics(torch.from_numpy(probs), torch.from_numpy(labels), bins)
    onehot = np.eye(classes)[labels]
    right = probs.argmax(1) == labels
    assert result["accuracy"] == pytest.approx(right.mean())
    assert result["nll"] == pytest.approx(log_loss(labels, probs, labels=range(classes)), rel=1e-9)
    assert result["brier"] == pytest.approx(((probs - onehot) ** 2).sum(1).mean())
    assert result["ece"] == pytest.approx(reference_ece(probs, labels, bins), abs=1e-12)
    assert result["adaptive_ece"] == pytest.approx(reference_adaptive(probs, labels, bins), abs=1e-12)
    assert result["confidence"] == pytest.approx(probs.max(1).mean())
    for c, value in enumerate(result["per_class_accuracy"]):
        inside = labels == c
        assert value == (pytest.approx(right[inside].mean()) if inside.any() else None)
    assert (result["n"], result["bins"], result["classes"]) == (700, bins, classes)


def test_ece_agrees_with_torchmetrics_multiclass() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, labels = synthetic()
    other = multiclass_calibration_error(torch.from_numpy(probs), torch.from_numpy(labels), 7, n_bins=15)
    assert ece(probs, labels) == pytest.approx(other.item(), abs=1e-6)


def test_reliability_bins_reproduce_ece_and_cover_the_set() -> None:
    probs, labels = synthetic()
    bins = reliability(probs, labels, 15)
    assert len(bins) == 15 and sum(b.n for b in bins) == 700
    assert bins[0].low == 0 and bins[-1].high == 1
    total = sum(b.n * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence)
    assert total / 700 == pytest.approx(ece(probs, labels), abs=1e-12)
    assert all(b.low <= b.confidence <= b.high for b in bins if b.confidence is not None)
    assert all(b.accuracy is None for b in bins if b.n == 0)


def test_perfect_calibration_goes_to_zero_but_batch_means_do_not() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.5, 1, 200_000)
    probs = np.stack([confidence, 1 - confidence], 1)
    labels = (rng.uniform(size=len(confidence)) >= confidence).astype(int)
    assert ece(probs, labels) < 0.005
    assert adaptive_ece(probs, labels) < 0.005
    batches = [ece(probs[i : i + 100], labels[i : i + 100]) for i in range(0, 2000, 100)]
    assert np.mean(batches) > 0.05  # why the metric is never averaged over batches


def test_confidence_of_exactly_one_belongs_to_the_last_bin() -> None:
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.98, 0.02], [0.98, 0.02]])
    labels = torch.tensor([0, 1, 0, 0])
    assert ece(probs, labels) == pytest.approx(abs(0.75 - 0.99), abs=1e-6)
    bins = reliability(probs, labels)
    assert bins[-1].n == 4 and sum(b.n for b in bins) == 4


def test_one_class_is_perfect() -> None:
    result = classification_metrics(torch.ones(5, 1), torch.zeros(5, dtype=torch.long))
    assert (result["accuracy"], result["nll"], result["brier"]) == (1, 0, 0)
    assert result["ece"] == pytest.approx(0, abs=1e-12)
    assert result["adaptive_ece"] == pytest.approx(0, abs=1e-12)


def test_one_image() -> None:
    result = classification_metrics([[0.2, 0.8]], [1])
    assert result["ece"] == pytest.approx(0.2)
    assert result["adaptive_ece"] == pytest.approx(0.2)
    assert result["per_class_accuracy"] == [None, 1]


def test_nll_of_an_impossible_label_is_infinite_unless_its_logarithm_is_known() -> None:
    probs, labels = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([1, 0])
    assert nll(probs, labels) == math.inf
    log_probs = torch.tensor([[0.0, -800.0], [math.log(0.5), math.log(0.5)]])
    assert nll(probs, labels, log_probs) == pytest.approx((800 + math.log(2)) / 2)
    assert classification_metrics(probs, labels, log_probs=log_probs)["nll"] < math.inf
    with pytest.raises(ValueError, match="log_probs"):
        nll(probs, labels, log_probs + 1)
    with pytest.raises(ValueError, match="log_probs"):
        nll(probs, labels, log_probs * math.nan)


@pytest.mark.parametrize("metric", [accuracy, nll, brier, ece, adaptive_ece, reliability, per_class_accuracy])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([math.nan, 0.5], "row 1 is not finite"),
        ([math.inf, 0.5], "row 1 is not finite"),
        ([-0.1, 1.1], "row 1 has a negative"),
        ([0.5, 0.4], "row 1 does not sum"),
        ([3.0, -2.0], "row 1 has a negative"),
        ([1.1, 0.0], "row 1 does not sum"),
    ],
)
def test_bad_rows_are_refused(metric, row, message) -> None:
    with pytest.raises(ValueError, match=message):
        metric(torch.tensor([[0.5, 0.5], row]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
        (torch.zeros(3, 0), torch.zeros(3, dtype=torch.long)),
        (torch.tensor([0.5, 0.5]), torch.tensor([0, 1])),
        (torch.full((2, 2), 0.5), torch.tensor([0, 2])),
        (torch.full((2, 2), 0.5), torch.tensor([0, -1])),
        (torch.full((2, 2), 0.5), torch.tensor([0])),
        (torch.full((2, 2), 0.5), torch.tensor([0.0, 1.0])),
    ],
)
def test_bad_sets_are_refused(probs, labels) -> None:
    with pytest.raises(ValueError):
        classification_metrics(probs, labels)


@pytest.mark.parametrize("bins", [0, -1, 2.5])
def test_bad_bins_are_refused(bins) -> None:
    with pytest.raises(ValueError, match="bins"):
        ece([[0.5, 0.5]], [0], bins)


def test_auroc_with_ties_matches_pair_counting() -> None:
    rng = np.random.default_rng(3)
    low, high = rng.integers(0, 6, 90) / 2, rng.integers(1, 8, 70) / 2
    pairs = np.mean((high[:, None] > low) + 0.5 * (high[:, None] == low))
    assert auroc(low, high) == pytest.approx(pairs)
    assert auroc(low * 100, high * 100) == pytest.approx(pairs)  # outside [0, 1]: no sigmoid may touch it
    both = np.r_[low, high]
    assert auroc(low, high) == pytest.approx(roc_auc_score(np.r_[np.zeros(90), np.ones(70)], both))


def test_detection_extremes() -> None:
    assert auroc([0.3] * 5, [0.3] * 7) == 0.5
    assert fpr95([0.3] * 5, [0.3] * 7) == 1.0
    assert (auroc([0, 0.1], [0.5, 0.6]), fpr95([0, 0.1], [0.5, 0.6])) == (1, 0)
    assert (auroc([0.5, 0.6], [0, 0.1]), fpr95([0.5, 0.6], [0, 0.1])) == (0, 1)


@pytest.mark.parametrize("n", [1, 5, 19, 20, 21, 100, 1000])
def test_fpr95_matches_a_threshold_scan(n: int) -> None:
    rng = np.random.default_rng(n)
    low, high = rng.normal(size=n).round(1), rng.normal(1, 1, 333).round(1)
    best = min((high <= t).mean() for t in low if np.sum(low <= t) * 100 >= 95 * n)
    assert fpr95(low, high) == pytest.approx(best)


@pytest.mark.parametrize("metric", [auroc, fpr95])
def test_detection_refuses_nan_and_empty(metric) -> None:
    for low, high in [([math.nan], [1.0]), ([0.0], [math.inf]), ([], [1.0]), ([0.0], [])]:
        with pytest.raises(ValueError):
            metric(low, high)


def test_msp_is_one_minus_the_largest() -> None:
    assert msp(torch.tensor([[0.7, 0.3], [0.5, 0.5]])).tolist() == pytest.approx([0.3, 0.5])


def test_aurc_without_ties_matches_the_definition() -> None:
    rng = np.random.default_rng(5)
    confidence, right = rng.permutation(200) / 200, rng.uniform(size=200) < 0.7
    ordered = ~right[np.argsort(-confidence)]
    risks = np.cumsum(ordered) / np.arange(1, 201)
    assert aurc(confidence, right) == pytest.approx(risks.mean())
    assert risk_at_coverage(confidence, right, 0.5) == pytest.approx(ordered[:100].mean())
    assert risk_at_coverage(confidence, right, 1.0) == pytest.approx(1 - right.mean())
    assert risk_at_coverage(confidence, right, 1e-6) == float(ordered[0])


def test_aurc_with_ties_is_the_mean_over_orders() -> None:
    rng = np.random.default_rng(6)
    confidence, right = rng.integers(0, 4, 40) / 4, rng.uniform(size=40) < 0.6
    values = []
    for _ in range(4000):
        order = np.lexsort((rng.uniform(size=40), -confidence))
        values.append(np.mean(np.cumsum(~right[order]) / np.arange(1, 41)))
    assert aurc(confidence, right) == pytest.approx(np.mean(values), abs=4 * np.std(values) / 4000**0.5)
    assert aurc(np.full(40, 0.3), right) == pytest.approx(1 - right.mean())


def test_risk_coverage_shapes_and_errors() -> None:
    coverage, risk = risk_coverage([0.9, 0.8, 0.7], [True, True, True])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1]) and risk.tolist() == [0, 0, 0]
    for confidence, right in [([0.1], [2]), ([0.1, 0.2], [1]), ([math.nan], [1]), ([], [])]:
        with pytest.raises(ValueError):
            risk_coverage(confidence, right)
    for coverage in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="coverage"):
            risk_at_coverage([0.5], [1], coverage)


def test_ece_is_torchmetrics_binary_calibration_error_to_the_last_digit() -> None:
    from torchmetrics.functional.classification import binary_calibration_error

    generator = torch.Generator().manual_seed(0)
    for n, classes, bins in ((1, 2, 15), (7, 3, 1), (400, 10, 15), (900, 24, 40)):
        probs = (4 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)
        labels = torch.randint(0, classes, (n,), generator=generator)
        right = (probs.argmax(1) == labels).long()
        expected = binary_calibration_error(probs.amax(1), right, n_bins=bins, norm="l1").item()
        assert ece(probs, labels, bins) == expected


def test_e_aurc_is_what_the_order_costs() -> None:
    rng = np.random.default_rng(7)
    right = rng.uniform(size=3000) < 0.8
    best = right + 0.5 * rng.uniform(size=3000)  # every right answer above every error
    assert e_aurc(best, right) == pytest.approx(0, abs=1e-12)
    noise = rng.uniform(size=3000)
    assert e_aurc(noise, right) == pytest.approx(aurc(noise, right) - aurc(best, right), abs=1e-12)
    rate = 1 - right.mean()
    geifman = aurc(noise, right) - (rate + (1 - rate) * math.log(1 - rate))
    assert e_aurc(noise, right) == pytest.approx(geifman, abs=1e-3)


def test_accuracy_at_coverages() -> None:
    rng = np.random.default_rng(8)
    confidence, right = rng.permutation(200) / 200, rng.uniform(size=200) < 0.7
    ordered = right[np.argsort(-confidence)]
    expected = [ordered[: round(200 * share)].mean() for share in (0.07, 0.5, 1)]
    assert accuracy_at(confidence, right, (0.07, 0.5, 1)) == pytest.approx(expected)
    stored = classification_metrics([[0.9, 0.1], [0.8, 0.2]], [0, 1])
    assert stored["coverage"][0] == 0.05 and stored["coverage"][-1] == 1 and len(stored["coverage"]) == 20
    assert stored["accuracy_at_coverage"] == pytest.approx([1] * 10 + [0.5] * 10)
