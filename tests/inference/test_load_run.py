"""A loaded run says what the run itself said, and a folder that is no whole run is one clear line."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import clipkal
from clipkal import files
from clipkal.adapters import LinearAdapter
from clipkal.backbones.sources import MINI_FOLDER
from clipkal.data.drawing import draw
from clipkal.errors import BackboneError, CheckpointError, ConfigError, DataError
from clipkal.optim import Kalman, KalmanCLIP, KalmanFilter, LoKO, OnlineKalman, RKalman
from clipkal.recording.recorder import ARTIFACT
from clipkal.tracking.tensors import packed, read_tensors, unpacked, write_tensors

QUICK = ["optimizer.epochs=2", "optimizer.lr_grid=[0.01]"]
RUNS = [
    ("method=zeroshot",),
    ("method=adamw", *QUICK, "predictive.temperature_scaling=true"),
    ("method=kalman", "predictive=sampled"),
    ("method=kalman", "predictive=probit"),
    ("method=kalman", "predictive=laplace_bridge", "predictive.temperature_scaling=true"),
    ("method=kalman", "predictive=novelty"),
    ("method=adamw", "predictive=novelty", *QUICK),
    ("method=kalman_online", "predictive=sampled"),
    ("method=kalman_online",),
    ("method=kalman_clip",),
    ("method=adamw", "adapter=lora", "adapter.rank=2", *QUICK),
    ("method=loko", "adapter.rank=2"),
]


@pytest.mark.parametrize("settings", RUNS, ids=" ".join)
def test_it_predicts_what_the_run_predicted(finished, settings):
    path = finished(*settings)
    run = clipkal.load_run(path)
    frame, task = pd.read_parquet(path / "predictions.parquet"), draw(run.cfg)
    for name, images in {"test": task.test, **task.ood}.items():
        for predictive in run.predictives:
            there = frame[(frame.set == name) & (frame.predictive == predictive)]
            here = run.predict(images, predictive)
            assert here.ids == there.id.tolist()
            assert np.abs(here.probs.numpy() - np.stack(there.probs)).max() < 1e-6
            for part in ("entropy", "aleatoric", "epistemic"):
                assert np.abs(getattr(here, part).numpy() - there[part]).max() < 1e-6
    assert run.predictive == run.cfg.predictive.name


def test_a_run_on_features_predicts_features_and_says_that_it_cannot_read_images(finished, tmp_path):
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=1)
    labels = torch.arange(60) % 3
    rows = torch.nn.functional.normalize(text[labels] + 0.3 * torch.randn(60, 16, generator=generator), dim=1)
    arrays = {
        "image_features": rows.numpy(),
        "text_features": text.numpy(),
        "logit_scale": 20.0,
        "label": labels.numpy(),
    }
    split, domain = torch.arange(60) % 5 % 3, torch.zeros(60, dtype=torch.int64)
    np.savez(
        tmp_path / "f.npz", **arrays, split=split.numpy(), domain=domain.numpy(), classes=["a", "b", "c"], domains=["x"],
        splits=["train", "val", "test"],
    )  # fmt: skip
    settings = [
        "dataset=features",
        f"dataset.path={tmp_path / 'f.npz'}",
        "backbone=precomputed",
        "method=kalman",
    ]
    path = finished(*settings, own=False)
    run = clipkal.load_run(path)
    frame = pd.read_parquet(path / "predictions.parquet")
    there = frame[(frame.set == "test") & (frame.predictive == run.predictive)]
    here = run.predict_features(rows[split == 2])
    assert np.abs(here.probs.numpy() - np.stack(there.probs)).max() < 1e-6
    with pytest.raises(DataError, match=r"features are \[2, 5\], expected \[N, 16\]"):
        run.predict_features(torch.ones(2, 5))
    with pytest.raises(ConfigError, match="learnt from features that were computed elsewhere"):
        run.predict(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    "make",
    [Kalman, OnlineKalman, RKalman, KalmanCLIP, LoKO, lambda m: KalmanFilter(m, covariance="lowrank")],
    ids=["kalman", "kalman_online", "rkalman", "kalman_clip", "loko", "lowrank"],
)
def test_a_posterior_that_was_saved_draws_what_it_drew(make, tmp_path):
    generator = torch.Generator().manual_seed(1)
    unit = lambda *shape: torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)
    text, shots, new, labels = unit(4, 12), unit(20, 12), unit(7, 12), torch.arange(20) % 4
    adapter = LinearAdapter(text, 20.0)
    optimizer = make(adapter)
    optimizer.step(shots, labels)
    tensors, structure = packed(optimizer.extra_state())
    write_tensors(tmp_path / "p.safetensors", tensors, {"state": structure})
    loaded, about = read_tensors(tmp_path / "p.safetensors")
    other = LinearAdapter(text, 20.0)
    other.load_state_dict(adapter.state_dict())
    again = make(other)
    again.load_extra_state(unpacked(loaded, about["state"]))
    seeded = lambda: torch.Generator().manual_seed(5)
    assert torch.equal(
        optimizer.posterior.logit_samples(new, 9, seeded()), again.posterior.logit_samples(new, 9, seeded())
    )
    assert torch.equal(optimizer.posterior.logit_covariance(new), again.posterior.logit_covariance(new))


def test_the_folder_of_its_artifact_is_enough(finished, tmp_path):
    whole = finished("method=kalman", "predictive=sampled")
    for name in ARTIFACT:
        if (whole / name).exists():
            shutil.copy2(whole / name, tmp_path / name)
    here, there = clipkal.load_run(tmp_path), clipkal.load_run(whole)
    images = draw(here.cfg).test
    assert torch.equal(here.predict(images).probs, there.predict(images).probs)
    assert here.threshold(0.25) == there.threshold(0.25)
    assert not (tmp_path / "metrics.csv").exists()


def test_one_image_alone_is_predicted_as_among_others(finished):
    run = clipkal.load_run(finished("method=kalman", "predictive=sampled"))
    images = draw(run.cfg).test
    together = run.predict(images)
    alone = [run.predict(images.decode(i)) for i in range(3)]
    assert torch.allclose(together.probs[:3], torch.cat([one.probs for one in alone]), atol=1e-5)


def test_it_abstains_on_the_share_of_its_own_test_images(finished):
    run = clipkal.load_run(finished("method=kalman", "predictive=sampled"))
    images = draw(run.cfg).test
    for share in (0.0, 0.25, 0.5):
        found = run.predict(images, reject=share)
        assert (~found.accepted).sum() == round(share * len(found))
        assert found.entropy[found.accepted].max() <= run.threshold(share)
    for wrong in (1.0, float("nan"), "0.1"):
        with pytest.raises(ConfigError, match=rf"reject={wrong}: give the share"):
            run.threshold(wrong)
    with pytest.raises(ConfigError, match=r"predictive=probit: the run .* has plugin, sampled"):
        run.predict(images, "probit")


def test_its_conformal_sets_are_those_that_the_run_judged(finished):
    path = finished("method=kalman", "predictive=sampled")
    run, judged = (
        clipkal.load_run(path),
        json.loads((path / "results.json").read_text())["sets"]["test"]["conformal"],
    )
    images = draw(run.cfg).test
    found = run.predict(images, sets=True)
    assert found.sets.sum(1).double().mean().item() == pytest.approx(judged["lac"]["size"])
    assert found.sets[torch.arange(len(found)), images.labels].double().mean() == pytest.approx(
        judged["lac"]["coverage"]
    )
    assert found.columns()["set"][0] == [
        n for n, inside in zip(run.class_names, found.sets[0], strict=True) if inside
    ]
    with pytest.raises(
        ConfigError, match=r"conformal sets for predictive=plugin: the run has for sampled only"
    ):
        run.predict(images, "plugin", sets=True)


def test_memory_is_flat_however_many_images_there_are(finished):
    """600 images come in portions of no more than the batch, and none is asked for before its turn."""
    run = clipkal.load_run(finished("method=kalman", "predictive=sampled"), batch_size=50)
    run.reader.batch_size = run.adapter.batch_size = 100
    asked = []

    class Many:
        ids = tuple(f"image {i}" for i in range(600))
        one = draw(run.cfg).test.decode(0)

        def __len__(self):
            return len(self.ids)

        def decode(self, i):
            asked.append(i)
            return self.one

    stream = run.stream(Many(), workers=1)
    assert len(next(stream)) == 100
    assert len(asked) < 400
    assert [len(portion) for portion in stream] == [100] * 5


# -- what is no whole run --


def told(path, **how):
    with pytest.raises(CheckpointError) as caught:
        clipkal.load_run(path, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_no_finished_run(spoilt, tmp_path):
    assert "no such folder; give a run directory" in told(tmp_path / "nowhere")
    assert "is a file, not a run directory" in told(spoilt / "results.json")
    assert f"it holds runs: give one of them, such as {spoilt}" in told(tmp_path)
    (spoilt / "finished.json").write_text("{half")
    assert "finished.json is damaged" in told(spoilt)
    (spoilt / "finished.json").unlink()
    assert "the run has not finished; its command, typed again, goes on" in told(spoilt)


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "adapter.safetensors", "posterior.safetensors"]
)
def test_a_damaged_file_is_named(spoilt, name):
    whole = (spoilt / name).read_bytes()
    (spoilt / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{spoilt / name} is not what the run wrote" in told(spoilt)
    (spoilt / name).unlink()
    assert f"{spoilt / name} is missing" in told(spoilt)


def rewrite(folder, name, change):
    """Changes a file, and finished.json as if the run had written it so."""
    change(folder / name)
    marker = json.loads((folder / "finished.json").read_text())
    if (folder / name).exists():
        marker["files"][name], marker["sizes"][name] = (
            files.sha256(folder / name),
            (folder / name).stat().st_size,
        )
    else:
        del marker["files"][name], marker["sizes"][name]
    files.write_json(folder / "finished.json", marker)


def test_runs_of_other_versions_are_told_apart(spoilt):
    marker = json.loads((spoilt / "finished.json").read_text())
    newer = marker | {"schema_version": 7, "versions": {"clipkal": "3.1"}}
    files.write_json(spoilt / "finished.json", newer)
    assert (
        "has schema version 7 (written by clipkal 3.1), this clipkal reads 1; read it with clipkal 3.1"
        in told(spoilt)
    )
    files.write_json(spoilt / "finished.json", marker | {"versions": {"clipkal": "0.1.0"}})
    old = lambda path: path.write_text(re.sub(r"_target_: clipkal.adapters.*", "rank: 4", path.read_text()))
    rewrite(spoilt, "config.yaml", old)
    assert "config.yaml is of another version of clipkal (written by clipkal 0.1.0); read it" in told(spoilt)


def test_a_run_without_its_classes_or_a_whole_posterior_still_gives_the_plug_in(spoilt):
    """As clipkal wrote runs before they could be loaded."""
    images = draw(clipkal.load_run(spoilt).cfg).test
    before = clipkal.load_run(spoilt).predict(images, "plugin")

    def without_structure(path):
        tensors, about = read_tensors(path)
        write_tensors(path, tensors, {key: value for key, value in about.items() if key != "state"})

    rewrite(spoilt, "posterior.safetensors", without_structure)
    rewrite(spoilt, "classes.safetensors", lambda path: path.unlink())
    run = clipkal.load_run(spoilt)
    assert torch.equal(run.predict(images, "plugin").probs, before.probs)
    with pytest.raises(
        CheckpointError, match=r"predictive=sampled needs the posterior whole.*predictive=plugin"
    ):
        run.predict(images)


def test_weights_that_are_gone_or_others_are_told(spoilt, tmp_path):
    def others(path):
        tensors, about = read_tensors(path)
        about["backbone"]["weights"] = "0" * 64
        write_tensors(path, tensors, about)

    rewrite(spoilt, "classes.safetensors", others)
    run = clipkal.load_run(spoilt)
    with pytest.raises(CheckpointError, match="learnt on other weights of backbone=mini than are here"):
        run.predict(np.zeros((9, 9, 3), np.uint8))
    gone = lambda path: path.write_text(
        path.read_text().replace("model: mini", f"model: local-dir:{tmp_path}/gone")
    )
    rewrite(spoilt, "config.yaml", gone)
    with pytest.raises(BackboneError, match="gone: no such folder"):
        clipkal.load_run(spoilt).predict(np.zeros((9, 9, 3), np.uint8))


def test_weights_that_were_moved_are_found_where_they_are_now(finished, tmp_path):
    shutil.copytree(MINI_FOLDER, tmp_path / "weights")
    settings = [
        "backbone=open_clip",
        f"backbone.model=local-dir:{tmp_path / 'weights'}",
        "backbone.name=mine",
    ]
    path = finished(*settings, "method=zeroshot")
    images = draw(clipkal.load_run(path).cfg).test
    before = clipkal.load_run(path).predict(images)
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    with pytest.raises(BackboneError, match="weights: no such folder"):
        clipkal.load_run(path).predict(images)
    after = clipkal.load_run(path, weights=tmp_path / "elsewhere").predict(images)
    assert torch.equal(before.probs, after.probs)
