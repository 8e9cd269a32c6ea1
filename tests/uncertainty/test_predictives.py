"""What every predictive promises, the Laplace bridge against its formula, and one that learns, streamed."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from clipkal.adapters import LinearAdapter
from clipkal.config import compose, conf_dir
from clipkal.errors import CheckpointError, ConfigError
from clipkal.evaluation import evaluate, fit_temperatures
from clipkal.methods import build_predictive
from clipkal.optim import Kalman
from clipkal.recording.checkpoint import load_predictive, save_predictive
from clipkal.uncertainty import (
    Accumulator,
    Chunk,
    Images,
    Plugin,
    Prediction,
    Predictive,
    Reader,
    SampleAverage,
    Sampled,
    View,
    laplace_bridge,
    monte_carlo,
    plugin,
    predict,
)

F64 = torch.float64
N, C, D = 23, 5, 12
OPTIONS = sorted(path.stem for path in Path(conf_dir(), "predictive").glob("*.yaml"))
PARTS = ("probs", "entropy", "aleatoric", "epistemic", "log_probs")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Features:
    ids: list[str]
    labels: Tensor
    inputs: Tensor

    @classmethod
    def drawn(cls, n: int, seed: int) -> "Features":
        inputs = torch.nn.functional.normalize(torch.randn(n, D, generator=seeded(seed)), dim=1)
        labels = torch.randint(C, (n,), generator=seeded(seed + 1))
        return cls([f"{seed}/{i}" for i in range(n)], labels, inputs)


@pytest.fixture(scope="module")
def learnt() -> tuple[LinearAdapter, Kalman]:
    """An adapter that has learnt from two images a class, and its posterior."""
    text = torch.nn.functional.normalize(torch.randn(C, D, generator=seeded(1)), dim=1)
    adapter = LinearAdapter(text, 10.0)
    shots = Features.drawn(2 * C, 5)
    optimiser = Kalman(adapter, prior=0.1)
    optimiser.step(shots.inputs, shots.labels)
    return adapter, optimiser


# -- every option of conf/predictive -------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_and_the_order_of_images_change_nothing(name, batch_size, learnt):
    predictive = build_predictive(compose([f"predictive={name}", "predictive.samples=20"]))
    images = Features.drawn(N, 8)
    order = torch.randperm(N, generator=seeded(3))
    views = [View(name), View(name, 2.0), View(name, 1.0, (0, 2, 3))]

    def read(inputs: Tensor, batch_size: int = 1024) -> dict[View, Prediction]:
        reader = Reader(*learnt, batch_size=batch_size)
        return predict(reader, {name: predictive}, {"a": Images(inputs, N, views)})["a"]

    whole, streamed, shuffled = (
        read(images.inputs),
        read(images.inputs, batch_size),
        read(images.inputs[order]),
    )
    for view, one in whole.items():
        assert len(one) == N and one.probs.dtype == F64
        assert one.probs.shape[1] == (C if view.classes is None else 3)
        torch.testing.assert_close(one.probs.sum(1), torch.ones(N, dtype=F64))
        assert (one.epistemic >= 0).all() and (one.aleatoric >= -1e-9).all()
        for part in PARTS:  # the model is float32
            torch.testing.assert_close(
                getattr(streamed[view], part), getattr(one, part), rtol=1e-4, atol=1e-4
            )
            expected = getattr(one, part)[order]
            torch.testing.assert_close(getattr(shuffled[view], part), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_chunks_come_in_any_order_and_none_may_be_missing(name):
    predictive = build_predictive(compose([f"predictive={name}"]))
    root = torch.randn(6, C, C, generator=seeded(), dtype=F64)
    logits, draws = (torch.randn(*shape, C, generator=seeded(2), dtype=F64) for shape in ((6,), (9, 6)))
    chunk = Chunk(
        logits, root @ root.mT, logits.flip(1), logits, torch.rand(6, generator=seeded(3), dtype=F64)
    )

    def read(*slices: slice) -> Prediction:
        accumulator = predictive.begin(6, C)
        for rows in slices:
            accumulator.add(rows, chunk.rows(rows))
        for rows in slices if "draws" in predictive.needs else ():
            for block in draws[:, rows].split(4):
                accumulator.add_draws(rows, block)
        return accumulator.prediction()

    for part in PARTS:
        whole, pieces = (
            getattr(read(*s), part) for s in ([slice(0, 6)], [slice(4, 6), slice(0, 1), slice(1, 4)])
        )
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="image"):
        read(slice(0, 4))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_it_has_learnt_is_written_and_read_back(name, learnt, tmp_path):
    words = [f"predictive={name}", "predictive.samples=20"]
    first, second = (build_predictive(compose(words)) for _ in range(2))
    reader = Reader(*learnt)
    first.fit(reader, Features.drawn(2 * C, 5), Features.drawn(C, 6))
    save_predictive(tmp_path / "predictive.safetensors", first, {})
    load_predictive(tmp_path / "predictive.safetensors", second)
    images = {"a": Images(Features.drawn(N, 8).inputs, N, [View(name)])}
    one, other = (predict(reader, {name: p}, images)["a"][View(name)] for p in (first, second))
    assert torch.equal(one.probs, other.probs)


# -- the Laplace bridge --------------------------------------------------------------------------------------


def by_the_book(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """α of one image, sum by sum."""
    size = len(mean)
    centring = np.eye(size) - 1 / size
    mean, covariance = centring @ mean, centring @ covariance @ centring
    total = sum(math.exp(-one) for one in mean)
    return np.array(
        [(1 - 2 / size + math.exp(mean[c]) / size**2 * total) / covariance[c, c] for c in range(size)]
    )


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_laplace_bridge_is_its_formula(classes):
    mean = 2 * torch.randn(4, classes, generator=seeded(), dtype=F64)
    root = torch.randn(4, classes, classes, generator=seeded(1), dtype=F64)
    covariance = root @ root.mT
    one = laplace_bridge(mean + 3, covariance + 7)  # what is common to all classes does not count
    for i in range(4):
        alpha = by_the_book(mean[i].numpy(), covariance[i].numpy())
        np.testing.assert_allclose(one.probs[i], alpha / alpha.sum(), rtol=1e-9)
        np.testing.assert_allclose(one.log_probs[i], np.log(alpha / alpha.sum()), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(one.entropy[i], stats.entropy(alpha), rtol=1e-7)
        drawn = special.entr(np.random.default_rng(0).dirichlet(alpha, 200_000)).sum(1)
        assert abs(drawn.mean() - one.aleatoric[i]) < 6 * drawn.std() / 200_000**0.5
        assert one.epistemic[i] == pytest.approx(one.entropy[i] - one.aleatoric[i])


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_laplace_bridge_gives_back_the_dirichlet_that_made_the_gaussian(classes):
    """MacKay's Gaussian of a Dirichlet distribution: μ = A log α, Σ = A diag(1/α) A."""
    alpha = torch.rand(3, classes, generator=seeded(), dtype=F64) * 5 + 0.3
    centring = torch.eye(classes, dtype=F64) - 1 / classes
    covariance = centring @ torch.diag_embed(1 / alpha) @ centring
    one = laplace_bridge(alpha.log() @ centring, covariance)
    torch.testing.assert_close(one.probs, alpha / alpha.sum(1, keepdim=True), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("classes", "size", "sd", "error"),
    [(2, 2, 0.5, 0.015), (2, 2, 1.0, 0.04), (5, 5, 0.5, 0.045), (20, 5, 1.0, 0.075), (100, 5, 1.0, 0.075)],
)
def test_laplace_bridge_is_as_far_from_sampling_as_it_says(classes, size, sd, error):
    mean = size * torch.randn(50, classes, generator=seeded(), dtype=F64)
    root = torch.randn(50, classes, classes, generator=seeded(1), dtype=F64) / classes**0.5
    covariance = sd**2 * 0.5 * (root @ root.mT + torch.eye(classes, dtype=F64))
    reference = monte_carlo(mean, covariance, 1000, seeded(2)).probs
    gap = (laplace_bridge(mean, covariance).probs - reference).abs().sum(1).mean() / 2
    assert error / 3 < gap < error


