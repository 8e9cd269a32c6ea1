"""What a run is called."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from clipkal.tracking import identity, old_names
from clipkal.tracking.identity import run_id, run_path

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
        {
            "data": {
                "root": "/d",
                "workers": 8,
                "cache": "/c",
                "progress": False,
                "verify": True,
                "on_bad_image": "error",
            }
        },
        {"tracking": {"mode": "online", "tags": ["a"]}},
        {"hydra": {"job": {"num": 3}}},
        {"dataset": {"name": "dtd", "path": None, "ood": ["blur", "noise"], "download": True}},
        {"wandb": {"project": "x"}},
        {"checkpoint_every": 1.0},
        {"validate_every": 0.1},
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


def name(*overrides: str, shots: int | str = 16, seed: int | None = 1) -> str:
    return run_path(
        "o", dataset="d", backbone="b", method="m", shots=shots, seed=seed, overrides=overrides
    ).name


@pytest.mark.parametrize(
    "overrides, rest",
    [
        ([], ""),
        (
            ["seed=1", "dataset=dtd", "output_dir=/x", "tracking=online", "data.root=/d", "data.verify=true"],
            "",
        ),
        (["optimizer.lr=0.1", "adapter=linear"], "--adapter-linear--optimizer.lr-0.1"),
        (["adapter=linear", "optimizer.lr=0.1"], "--adapter-linear--optimizer.lr-0.1"),
        (["optimizer.lr=1e-3"], "--optimizer.lr-1e-3"),
        (["lr=1", "lr=2"], "--lr-2"),
        (["dataset.path=a/b c"], "--dataset.path-a-b-c-44686a05"),
        (["dataset.ood=[blur,noise]"], "--dataset.ood-blur-noise-fa687982"),
        (["+experiment=x", "~dataset.path", "++a=1"], "--a-1--experiment-x--dataset.path-7019b68d"),
    ],
)
def test_a_run_is_named_by_what_defines_it(overrides: list[str], rest: str) -> None:
    assert name(*overrides) == f"16shot-seed1{rest}"


def test_names_need_no_quotes_are_short_and_distinct() -> None:
    nasty: list[list[str]] = [
        *(
            [text]
            for text in ("a=../../etc", "a=..", "a=", "a", "~a", "a=\n", "a=a+b", "a=[a,b]", "a=CON|<>")
        ),
        *([text] for text in ("a=" + "x" * 200, "a=" + "x" * 201, "a=" + "ä" * 90, "a=\udc80", "a='$(rm)'")),
        *([text] for text in ("a-b=c", "a=b-c", "a=b--c-d", "a=-1", "a=1-", "a=1", "a=.1")),
        ["a=b", "c=d"],
        ["a=b", "c"],
    ]
    names = [name(*overrides) for overrides in nasty]
    assert len(set(names)) == len(nasty)
    for one in names:
        assert len(one) <= 120 and shlex.quote(one) == one and re.fullmatch(r"[A-Za-z0-9._-]+", one)


@pytest.mark.parametrize("part", ["dataset", "backbone", "method"])
def test_every_part_of_the_path_is_plain_distinct_and_below_the_output_dir(part: str) -> None:
    words = [
        "../x",
        "..",
        ".",
        ".x",
        "x",
        "-x",
        "",
        "a/b",
        "a-b",
        "a--b",
        "a=b",
        "hf-hub:org/m",
        "中",
        "x" * 300,
    ]
    usual = {"dataset": "d", "backbone": "b", "method": "m", "shots": "all", "seed": None}
    paths = [run_path("out", **usual | {part: word}) for word in words]  # type: ignore[arg-type]
    assert len(set(paths)) == len(words)
    for path in paths:
        assert path.parts[0] == "out" and len(path.parts) == 5 and path.name == "allshot-seedNone"
        assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}", one) for one in path.parts)
    assert "x" in paths[4].parts and "a-b" in paths[8].parts  # plain names stay what they are


def test_a_run_with_a_name_of_clipkal_0_1_keeps_it(tmp_path: Path) -> None:
    how = {"dataset": "d", "backbone": "hf-hub:o/m", "method": "m", "shots": 4, "seed": 1}
    overrides = ["optimizer.lr=0.1", "dataset.ood=[a,b]"]
    new = run_path(tmp_path, **how, overrides=overrides)  # type: ignore[arg-type]
    old = tmp_path / "d/hf-hub%3Ao%2Fm/m/4shot-seed1,dataset.ood=[a+b],optimizer.lr=0.1"
    old.mkdir(parents=True)
    assert run_path(tmp_path, **how, overrides=overrides) == old  # type: ignore[arg-type]
    assert old_names.overrides(old.name) == ["dataset.ood=[a+b]", "optimizer.lr=0.1"]
    new.mkdir(parents=True)
    assert run_path(tmp_path, **how, overrides=overrides) == new  # type: ignore[arg-type]


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
