"""Properties of any probabilities: bounds, and indifference to the order of images and classes."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkal.metrics import aurc, auroc, classification_metrics, fpr95, reliability

SHARES = (
    "accuracy",
    "macro_f1",
    "ece",
    "adaptive_ece",
    "classwise_ece",
    "mce",
    "aurc",
    "e_aurc",
    "confidence",
)
PARTS = ("brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within_bin")
SUMMARY = (*SHARES, "nll", "brier", *PARTS)


@st.composite
def sets(draw) -> tuple[torch.Tensor, torch.Tensor]:
    n, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
    probs = (scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)
    if draw(st.booleans()):  # repeated rows: groups of equal confidence
        probs = probs[torch.randint(0, max(1, n // 4), (n,), generator=generator)]
    return probs, torch.randint(0, classes, (n,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(sets(), st.integers(1, 20))
def test_bounds(pair, bins) -> None:
    probs, labels = pair
    result = classification_metrics(probs, labels, bins)
    for name in SHARES:
        assert 0 <= result[name] <= 1 + 1e-12, name
    assert 0 <= result["brier"] <= 2 + 1e-12
    assert 0 <= result["nll"] <= math.inf
    assert result["mce"] >= result["ece"] - 1e-12 and result["e_aurc"] <= result["aurc"]
    reliability_, resolution, uncertainty, within = (result[name] for name in PARTS)
    assert min(reliability_, resolution, uncertainty) >= 0 and resolution <= uncertainty + 1e-9
    assert math.isclose(reliability_ - resolution + uncertainty + within, result["brier"], abs_tol=1e-9)
    assert sum(b.n for b in reliability(probs, labels, bins)) == len(labels)
    # one bin is the coarsest view: splitting can only add to |accuracy − confidence|
    assert result["ece"] >= abs(result["accuracy"] - result["confidence"]) - 1e-12
    assert result["adaptive_ece"] >= abs(result["accuracy"] - result["confidence"]) - 1e-12


@settings(max_examples=60, deadline=None)
@given(sets(), st.randoms(use_true_random=False))
def test_order_of_images_and_classes_does_not_matter(pair, random) -> None:
    probs, labels = pair
    images, classes = list(range(len(labels))), list(range(probs.shape[1]))
    random.shuffle(images)
    random.shuffle(classes)
    place = torch.tensor([classes.index(c) for c in range(len(classes))])
    first = classification_metrics(probs, labels)
    second = classification_metrics(probs[images][:, classes], place[labels][images])
    for name in SUMMARY:
        assert math.isclose(first[name], second[name], rel_tol=1e-9, abs_tol=1e-12), name
    assert [second["per_class_accuracy"][p] for p in place.tolist()] == first["per_class_accuracy"]


scores = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_detection_bounds_and_symmetry(low, high) -> None:
    assert math.isclose(auroc(low, high) + auroc(high, low), 1, abs_tol=1e-12)
    assert 0 <= fpr95(low, high) <= 1
    assert fpr95(low, low) >= 0.95


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=20))
def test_aurc_ignores_the_order_of_ties(pairs) -> None:
    confidence, right = zip(*pairs, strict=True)
    value = aurc(confidence, list(map(float, right)))
    assert 0 <= value <= 1
    assert math.isclose(value, aurc(confidence[::-1], list(map(float, right))[::-1]), abs_tol=1e-12)