def test_laplace_bridge_of_two_classes_is_the_plugin_with_an_epistemic_part():
    mean = torch.randn(9, 2, generator=seeded(), dtype=F64)
    one = laplace_bridge(mean, torch.eye(2, dtype=F64).expand(9, 2, 2))
    torch.testing.assert_close(one.probs, plugin(mean).probs)
    assert (one.epistemic > 0.01).all()
    wide = laplace_bridge(mean, 4 * torch.eye(2, dtype=F64).expand(9, 2, 2))
    assert (wide.epistemic > one.epistemic).all()


def test_laplace_bridge_stays_finite():
    mean = torch.tensor([[0.0, 2000.0, -2000.0], [0.0, 0.0, 0.0]], dtype=F64)
    for scale in (0.0, 1e-30, 1.0, 1e6):
        one = laplace_bridge(mean, scale * torch.eye(3, dtype=F64).expand(2, 3, 3))
        for part in PARTS:
            assert torch.isfinite(getattr(one, part)).all(), (scale, part)
    assert laplace_bridge(torch.zeros(2, 1), torch.ones(2, 1, 1)).probs.tolist() == [[1], [1]]
    for bad in (torch.eye(2), torch.eye(3).expand(2, 3, 3) * math.nan, -torch.eye(3).expand(2, 3, 3)):
        with pytest.raises(ValueError):
            laplace_bridge(mean, bad)


