"""What is flagged: rows that should not be compared as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from clipkal.report.aggregate import aggregate
from clipkal.report.collect import collect
from clipkal.report.command import main
from clipkal.report.section import sections


def flags_of(root: Path) -> list[str]:
    runs = collect([root]).runs
    (section,) = sections(aggregate(runs), runs)
    return section.flags


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((path / "results.json").read_text())
    how(content)
    (path / "results.json").write_text(json.dumps(content))


def test_runs_that_can_be_compared_have_no_flag(outputs: Path) -> None:
    assert flags_of(outputs / "digits") == []


def test_mixed_label_spaces(tmp_path: Path) -> None:
    write_run(tmp_path, n=40, method="adamw")
    path = write_run(tmp_path, n=40)
    assert not flags_of(tmp_path)
    for metrics in ({"classes": 5}, {"n": 39}, {"bins": 10}):
        before = json.loads((path / "results.json").read_text())
        change(path, lambda c, m=metrics: c["sets"]["sketch"]["predictive"]["sampled"].update(m))
        (flag,) = flags_of(tmp_path)
        assert flag.startswith("Mixed label spaces: sketch is not the same in all runs (")
        assert "40 images, 6 classes, 15 bins" in flag and str(next(iter(metrics.values()))) in flag
        (path / "results.json").write_text(json.dumps(before))
    change(path, lambda c: c["sets"]["sketch"].update(label_space=[0, 1, 2, 3, 4, 6]))
    assert flags_of(tmp_path) == [
        "Mixed label spaces: sketch is not the same in all runs (other classes); do not compare rows on it."
    ]


def test_unequal_seeds_and_missing_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / "r", n=40, seed=seed)
    write_run(tmp_path / "r", n=40, method="adamw", sets=("test", "sketch"))
    missing, seeds = flags_of(tmp_path)
    assert missing == "Not every method was tested on every set: adamw lacks photo."
    assert seeds.startswith("Unequal seeds at 4 shots (adamw: 1; kalman: 1 2 3)")
    main([str(tmp_path / "r"), "--out", str(tmp_path / "out")])
    assert seeds in capsys.readouterr().out
    assert f'<p class="flag">{seeds}</p>' in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "**Note:** Unequal seeds" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_one_seed_that_drew_different_images(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, method="adamw", shots_sha256="a")
    write_run(tmp_path, n=20, shots_sha256="b")
    assert flags_of(tmp_path) == [
        "The same seed drew different images in different runs (4 shots, seed 1): differences are not over the same shots."
    ]


def test_seconds_of_different_machines(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, method="adamw", whole=True)
    path = write_run(tmp_path, n=20, whole=True)
    assert not flags_of(tmp_path)
    change(path, lambda c: c["environment"].update(gpu="some card"))
    assert flags_of(tmp_path) == [
        "Seconds were measured on different hardware: some card, 1 thread, some processor, 1 thread."
    ]
