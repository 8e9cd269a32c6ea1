"""AUPR and the scores of the shots' distances, against scikit-learn, explicit inverses and invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.metrics import average_precision_score

from clipkal.metrics import Gaussians, aupr, energy, nearest_shot, separation, separations
from clipkal.metrics.distance import shrunk


def drawn(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("step", [0.5, 0.01])
def test_aupr_is_scikit_learns_average_precision_with_ties(step: float) -> None:
    rng = np.random.default_rng(0)
    low, high = (np.round(rng.normal(m, 1, n) / step) * step for m, n in ((0, 150), (1, 40)))
    truth = np.r_[np.zeros(150), np.ones(40)]
    assert aupr(low, high) == pytest.approx(average_precision_score(truth, np.r_[low, high]))
    assert set(separation(low, high)) == {"auroc", "aupr", "fpr95"}


def test_scores_that_are_ranked_together_tell_as_much_as_alone() -> None:
    rng = np.random.default_rng(1)
    to_find = rng.permutation(np.arange(90) < 25)
    every = np.stack([rng.normal(to_find), np.round(rng.normal(2 * to_find)), np.ones(90), -1.0 * to_find])
    found = separations(torch.from_numpy(every), torch.from_numpy(to_find))
    assert found == [separation(score[~to_find], score[to_find]) for score in every]
    for score, told in zip(every, found, strict=True):
        low, high = score[~to_find], score[to_find]
        pairs = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
        threshold = np.sort(low)[math.ceil(0.95 * len(low)) - 1]
        assert told["auroc"] == pytest.approx(pairs) and told["fpr95"] == (high <= threshold).mean()
    with pytest.raises(ValueError, match="both kinds"):
        separations(torch.from_numpy(every), torch.ones(90, dtype=torch.bool))


scores = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_aupr_bounds(low, high) -> None:
    assert 0 < aupr(low, high) <= 1 + 1e-12
    assert aupr([0.0] * len(low), [0.0] * len(high)) == pytest.approx(len(high) / (len(low) + len(high)))
    assert aupr([-6.0] * len(low), high) == pytest.approx(1)


def test_energy_is_minus_logsumexp() -> None:
    assert energy([[0.0, 0.0], [1000.0, 0.0]]).tolist() == pytest.approx([-math.log(2), -1000])


def test_nearest_shot_is_the_least_distance_and_zero_at_the_shots() -> None:
    images, shots = drawn(50, 16, 0), drawn(20, 16, 1)
    torch.testing.assert_close(nearest_shot(images, shots), torch.cdist(images, shots).amin(1))
    assert (nearest_shot(shots.float(), shots.float()) == 0).all()


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)])
def test_shrinkage_is_the_oracle_approximating_rule(n: int, d: int) -> None:
    """scikit-learn leaves the terms 2/d out and divides by n; so do we for the comparison, where d is large."""
    x = drawn(n, d, 2)
    x = x - x.mean(0)
    found = shrunk(x, n)
    expected = OAS(assume_centered=True).fit(x.numpy()).covariance_
    assert torch.linalg.eigvalsh(found).min() > 0
    np.testing.assert_allclose(found.trace(), np.trace(expected))
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())
    s, trace = x.T @ x / n, (x.T @ x / n).trace()
    rho = ((1 - 2 / d) * (s @ s).trace() + trace**2) / ((n + 1 - 2 / d) * ((s @ s).trace() - trace**2 / d))
    torch.testing.assert_close(
        found, (1 - min(rho, 1)) * s + min(rho, 1) * trace / d * torch.eye(d, dtype=torch.float64)
    )


@pytest.mark.parametrize(("shots", "d"), [(16, 6), (2, 64), (1, 64)])
def test_mahalanobis_with_an_explicit_inverse(shots: int, d: int) -> None:
    labels = torch.arange(5).repeat(shots)
    x, images = drawn(5 * shots, d, 3), drawn(30, d, 4)
    means = torch.stack([x[labels == c].mean(0) for c in range(5)])
    overall = shrunk(x - x.mean(0), len(x) - 1)
    within = (
        shrunk(x - means[labels], len(x) - 5)
        if shots > 1
        else overall.trace() / d * torch.eye(d, dtype=torch.float64)
    )
    delta, centred = images[:, None] - means, images - x.mean(0)
    distance = torch.einsum("ncd,de,nce->nc", delta, within.inverse(), delta).amin(1)
    background = torch.einsum("nd,de,ne->n", centred, overall.inverse(), centred)
    found = Gaussians(x, labels).scores(images)
    torch.testing.assert_close(found["mahalanobis"], distance, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found["relative_mahalanobis"], distance - background, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shots", [1, 4])
def test_the_order_of_shots_names_of_classes_and_rotations_change_nothing(shots: int) -> None:
    labels = torch.arange(6).repeat(shots)
    x, images = drawn(6 * shots, 12, 5), drawn(40, 12, 6)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    order = torch.randperm(len(x))
    one = Gaussians(x, labels).scores(images)
    two = Gaussians((x @ rotation)[order], 10 - labels[order]).scores(images @ rotation)
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    torch.testing.assert_close(
        nearest_shot(images, x), nearest_shot(images @ rotation, (x @ rotation)[order])
    )


def test_far_images_are_further_by_every_score() -> None:
    labels = torch.arange(5).repeat(4)
    centres = 3 * torch.eye(5, 20, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    near, shots = (centres[labels] + 0.3 * torch.randn(20, 20, generator=generator) for _ in range(2))
    far = near + 3 * torch.eye(20)[10].double()
    found = [Gaussians(shots, labels).scores(x) | {"nearest": nearest_shot(x, shots)} for x in (near, far)]
    for name in found[0]:
        assert separation(found[0][name], found[1][name])["auroc"] > 0.95, name


def test_one_shot_and_identical_shots_are_no_accident() -> None:
    same = torch.ones(3, 4)
    found = Gaussians(same, torch.tensor([0, 0, 1])).scores(torch.stack([torch.ones(4), torch.zeros(4)]))
    assert found["mahalanobis"].tolist() == pytest.approx([0, 4])
    only = Gaussians(same[:1], torch.tensor([0])).scores(same)
    assert all(torch.isfinite(one).all() for one in only.values())


@pytest.mark.parametrize(
    ("features", "shots"),
    [
        (torch.ones(3, 4), torch.ones(2, 5)),
        (torch.ones(3, 4), torch.ones(0, 4)),
        (torch.ones(4), torch.ones(1, 4)),
        (torch.full((3, 4), math.nan), torch.ones(1, 4)),
    ],
)
def test_bad_features_are_refused(features, shots) -> None:
    with pytest.raises(ValueError):
        nearest_shot(features, shots)