# -- a predictive of one's own -------------------------------------------------------------------------------


class Distance(Predictive):
    """Draws, mixed with zero-shot by the distance to the nearest shot."""

    needs = ("draws", "zeroshot", "features")
    samples = 8

    def __init__(self) -> None:
        self.asked = 0
        self.shots = torch.zeros(0, D, dtype=F64)

    def fit(self, reader, shots, validation):
        known = reader.whole(shots.inputs, len(shots.labels), ("features",), "shots")
        self.shots = known.features

    def state(self):
        return {"shots": self.shots, "power": 2.0}

    def load_state(self, state):
        assert state["power"] == 2
        self.shots = state["shots"]

    def novelty(self, chunk):
        self.asked += len(chunk)
        return (torch.cdist(chunk.features, self.shots).amin(1) / 2) ** 2

    def begin(self, images, classes):
        return Mixture(images, classes)


class Mixture(Accumulator):
    def __init__(self, images, classes):
        self.drawn, self.zeroshot = SampleAverage(images, classes), torch.zeros(images, classes, dtype=F64)
        self.weight = torch.zeros(images, 1, dtype=F64)

    def add(self, rows, chunk):
        self.zeroshot[rows], self.weight[rows] = chunk.zeroshot.softmax(1), chunk.novelty[:, None]

    def add_draws(self, rows, draws):
        self.drawn.add_draws(rows, draws)

    def prediction(self):
        probs = (1 - self.weight) * self.drawn.prediction().probs + self.weight * self.zeroshot
        return plugin(probs.clamp(min=1e-300).log())


@pytest.mark.parametrize("batch_size", [5, 1000])
def test_a_predictive_may_ask_for_everything(learnt, batch_size):
    adapter, posterior = learnt
    reader = Reader(adapter, posterior, batch_size=batch_size)
    images, shots = Features.drawn(N, 8), Features.drawn(2 * C, 5)
    mine = Distance()
    mine.fit(reader, shots, None)
    views = [View("mine"), View("mine", 2.0, (0, 3))]
    both = {"mine": mine, "plugin": Plugin(), "sampled": Sampled(8)}
    wanted = {"far": Images(images.inputs, N, [*views, View("plugin"), View("sampled")])}
    wanted["near"] = Images(shots.inputs, 2 * C, views[:1])
    found = predict(reader, both, wanted)
    assert mine.asked == N + 2 * C  # once for each image, whatever the number of views
    nearest = (2 - 2 * images.inputs.double() @ shots.inputs.double().T).amin(1) / 4
    zeroshot = adapter.zeroshot_logits(images.inputs).double()
    torch.testing.assert_close(found["far"][views[0]].novelty, nearest, rtol=0, atol=1e-6)
    torch.testing.assert_close(found["far"][views[1]].novelty, nearest, rtol=0, atol=1e-6)
    assert found["near"][views[0]].novelty.max() < 1e-6 and found["far"][View("plugin")].novelty is None
    sampled = found["far"][View("sampled")].probs
    expected = sampled + nearest[:, None] * (zeroshot.softmax(1) - sampled)
    torch.testing.assert_close(found["far"][views[0]].probs, expected, rtol=0, atol=1e-5)
    assert found["far"][views[1]].probs.shape == (N, 2)


