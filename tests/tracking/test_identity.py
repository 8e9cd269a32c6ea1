"""What a run is called."""

import subprocess
from pathlib import Path

import pytest

from clipkal.tracking import identity
from clipkal.tracking.identity import directory_name, run_id, run_path

CONFIG = {
    "seed": 0,
    "dataset": {"name": "dtd", "path": None, "ood": ["blur", "noise"]},
    "data": {"root": "data", "workers": 0, "cache": None, "progress": True, "on_bad_image": "error"},
    "optimizer": {"lr": 1e-3, "empty": {}},
    "tracking": {"mode": "offline"},
    "output_dir": "outputs",
    "checkpoint_every": 30.0,
}


def test_id_is_stable() -> None:
    assert run_id(CONFIG) == run_id(dict(reversed(list(CONFIG.items()))))
    assert len(run_id(CONFIG)) == 16
    int(run_id(CONFIG), 16)


def test_id_in_this_version_has_not_moved() -> None:
    """A finished run is recognised by its id: changing how it is computed would redo every finished run."""
    assert run_id({"seed": 1, "fewshot": {"shots": 16}, "lr": 0.5}) == "f2cf0d973ac15d83"


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": "elsewhere"},
        {"data": {"root": "/d", "workers": 8, "cache": "/c", "progress": False, "on_bad_image": "error"}},
        {"tracking": {"mode": "online", "tags": ["a"]}},
        {"hydra": {"job": {"num": 3}}},
        {"dataset": {"name": "dtd", "path": None, "ood": ["blur", "noise"], "download": True}},
        {"wandb": {"project": "x"}},
        {"checkpoint_every": 1.0},
    ],
)
def test_id_ignores_what_changes_no_number(change: dict) -> None:
    assert run_id(CONFIG | change) == run_id(CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": None},
        {"seed": False},
        {"seed": "0"},
        {"seed": 1},
        {"device": "cuda"},
        {"optimizer": {"lr": 2e-3, "empty": {}}},
        {"optimizer": {"lr": 1e-3}},
        {"dataset": {"name": "dtd", "path": None, "ood": ["noise", "blur"]}},
        {"data": {"root": "data", "workers": 0, "cache": None, "progress": True, "on_bad_image": "skip"}},
        {"database": "x"},
    ],
)
def test_id_sees_what_does(change: dict) -> None:
    assert run_id(CONFIG | change) != run_id(CONFIG)


def test_a_whole_float_is_the_integer() -> None:
    assert run_id({"lr": 1.0}) == run_id({"lr": 1}) != run_id({"lr": True})
    assert run_id({"x": float("nan")}) == run_id({"x": float("nan")})


def test_differences_name_scientific_keys_only() -> None:
    other = CONFIG | {"seed": 1, "output_dir": "b", "new": 2}
    assert identity.differences(CONFIG, other) == ["new: (absent) → 2", "seed: 0 → 1"]


@pytest.mark.parametrize(
    "overrides, name",
    [
        ([], ""),
        (["seed=1", "dataset=dtd", "output_dir=/x", "tracking=online", "data.root=/d"], ""),
        (["optimizer.lr=0.1", "adapter=linear"], "adapter=linear,optimizer.lr=0.1"),
        (["adapter=linear", "optimizer.lr=0.1"], "adapter=linear,optimizer.lr=0.1"),
        (["dataset.path=a/b c"], "dataset.path=a%2Fb%20c"),
        (["dataset.ood=[blur,noise]"], "dataset.ood=[blur+noise]"),
        (["+experiment=x", "~dataset.path", "++a=1"], "a=1,experiment=x,~dataset.path"),
        (["lr=1", "lr=2"], "lr=2"),
        (["a='x:y'"], "a=%27x%3Ay%27"),
    ],
)
def test_directory_name(overrides: list[str], name: str) -> None:
    assert directory_name(overrides) == name


def test_directory_names_are_safe_short_and_distinct() -> None:
    nasty = [
        "a=../../etc",
        "a=..",
        "a=x" * 200,
        "a=x" * 201,
        "a=" + "ä" * 90,
        "a=\n",
        "a=a+b",
        "a=[a,b]",
        "a=CON|<>",
    ]
    names = [directory_name([text]) for text in nasty]
    assert len(set(names)) == len(nasty)
    for name in names:
        assert len(name) <= 120
        assert name.isascii() and name.isprintable() and not set(name) & set('/\\:*?"<>| ')


def test_run_path_stays_below_the_output_dir() -> None:
    path = run_path("out", dataset="../x", backbone="hf-hub:org/m", method=".", shots=16, seed=0)
    assert path == Path("out/%2E.%2Fx/hf-hub%3Aorg%2Fm/%2E/16shot-seed0")
    path = run_path("out", dataset="d", backbone="b", method="m", shots="all", seed=None, overrides=["q=1"])
    assert path == Path("out/d/b/m/allshot-seedNone,q=1")


def test_environment_and_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    here = identity.environment()
    assert (
        here["git"] is None
        and here["packages"]["numpy"]
        and here["python"]
        and here["cpu"]
        and here["threads"] >= 1
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "f").write_text("1")
    for arguments in (["init", "-q"], ["add", "f"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True, cwd=tmp_path)
    state = identity.git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "f").write_text("2")
    assert identity.git_state(tmp_path) == state | {"dirty": True}


def test_environment_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert identity.git_state(tmp_path) is None
