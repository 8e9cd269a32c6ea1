"""Sweeps: what jobs of one worker share, that sharing changes no number, and what is said at the end."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from hydra import initialize_config_dir
from hydra._internal import config_loader_impl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from safetensors.torch import load_file

from clipkal import cli
from clipkal.app import run
from clipkal.backbones.cache import load_or_compute
from clipkal.backbones.memory import Memory, shared
from clipkal.config import compose, conf_dir, register
from clipkal.config.once import once
from clipkal.data import drawing
from clipkal.recording import sweep_summary
from clipkal.recording.sweep_notes import NOTES

QUICK = [
    "dataset=digits",
    "tracking=disabled",
    "fewshot.shots=2",
    "predictive.samples=8",
    "data.progress=false",
]
CHOICES = [
    ["method=kalman", "seed=1"],
    ["method=kalman_online", "seed=2", "optimizer.epochs=3"],
    ["method=adamw", "optimizer.lr_grid=[0.1,0.2]"],
    ["method=adamw", "adapter=lora", "tracking=offline"],
    ["dataset=digits", "dataset.ood=[noisy]", "+hydra.job.env_set.A=b"],
]  # fmt: skip


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["clipkal", *words])
    cli.main()


CHANCE = ("seconds", "overrides", "peak_memory_mib")


def without(value, *names):
    if isinstance(value, dict):
        return {key: without(one, *names) for key, one in value.items() if key not in names}
    return [without(one, *names) for one in value] if isinstance(value, list) else value


# -- what is composed once --


@pytest.fixture
def loaded():
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield lambda words: loader.load_configuration("config", list(words), RunMode.RUN)


def test_what_is_composed_once_is_what_hydra_composes(loaded, monkeypatch):
    plain = [OmegaConf.to_yaml(loaded(words)) for words in CHOICES]
    read = []
    make = config_loader_impl.ConfigLoaderImpl._load_single_config
    count = lambda self, default, repo: read.append(default) or make(self, default, repo)
    monkeypatch.setattr(config_loader_impl.ConfigLoaderImpl, "_load_single_config", count)
    with once():
        assert [OmegaConf.to_yaml(loaded(words)) for words in CHOICES] == plain
        read.clear()
        changed = loaded(CHOICES[0])
        changed.seed = 99
        assert [OmegaConf.to_yaml(loaded(words)) for words in CHOICES] == plain, (
            "a job got the copy of another"
        )
        assert not read
        with pytest.raises(HydraException, match="kalmen"):
            loaded(["method=kalmen"])
        with pytest.raises(HydraException, match="Could not override"):
            loaded(["sead=2"])
    loaded(CHOICES[0])
    assert read, "outside of the block files are read again"


# -- what is loaded once --


def test_memory_keeps_what_was_used_last_within_its_bytes():
    memory, entry = Memory(most=100), lambda bytes_: {"x": torch.zeros(bytes_, dtype=torch.uint8)}
    memory.put("a", entry(40))
    memory.put("b", entry(40))
    assert memory.get("a") is not None  # now b is the oldest
    memory.put("c", entry(40))
    assert [name for name in "abc" if memory.get(name)] == ["a", "c"]
    memory.put("c", entry(60))  # in its own place
    assert [name for name in "abc" if memory.get(name)] == ["a", "c"]
    memory.put("d", entry(101))
    assert not any(map(memory.get, "abcd"))


def test_memory_does_not_grow_with_the_seeds_of_a_sweep():
    """Each draws shots of its own; the test set, which all ask for, stays."""
    memory = Memory(count=3)
    memory.put("test", {"x": torch.zeros(1)})
    for seed in range(20):
        memory.put(str(seed), {"x": torch.zeros(1)})
        assert memory.get("test") is not None
    assert [name for name in map(str, range(20)) if memory.get(name)] == ["18", "19"]


def test_entries_are_shared_within_the_block_only_and_never_with_another_header(tmp_path):
    made = []
    ask = lambda cache_dir, name: load_or_compute(
        cache_dir, {"kind": "test", "name": name}, lambda: made.append(name) or {"x": torch.ones(2)}
    )
    with shared():
        first = ask(False, "share me")
        assert ask(False, "share me") is first
        ask(False, "share me not")
        assert made == ["share me", "share me not"]
        assert ask(tmp_path, "share me") is first
    assert ask(False, "share me") is not first


def test_a_loaded_dataset_is_shared_until_its_settings_or_its_file_change(tmp_path, monkeypatch):
    loads = []
    give = lambda cfg, root: loads.append(cfg.source) or SimpleNamespace()
    monkeypatch.setattr(drawing, "load_dataset", give)
    monkeypatch.setattr(drawing, "_last", None)
    digits, noisy = compose(["dataset=digits"]), compose(["dataset=digits", "dataset.ood=[noisy]"])
    first = drawing.shared_dataset(digits)
    assert drawing.shared_dataset(compose(["dataset=digits", "seed=2", "method=adamw"])) is first
    assert drawing.shared_dataset(noisy) is not first
    path = tmp_path / "f.npz"
    path.write_bytes(b"one")
    of_file = compose(["dataset=features", f"dataset.path={path}", "backbone=precomputed"])
    first = drawing.shared_dataset(of_file)
    assert drawing.shared_dataset(of_file) is first
    path.write_bytes(b"other")
    assert drawing.shared_dataset(of_file) is not first
    for words in (["dataset=digits", "data.verify=true"], ["dataset=folder", f"dataset.path={tmp_path}"]):
        assert drawing.shared_dataset(compose(words)) is not drawing.shared_dataset(compose(words))
    assert len(loads) == 8


# -- the same results --


def test_a_job_of_a_sweep_has_the_results_of_a_run_alone_bit_for_bit(tmp_path, monkeypatch):
    here = [*QUICK, "dataset.ood=[noisy]"]
    command(
        monkeypatch, "-m", *here, "seed=1,2", "method=kalman,zeroshot", f"output_dir={tmp_path / 'sweep'}"
    )
    alone = [["seed=2", "method=zeroshot"], ["seed=2", "method=kalman"]]
    for words in alone:
        run(compose([*here, *words, f"output_dir={tmp_path / 'alone'}"]))
    found = sorted((tmp_path / "alone").rglob("results.json"))
    assert len(found) == len(alone)
    for path in found:
        (other,) = (tmp_path / "sweep").glob(f"*/*/{path.parent.parent.name}/2shot-seed2*/results.json")
        mine, theirs = (without(json.loads(p.read_text()), *CHANCE) for p in (path, other))
        assert mine == theirs
        assert (path.parent / "predictions.parquet").read_bytes() == (
            other.parent / "predictions.parquet"
        ).read_bytes()
        for tensors in path.parent.glob("*.safetensors"):
            one, two = load_file(tensors), load_file(other.parent / tensors.name)
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)


# -- the end of a sweep --


def marked(folder, seed, accuracy, nll, **more):
    path = folder / "digits" / "mini" / "kalman" / f"16shot-seed{seed}--optimizer.lr-0.1"
    path.mkdir(parents=True)
    figures = {"test/plugin/accuracy": 0.1, "test/novelty/accuracy": accuracy, "test/novelty/nll": nll}
    content = {"schema_version": 1, "run_id": "0" * 16, "summary": figures | more, "files": {}}
    (path / "finished.json").write_text(json.dumps(content))
    return ended("done", f"seed={seed}", path=str(path), out=str(folder))


def ended(status, job, at=0.0, process=1, **more):
    return {"status": status, "job": job, "at": at, "process": process, **more}


def test_the_summary_has_means_over_seeds_and_ood_sets_of_the_reported_predictive(tmp_path):
    ood = {f"{name}/novelty/accuracy": value for name, value in (("noisy", 0.4), ("neon", 0.6))}
    ood |= {f"detection/{name}/msp/auroc": value for name, value in (("noisy", 0.7), ("neon", 0.9))}
    noted = [{"status": "planned", "job": "", "count": 6, "keys": ["seed"]}]
    noted += [ended("began", f"seed={seed}") for seed in (2, 3, 4)]
    noted += [marked(tmp_path, 1, 0.8, 1.0, **ood), marked(tmp_path, 2, 0.9, 2.0, **ood)]
    noted += [ended("failed", "method=a seed=3", reason="no such file")]
    _, header, row, counts, *rest = sweep_summary.summary(noted)
    assert header.split() == ["run", "seeds", "ID", "acc", "NLL", "ECE", "OOD", "acc", "NLL", "ECE", "AUROC"]
    name = "digits/mini/kalman/16shot--optimizer.lr-0.1"
    assert row.split() == [name, "2", "85.0%", "1.500", "–", "50.0%", "–", "–", "80.0%"]
    assert counts.strip() == "6 jobs: 2 done (1 before), 1 failed, 2 stopped, 1 not begun"
    assert [line.strip() for line in rest[:2]] == ["1 failed: no such file", "seed=3"]
    assert rest[-2].startswith("disk: 0 kB a job (finished.json 0 kB)")
    assert rest[-1] == f"next: clipkal-report {tmp_path}"


def test_a_file_that_several_runs_link_to_is_not_counted_for_each(tmp_path):
    (tmp_path / "service.log").write_bytes(bytes(1_000_000))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_bytes(bytes(2000))
        (tmp_path / name / "service.log").symlink_to(tmp_path / "service.log")
    assert sweep_summary._disk([tmp_path / "one", tmp_path / "two"]) == "disk: 2 kB a job (results.json 2 kB)"


def test_seeds_are_one_row_where_their_names_end_in_digests_too(tmp_path):
    noted = []
    for seed, digest in ((1, "0a1b2c3d"), (2, "4e5f6a7b")):
        path = tmp_path / "d" / "mini" / "m" / f"2shot-seed{seed}--dataset.ood-noisy-{digest}"
        path.mkdir(parents=True)
        more = {"path": str(path), "out": str(tmp_path)}
        noted.append(ended("done", f"dataset.ood=[noisy] seed={seed}", **more))
    *_, row = list(sweep_summary.summary(noted))[:3]
    assert row.split()[:2] == ["d/mini/m/2shot--dataset.ood-noisy", "2"]


def test_names_in_the_summary_leave_out_the_settings_that_all_runs_have():
    names = ["a/1shot--x-1--y-2", "b/1shot--x-1--y-3"]
    assert list(sweep_summary._short(names)) == ["a/1shot--y-2", "b/1shot--y-3"]
    assert sweep_summary._short(names[:1]) == names[:1]


def test_a_long_summary_is_cut_and_says_so():
    failed = [ended("failed", f"seed={i}", reason=f"reason {i % 45}") for i in range(450)]
    lines = list(sweep_summary.summary(failed))
    assert lines[1] == "  10 failed: reason 0"
    assert lines[2:9] == [*(f"    seed={i}" for i in range(0, 45 * 6, 45)), "    … and 4 more"]
    assert sum(" failed: " in line for line in lines) == sweep_summary.MOST
    assert "  … and 5 more reasons" in lines
    assert not any("next" in line for line in lines), "nothing to report on"


@pytest.mark.parametrize(
    ("on_error", "counts"),
    [("continue", "3 jobs: 2 done, 1 failed"), ("stop", "3 jobs: 1 done, 1 failed, 1 not begun")],
)
def test_after_a_failed_job_the_others_go_on_or_are_not_begun(
    tmp_path, monkeypatch, capsys, on_error, counts
):
    words = ["fewshot.shots=2,9999,1", "method=zeroshot", "dataset.ood=[noisy]", f"sweep.on_error={on_error}"]
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "-m", *QUICK[:2], *words, f"output_dir={tmp_path}")
    out = capsys.readouterr().out
    assert caught.value.code == 2
    assert counts in out
    assert "fewer than fewshot.shots=9999" in out.partition(" failed: ")[2]
    assert out.strip().endswith(f"next: clipkal-report {tmp_path}")
    assert len(list(tmp_path.rglob("finished.json"))) == int(counts[8])
    assert not list(tmp_path.glob(".sweep-*"))
    assert NOTES not in os.environ


def test_a_sweep_over_methods_may_set_what_the_default_method_has_not(tmp_path, monkeypatch, capsys):
    words = ["method=sgd,kalman_online", "optimizer.epochs=1", "optimizer.batch_size=20", "dataset.ood=[]"]
    command(monkeypatch, "-m", *QUICK[:3], "data.progress=false", *words, f"output_dir={tmp_path}")
    names = [path.parent.name for path in tmp_path.rglob("finished.json")]
    assert len(names) == 2
    assert all("optimizer.batch_size-20--optimizer.epochs-1" in name for name in names)
    assert "2 jobs: 2 done" in capsys.readouterr().out


# -- sweepers that choose --

TUNE = [
    "hydra/sweeper=tune",
    "hydra.sweeper.n_trials=2",
    "optimizer.lr=interval(1e-4,1e-1)",
    "optimizer.epochs=2",
]


@pytest.fixture
def optuna():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'clipkal[tune]'")


@pytest.mark.usefixtures("optuna")
def test_the_sweeper_minimises_the_nll_of_the_validation_images(tmp_path, monkeypatch):
    words = [*QUICK[:3], "method=adamw", "dataset.ood=[noisy]", f"output_dir={tmp_path}", *TUNE]
    command(monkeypatch, "-m", *words)
    found = OmegaConf.load(tmp_path / "optimization_results.yaml")
    runs = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert len(runs) == 2
    best = min(runs, key=lambda one: one["training"]["val_nll"])
    assert found.best_value == best["training"]["val_nll"]
    assert f"optimizer.lr={found.best_params['optimizer.lr']}" in best["run"]["overrides"]


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sweep.objective=test/nll"], "settings are never chosen by a test set, not 'test/nll'"),
        (["sweep.objective=ood/noisy/accuracy"], "settings are never chosen by a test set"),
        (["fewshot.validation=none"], "type fewshot.validation=fewshot, and a method that learns"),
    ],
)
def test_a_sweeper_without_a_fair_objective_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, words, line
):
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "-m", *QUICK[:3], "method=adamw", f"output_dir={tmp_path}", *TUNE, *words)
    assert caught.value.code == 2
    assert line in capsys.readouterr().err
    assert not list(tmp_path.rglob("results.json"))