def test_its_novelty_goes_into_the_evaluation_and_its_temperature_is_fitted(learnt, tmp_path):
    reader = Reader(*learnt)
    shots, val = Features.drawn(2 * C, 5), Features.drawn(40, 6)
    mine = Distance()
    mine.fit(reader, shots, val)
    predictives = {"plugin": Plugin(), "mine": mine}
    temperatures = fit_temperatures(reader, val, predictives)
    metrics = evaluate(reader, {"val": ("id", val)}, predictives, temperatures).sets["val"].metrics
    assert metrics["mine_scaled"]["nll"] < metrics["mine"]["nll"]
    sets = {"test": ("id", shots), "far": ("ood", Features.drawn(N, 8))}
    result = evaluate(reader, sets, predictives)
    assert result.reported == "mine"
    assert set(result.detection["far"]) == {
        "msp",
        "entropy",
        "novelty",
        "energy",
        "plugin_msp",
        "plugin_entropy",
    }
    assert result.detection["far"]["novelty"]["auroc"] == 1
    assert result.sets["far"].predictions["mine"].novelty.shape == (N,)
    assert (
        result.sets["test"].metrics["mine"]["novelty"] < 1e-6 < result.sets["far"].metrics["mine"]["novelty"]
    )
    assert "novelty" not in result.sets["far"].metrics["plugin"]
    assert result.settings["samples"] == 8
    save_predictive(tmp_path / "predictive.safetensors", mine, {"method": "kalman"})
    other = Distance()
    load_predictive(tmp_path / "predictive.safetensors", other)
    again = evaluate(reader, sets, {"mine": other}).sets["far"].predictions["mine"]
    assert torch.equal(again.probs, result.sets["far"].predictions["mine"].probs)


def test_what_cannot_be_had_is_one_line(learnt, tmp_path):
    adapter, posterior = learnt
    val = Features.drawn(C, 6)
    with pytest.raises(ConfigError, match="need a posterior, and there is none"):
        evaluate(Reader(adapter), {"a": ("id", val)}, {"mine": Distance()})
    with pytest.raises(ConfigError, match="function is no adapter, so nothing is known of zero-shot"):
        evaluate(Reader(lambda x: x @ torch.ones(D, C), posterior), {"a": ("id", val)}, {"mine": Distance()})
    with pytest.raises(CheckpointError, match="Plugin learns nothing, but was given shots"):
        Plugin().load_state({"shots": 1})
    save_predictive(tmp_path / "predictive.safetensors", Plugin(), {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="labels must lie"):
        fit_temperatures(Reader(adapter), Features(val.ids, val.labels + C, val.inputs), {"plugin": Plugin()})
    with pytest.raises(ValueError, match="needs validation images"):
        fit_temperatures(Reader(adapter), Features([], val.labels[:0], val.inputs[:0]), {"plugin": Plugin()})


def test_temperatures_are_fitted_on_every_kth_image_where_covariances_are_many(learnt, monkeypatch):
    val = Features.drawn(40, 6)
    predictives = {"probit": build_predictive(compose(["predictive=probit"]))}
    monkeypatch.setattr("clipkal.uncertainty.fitting.MOST_COVARIANCE", 8 * C**2 * 20)
    few = fit_temperatures(Reader(*learnt, batch_size=7), val, predictives)
    monkeypatch.undo()
    even = Features(val.ids[::2], val.labels[::2], val.inputs[::2])
    assert few == pytest.approx(fit_temperatures(Reader(*learnt), even, predictives), rel=1e-4)
    assert few != pytest.approx(fit_temperatures(Reader(*learnt), val, predictives), rel=1e-4)
