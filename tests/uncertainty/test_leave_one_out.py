"""The cavity of a shot against Gaussian algebra and against learning again without it; conformal sets that rest on it."""

import pytest
import torch
from torch import Tensor

from clipkal.adapters import LinearAdapter, ZeroShotAdapter
from clipkal.data import FeatureSet
from clipkal.metrics.conformal import ALPHA
from clipkal.optim import Kalman, Posterior
from clipkal.uncertainty import Plugin, Probit, Reader, Sampled
from clipkal.uncertainty.leave_one_out import cavity, leave_one_out
from clipkal.uncertainty.prediction_sets import Calibration


def shots(
    classes: int = 5, per_class: int = 4, d: int = 16, seed: int = 0
) -> tuple[FeatureSet, FeatureSet, Tensor]:
    """Shots and test images around class means, and text features that half know these."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize
    text = unit(torch.randn(classes, d, generator=generator), dim=1)
    means = unit(text + 0.8 * unit(torch.randn(classes, d, generator=generator), dim=1), dim=1)

    def images(name: str, k: int) -> FeatureSet:
        labels = torch.arange(classes).repeat_interleave(k)
        x = means[labels] + 1.6 * torch.randn(len(labels), d, generator=generator) / d**0.5
        return FeatureSet(name, [f"{name}{i}" for i in range(len(labels))], labels, unit(x, dim=1))

    return images("shots", per_class), images("test", 120), text


def learnt(data: FeatureSet, text: Tensor, temperature: float = 1.0) -> tuple[LinearAdapter, Kalman]:
    adapter = LinearAdapter(text, 8.0)
    optimizer = Kalman(adapter, prior=1.0, posterior_temperature=temperature, precision="float64")
    optimizer.step(data.inputs, data.labels)
    return adapter, optimizer


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_cavity_is_the_posterior_without_the_site(weight: float) -> None:
    """A Gaussian prior over the logits of 4 images, and 4 sites; one is left out by inverting the rest."""
    generator = torch.Generator().manual_seed(1)
    images, classes = 4, 3
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    prior = (root @ root.T + torch.eye(12, dtype=torch.float64)).inverse()
    labels = torch.tensor([0, 1, 2, 0])
    mean = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    probs = mean.softmax(1)
    sites = weight * (torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :])
    scores = weight * (torch.nn.functional.one_hot(labels, classes) - probs)
    precision = prior + torch.block_diag(*sites)
    natural = precision @ mean.flatten()
    blocks = precision.inverse().view(images, classes, images, classes)
    covariance = torch.stack([blocks[i, :, i] for i in range(images)])
    found, spread = cavity(mean, covariance, labels, weight)
    for i in range(images):
        rows = slice(classes * i, classes * (i + 1))
        without, rest = precision.clone(), natural.clone()
        without[rows, rows] -= sites[i]
        rest[rows] -= sites[i] @ mean[i] + scores[i]
        torch.testing.assert_close(spread[i], without.inverse()[rows, rows])
        torch.testing.assert_close(found[i], (without.inverse() @ rest)[rows])


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_it_is_close_to_learning_again_without_the_shot(temperature: float) -> None:
    data, _, text = shots()
    adapter, optimizer = learnt(data, text, temperature)
    prediction, labels = leave_one_out(Reader(adapter, optimizer), Plugin(), data)
    own = adapter(data.inputs).detach().softmax(1).gather(1, labels[:, None])[:, 0]
    again = []
    for i in range(len(data)):
        rest = data.subset([j for j in range(len(data)) if j != i])
        again.append(
            learnt(rest, text, temperature)[0](data.inputs[i : i + 1]).detach().double().softmax(1)[0]
        )
    exact = torch.stack(again)
    torch.testing.assert_close(prediction.probs, exact, atol=0.05, rtol=0)
    truth = exact.gather(1, labels[:, None])[:, 0]
    assert (own - truth).mean() > 0.15  # what the shots' own fit would overstate
    assert (prediction.probs.gather(1, labels[:, None])[:, 0] - truth).abs().mean() < 0.01


def test_predictives_see_the_cavity_and_a_part_of_the_shots_serves_where_classes_are_many(
    monkeypatch,
) -> None:
    data, _, text = shots()
    reader = Reader(*learnt(data, text))
    drawn, _ = leave_one_out(reader, Sampled(4000), data)
    closed, _ = leave_one_out(reader, Probit(), data)
    assert (drawn.probs - closed.probs).abs().mean() < 0.02
    assert (drawn.epistemic > 0).all()
    monkeypatch.setattr("clipkal.uncertainty.leave_one_out.FLOPS", 7 * 5**3)
    few, labels = leave_one_out(reader, Probit(), data, seed=3)
    assert len(few) == len(labels) == 7
    whole = closed.probs.unsqueeze(0) - few.probs.unsqueeze(1)
    assert (whole.abs().amax(2).amin(1) < 1e-9).all()  # each is one of the shots


class OnlyDraws(Posterior):
    def logit_samples(self, inputs, n, generator=None):
        return torch.zeros(n, len(inputs), 5)


def test_without_covariances_there_is_none() -> None:
    data, _, text = shots()
    adapter = LinearAdapter(text, 8.0)
    assert leave_one_out(Reader(adapter, OnlyDraws()), Sampled(), data) is None
    assert leave_one_out(Reader(adapter), Plugin(), data) is None
    assert Calibration.of(Reader(adapter), "plugin", {"plugin": Plugin()}, data, None) is None


def coverage(calibration: Calibration, reader: Reader, test: FeatureSet) -> float:
    probs = reader.logits(test.inputs, len(test), "test").softmax(1)
    return calibration.splits["lac"].judge(probs, test.labels)["coverage"]


def test_sets_from_shots_left_out_cover_like_those_from_validation_images() -> None:
    """Mean coverage over 12 draws of 20 shots; by their own fit they would miss far more than α."""
    chosen = {"plugin": Plugin()}
    found: dict[str, list[float]] = {"leave-one-out": [], "validation": [], "naive": []}
    for seed in range(12):
        data, test, text = shots(seed=seed)
        held, rest = test.subset(range(0, 600, 6)), test.subset([i for i in range(600) if i % 6])
        reader = Reader(*learnt(data, text))
        for name, given in {
            "leave-one-out": (data, None),
            "validation": (data, held),
            "naive": (data, data),
        }.items():
            calibration = Calibration.of(reader, "plugin", chosen, *given)
            assert calibration.about["calibration"] == ("validation" if name == "naive" else name)
            found[name].append(coverage(calibration, reader, rest))
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    assert mean["validation"] == pytest.approx(1 - ALPHA, abs=0.03)
    assert mean["leave-one-out"] == pytest.approx(1 - ALPHA, abs=0.06)
    assert mean["naive"] < 1 - ALPHA - 0.15, mean


def test_shots_that_nothing_was_learnt_from_serve_as_they_are() -> None:
    data, test, text = shots(per_class=16)
    reader = Reader(ZeroShotAdapter(text, 8.0))
    calibration = Calibration.of(reader, "plugin", {"plugin": Plugin()}, data, None)
    assert (calibration.about["calibration"], calibration.about["n"]) == ("shots", 80)
    assert coverage(calibration, reader, test) == pytest.approx(1 - ALPHA, abs=0.08)
