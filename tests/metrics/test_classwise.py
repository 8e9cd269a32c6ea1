"""Class-wise ECE, MCE, the decomposition of the Brier score, and macro-F1, against loops and other libraries."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from clipkal.metrics import (
    brier,
    brier_decomposition,
    classification_metrics,
    classwise_ece,
    ece,
    macro_f1,
    mce,
)


def synthetic(n: int = 600, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probs, rng.integers(0, classes, n)


def bins_of(p: np.ndarray, bins: int) -> list[np.ndarray]:
    return [(p >= b / bins) & ((p < (b + 1) / bins) | (b == bins - 1)) for b in range(bins)]


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("classes", [2, 6, 40])
def test_classwise_ece_is_the_mean_over_classes_of_binary_calibration_errors(classes: int, bins: int) -> None:
    probs, labels = synthetic(classes=classes)
    total = 0.0
    for c in range(classes):
        for inside in bins_of(probs[:, c], bins):
            if inside.any():
                gap = (labels[inside] == c).mean() - probs[inside, c].mean()
                total += inside.mean() * abs(gap) / classes
    assert classwise_ece(probs, labels, bins) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("classes", [2, 6, 40])
def test_the_parts_of_the_brier_score(classes: int, bins: int) -> None:
    probs, labels = synthetic(classes=classes)
    expected = dict.fromkeys(("reliability", "resolution", "uncertainty", "within_bin"), 0.0)
    for c in range(classes):
        p, y = probs[:, c], (labels == c).astype(float)
        expected["uncertainty"] += y.var()
        for inside in bins_of(p, bins):
            if inside.any():
                share, pb, yb = inside.mean(), p[inside], y[inside]
                expected["reliability"] += share * (pb.mean() - yb.mean()) ** 2
                expected["resolution"] += share * (yb.mean() - y.mean()) ** 2
                covariance = ((pb - pb.mean()) * (yb - yb.mean())).mean()
                expected["within_bin"] += share * (pb.var() - 2 * covariance)
    parts = brier_decomposition(probs, labels, bins)
    assert parts == pytest.approx(expected, abs=1e-10)
    whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bin"]
    assert whole == pytest.approx(brier(probs, labels))


def test_forecasts_constant_in_a_bin_obey_murphys_identity_and_the_shares_have_no_resolution() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    same = np.tile([0.5, 0.3, 0.2], (100, 1))
    parts = brier_decomposition(same, labels)
    assert parts["reliability"] == pytest.approx(0, abs=1e-12)
    assert parts["resolution"] == pytest.approx(0, abs=1e-12)
    assert parts["within_bin"] == pytest.approx(0, abs=1e-12)
    sure = brier_decomposition(np.eye(3)[labels], labels)
    assert sure["resolution"] == pytest.approx(sure["uncertainty"]) and sure["reliability"] == 0


def test_mce_is_torchmetrics_maximum_gap() -> None:
    from torchmetrics.functional.classification import binary_calibration_error

    for seed, classes, bins in ((0, 2, 15), (1, 5, 4), (2, 30, 15)):
        probs, labels = (torch.from_numpy(one) for one in synthetic(400, classes, seed))
        right = (probs.argmax(1) == labels).long()
        expected = binary_calibration_error(probs.amax(1), right, n_bins=bins, norm="max").item()
        assert mce(probs, labels, bins) == pytest.approx(expected, abs=1e-12)
        assert mce(probs, labels, bins) >= ece(probs, labels, bins)


@pytest.mark.parametrize("occurring", [1, 3, 9])
def test_macro_f1_is_scikit_learns_over_classes_that_occur(occurring: int) -> None:
    probs, labels = synthetic(200, 9)
    labels = labels % occurring
    probs[:, 7:] = 1e-9  # classes that are never predicted
    probs /= probs.sum(1, keepdims=True)
    expected = f1_score(labels, probs.argmax(1), average="macro", zero_division=0)
    assert macro_f1(probs, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [3, 100])
def test_a_calibrated_predictor_is_within_the_sampling_error_of_every_calibration_figure(
    classes: int,
) -> None:
    """Labels drawn from the probabilities themselves: E |gap_b| ≤ √(p(1 − p)/n_b) in every bin."""
    generator = torch.Generator().manual_seed(1)
    probs = (3 * torch.randn(20_000, classes, generator=generator, dtype=torch.float64)).softmax(1)
    labels = torch.multinomial(probs, 1, generator=generator)[:, 0]
    metrics = classification_metrics(probs, labels)
    error = (0.25 * 15 / 20_000) ** 0.5  # of the sum over 15 bins, by Cauchy and Schwarz: 0.014
    assert metrics["ece"] < error and metrics["adaptive_ece"] < error
    assert metrics["classwise_ece"] < (15 / classes / 20_000) ** 0.5 + 1e-3
    assert metrics["brier_reliability"] < 15 * classes / 20_000
    hotter = classification_metrics((1.5 * probs.log()).softmax(1), labels)
    for name in ("ece", "adaptive_ece", "classwise_ece", "brier_reliability", "nll", "brier"):
        assert hotter[name] > metrics[name], name
    assert hotter["ece"] > 2 * error


def test_the_pass_over_the_probabilities_in_chunks_changes_nothing(monkeypatch) -> None:
    probs, labels = synthetic()
    whole = classwise_ece(probs, labels), brier_decomposition(probs, labels)
    monkeypatch.setattr("clipkal.metrics.classwise.CHUNK", 50)
    assert classwise_ece(probs, labels) == pytest.approx(whole[0])
    assert brier_decomposition(probs, labels) == pytest.approx(whole[1])
