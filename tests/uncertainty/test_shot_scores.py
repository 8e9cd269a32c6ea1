"""Scores of images as they are streamed: those of the whole set, and only where features cost nothing."""

import pytest
import torch
from test_leave_one_out import learnt, shots

from clipkal.evaluation import evaluate
from clipkal.metrics import Gaussians, NearestShot, energy, nearest_shot
from clipkal.recording.predictions import table
from clipkal.uncertainty import Novelty, Plugin, Predictive, Reader, Sampled
from clipkal.uncertainty.shot_scores import SOURCES, ShotScores


class NeedsFeatures(Predictive):
    needs = ("features",)

    def novelty(self, chunk):
        return chunk.features[:, 0].abs()

    def predict(self, chunk):
        return Plugin().predict(chunk)


def test_batches_give_the_scores_of_the_whole_set_to_detection_errors_and_the_table() -> None:
    data, test, text = shots()
    adapter, optimizer = learnt(data, text)
    far = test.with_labels(test.labels)
    sets = {"test": ("id", test), "far": ("ood", far), "new": ("transfer", far)}
    chosen = {"plugin": Plugin(), "novel": NeedsFeatures()}
    found = evaluate(Reader(adapter, optimizer, batch_size=77), sets, chosen, shots=data)
    x, s = test.inputs, data.inputs
    logits = adapter(x).detach()
    expected = Gaussians(s.double(), data.labels).scores(x.double())
    expected |= {"energy": energy(logits), "nearest_shot": nearest_shot(x, s)}
    assert set(found.sets["test"].image_scores) == set(expected) == set(SOURCES)
    for name, values in expected.items():
        torch.testing.assert_close(found.sets["test"].image_scores[name], values, rtol=1e-5, atol=1e-5)
        entry = found.detection["far"][name]
        assert entry["auroc"] == 0.5 and entry["predictive"] == SOURCES[name]
    errors = found.sets["test"].metrics["novel"]["errors"]
    assert set(errors) == {"msp", "entropy", "novelty", *SOURCES}
    assert found.detection["far"]["novelty"]["predictive"] == "novel"
    frame = table(found).to_pandas()
    novel = frame[frame.predictive == "novel"]
    assert novel.novelty[:600].tolist() == pytest.approx(x[:, 0].abs().tolist())
    assert frame[frame.predictive == "plugin"].novelty.isna().all()
    assert frame.nearest_shot.notna().all()


def test_the_distance_to_the_nearest_shot_is_measured_once(monkeypatch) -> None:
    data, test, text = shots()
    reader, novelty = Reader(*learnt(data, text)), Novelty()
    novelty.fit(reader, data, None)
    alone = evaluate(reader, {"test": ("id", test)}, {"novelty": novelty})
    measured: list[int] = []
    distance = NearestShot.distance
    monkeypatch.setattr(
        NearestShot,
        "distance",
        lambda self, images, *how: measured.append(len(images)) or distance(self, images, *how),
    )
    found = evaluate(reader, {"test": ("id", test)}, {"novelty": novelty}, shots=data)
    assert measured.count(len(test)) == 1
    novel = [one.sets["test"].predictions["novelty"].novelty for one in (alone, found)]
    assert torch.equal(*novel) and novel[0].any()


def test_a_set_without_distances_has_none_in_the_table() -> None:
    data, test, text = shots()
    found = evaluate(Reader(*learnt(data, text)), {"test": ("id", test)}, shots=data)
    found.sets["new"] = evaluate(Reader(*learnt(data, text)), {"new": ("transfer", test)}).sets["new"]
    frame = table(found).to_pandas()
    assert frame[frame.set == "new"].nearest_shot.isna().all()
    assert frame[frame.set == "test"].nearest_shot.notna().all()


def test_towers_are_not_run_again_for_distances_alone() -> None:
    data, _, text = shots()
    adapter, optimizer = learnt(data, text)
    reader = Reader(adapter, optimizer)
    assert ShotScores.of(reader, [Sampled()], data).needs == ("features",)
    adapter.inputs = "images"
    assert ShotScores.of(reader, [Sampled()], data).needs == ()
    assert ShotScores.of(reader, [Sampled()], None).scores("test") == {}
