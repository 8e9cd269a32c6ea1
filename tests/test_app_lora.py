"""Runs that learn inside the tower, from images: `method=loko`, and others with `adapter=lora`."""

import sys
from types import SimpleNamespace

import pytest
import torch
from whole_runs import coloured_images, results_in

from clipkal import cli
from clipkal.app import few_shot_task, run
from clipkal.backbones import pixels
from clipkal.config import compose
from clipkal.errors import ConfigError
from clipkal.methods import make_build
from clipkal.tracking.tensors import read_tensors
from clipkal.training import Plan, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two domains of three classes of five images that colour tells apart."""
    root = tmp_path_factory.mktemp("images")
    coloured_images(root, {"day": 180, "night": 120}, ("circle", "star", "moon"), each=5, noise=60)
    return root


def overrides_for(folder, out, *more):
    quick = ["tracking=disabled", "data.progress=false", "fewshot.shots=1", "fewshot.validation=none"]
    images = ["dataset=folder", f"dataset.path={folder}", "dataset.id_domain=day"]
    return [*images, *quick, f"output_dir={out}", "adapter.rank=2", *more]


def execute(folder, out, *more):
    run(compose(overrides_for(folder, out, *more)))
    return results_in(out)


def test_loko_filters_lora_from_images_and_leaves_a_whole_run_behind(folder, tmp_path):
    directory, results = execute(folder, tmp_path, "method=loko")
    assert results["run"]["adapter"] == "lora" and results["run"]["optimizer"] == "loko"
    assert results["training"]["optimizer"]["route"] == "hooks"
    for one in results["sets"].values():
        assert {"plugin", "probit"} <= set(one["predictive"])
        assert one["predictive"]["probit"]["epistemic"] > 0
    names = {p.name for p in directory.iterdir()}
    assert {"adapter.safetensors", "posterior.safetensors", "predictions.parquet", "shots.json"} <= names
    state, about = read_tensors(directory / "adapter.safetensors")
    assert about["adapter_settings"]["rank"] == 2
    assert any(value.abs().max() > 0 for name, value in state.items() if name.endswith("up.weight"))


def test_adamw_learns_the_same_adapter_with_dropout(folder, tmp_path):
    more = ["method=adamw", "adapter=lora", "adapter.dropout=0.1", "optimizer.epochs=15", "optimizer.lr=0.01"]
    _, results = execute(folder, tmp_path, *more)
    losses = [epoch["train_loss"] for epoch in results["training"]["trials"][0]["curve"][1:]]
    assert losses[-1] < 0.5 * losses[0]


def test_images_that_do_not_fit_in_memory_are_decoded_again_to_the_same_end(folder, tmp_path, monkeypatch):
    _, kept = execute(folder, tmp_path / "kept", "method=loko")
    monkeypatch.setattr(pixels, "KEEP", 0)
    _, lazy = execute(folder, tmp_path / "lazy", "method=loko")
    assert lazy["sets"] == kept["sets"]


@pytest.mark.parametrize("keep", [0, 1 << 29])
def test_an_unreadable_test_image_is_skipped_and_counted(folder, tmp_path, monkeypatch, keep):
    monkeypatch.setattr(pixels, "KEEP", keep)
    broken = tmp_path / "images"
    for path in folder.rglob("*.png"):
        copy = broken / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (broken / "night" / "moon" / "3.png").write_bytes(b"no image")
    _, results = execute(broken, tmp_path / "out", "method=loko", "data.on_bad_image=skip")
    assert results["skipped"] == {"night": ["night/moon/3.png"]}
    assert results["sets"]["night"]["predictive"]["plugin"]["n"] == 14


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["method=loko", "adapter.dropout=0.2"], "adapter.dropout=0.2: a Kalman filter"),
        (["method=loko", "adapter.targets=[fc1]"], "adapter.targets=['fc1']"),
        (["method=kalman", "adapter=lora"], "optimizer=kalman needs adapter=linear"),
        (["method=loko", "adapter.rnk=3"], "did you mean 'adapter.rank'?"),
        (["method=loko", "adapter.towers=text", "fewshot.subset=base"], "type adapter.towers=vision"),
    ],
)
def test_what_lora_cannot_do_is_one_clear_line(folder, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setattr(sys, "argv", ["clipkal", *overrides_for(folder, tmp_path, *more)])
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize("method", ["loko", "adamw"])
def test_the_vision_tower_is_transferred_to_new_classes(folder, tmp_path, method):
    more = ["optimizer.epochs=1", "optimizer.lr=0.01"] if method == "adamw" else []
    more = [f"method={method}", "adapter=lora", "fewshot.subset=base", *more]
    _, results = execute(folder, tmp_path, *more)
    assert results["run"]["classes"] == ["circle", "moon"]
    new = results["sets"]["new"]
    assert (new["role"], new["class_names"]) == ("transfer", ["star"])
    assert new["predictive"]["plugin"]["accuracy"] == 1  # the only class there is
    assert ("probit" in new["predictive"]) == (method == "loko")


def test_another_dataset_is_asked_of_the_adapted_tower(folder, tmp_path):
    from clipkal.app import make_adapter

    more = ["method=loko", f"fewshot.transfer=[folder:{folder}/night]", "dataset.ood=[]"]
    directory, results = execute(folder, tmp_path, *more)
    night = results["sets"]["night"]
    cfg = compose(overrides_for(folder, tmp_path, *more))
    task, backbone, _ = few_shot_task(cfg)
    adapter, other = make_adapter(cfg, task, backbone), task.transfer["night"]
    state, _ = read_tensors(directory / "adapter.safetensors")
    adapter.load_state_dict(state)
    with adapter.classes(other.text_features), torch.no_grad():
        right = adapter(other.test.inputs[:]).argmax(1) == other.test.labels
    assert night["predictive"]["plugin"]["accuracy"] == pytest.approx(right.double().mean().item())
    assert night["predictive"]["probit"]["epistemic"] > 0


def test_features_cannot_be_adapted():
    task = SimpleNamespace(name="mine", shots=None)
    with pytest.raises(ConfigError, match="adapter=lora learns from images"):
        pixels.pixelise(None, task)  # type: ignore[arg-type]


def test_a_stopped_filter_goes_on_bit_for_bit(folder, tmp_path):
    from clipkal.app import make_adapter

    cfg = compose(overrides_for(folder, tmp_path, "method=loko", "fewshot.shots=2", "optimizer.batch_size=2"))
    task, backbone, _ = few_shot_task(cfg)

    class Stopping:
        """Gives back the state it was made with; keeps that of the second step."""

        def __init__(self, state=None):
            self.given, self.kept, self.steps = state, None, 0

        def restore(self):
            return self.given

        def after_step(self, state):
            self.steps += 1
            if self.steps == 2:
                torch.save(state(), tmp_path / "state.pt")
                self.kept = torch.load(tmp_path / "state.pt", weights_only=True)

    first, second = Stopping(), None
    found = []
    for saver in (first, "resumed"):
        saver = Stopping(first.kept) if saver == "resumed" else saver
        adapter = make_adapter(cfg, task, backbone)
        train(adapter, make_build(cfg), task, Plan(epochs=1, batch_size=2, seed=1), saver)
        found.append(adapter.state_dict())
        second = saver
    assert second.steps == first.steps - 2
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
