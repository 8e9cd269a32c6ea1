"""Files of a run directory that somebody or something changed: each is read right, or named as damaged."""

import csv
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import write_run

from clipkal.errors import ClipkalError, DataError
from clipkal.report.against import Baseline, comparisons
from clipkal.report.aggregate import aggregate
from clipkal.report.averages import over_datasets
from clipkal.report.collect import collect
from clipkal.report.latex import latex
from clipkal.report.markdown import markdown
from clipkal.report.section import sections
from clipkal.report.table import families
from clipkal.report.terminal import rich_table
from clipkal.report.tidy import means_csv, paired_csv, seeds_csv
from clipkal.tracking import RunDirectory, metrics_file
from clipkal.tracking import directory as directory_module

ODD: list[Any] = [
    None, True, False, 0, -1, 1e308, -1e308, 10**40, 0.5, "", "x", "$", "\ud800", "\0", "=1", "id", "ood",
    [], [None], [[]], {}, {"": None}, {"n": "x"}, float("nan"), float("inf"),
]  # fmt: skip
RAW: list[Callable[[bytes, random.Random], bytes]] = [
    lambda data, rng: data[: rng.randrange(len(data) + 1)],
    lambda data, rng: _at(data, rng, bytes([rng.randrange(256)]), 1),
    lambda data, rng: _at(
        data, rng, rng.choice([b"\0", b"\xff", b"null", b"[", b"}", b",", b"\\u0000", b'"']), 0
    ),
    lambda data, rng: _at(data, rng, b"", rng.randrange(1, 9)),
    lambda data, rng: data + data[: rng.randrange(99)],
]


def _at(data: bytes, rng: random.Random, put: bytes, over: int) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + put + data[place + over :]


def mutations(content: Any, count: int, seed: int) -> Iterator[bytes]:
    """JSON with one to three places changed: half by an odd value or key, half in its bytes."""
    rng, text = random.Random(seed), json.dumps(content)
    for _ in range(count):
        if rng.random() < 0.5:
            changed = json.loads(text)
            for _ in range(rng.randrange(1, 4)):
                _change(changed, rng)
            yield json.dumps(changed).encode()
        else:
            data = text.encode()
            for _ in range(rng.randrange(1, 4)):
                data = rng.choice(RAW)(data, rng)
            yield data


def _change(node: Any, rng: random.Random) -> None:
    """Walks down to somewhere, and exchanges, drops or adds a value there."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
        _change(node[key], rng)
    elif (what := rng.random()) < 0.2:
        del node[key]
    elif what < 0.3 and isinstance(node, dict):
        node[rng.choice(["", "$", "\ud800", "id", "nll", "n"])] = rng.choice(ODD)
    else:
        node[key] = json.loads(json.dumps(rng.choice(ODD)))


SIZES = [(2_000, 0), pytest.param((100_000, 1), marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_changed_results_file_is_reported_on_or_left_out_by_name(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = write_run(tmp_path, n=20, sets=("test", "sketch"))
    content = json.loads((path / "results.json").read_text())
    for bins in (m for one in content["sets"].values() for m in one["predictive"].values()):
        bins["reliability"] = bins["reliability"][-2:]  # so that not most of the changes are made there
    left_out = 0
    for data in mutations(content, *size):
        (path / "results.json").write_bytes(data)
        try:
            (run,) = collect([path]).runs
        except DataError as error:
            left_out += 1
            assert "4shot-seed1/results.json" in str(error) and "\n" not in str(error)
            continue
        rows = aggregate([run])
        rows = [*over_datasets(rows), *rows]
        base = Baseline(rows[0].label)
        made = [one for family in families(rows).values() for one in comparisons(family, base)]
        parts = sections(rows, [run], base, made)
        texts = (means_csv(rows), seeds_csv(rows), paired_csv(made), markdown(parts), latex(parts))
        assert all(text.encode() for text in texts)
        _ = [rich_table(table) for part in parts for table in part.usual()]
    assert size[0] * 0.2 < left_out < size[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["finished.json", "config.yaml"])
def test_a_changed_file_of_a_run_directory_is_read_or_the_run_is_done_again(
    tmp_path: Path, name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(directory_module.log, "disabled", True)
    path, yaml = tmp_path / "r", f"seed: 1\ndata: {{root: {tmp_path}, verify: false}}\n"
    inputs = {"a": {"files": 1, "bytes": 3, "stamps": "x", "contents": None}}
    with RunDirectory(path) as directory:
        directory.begin("a" * 16, yaml)
        directory.log(1, "val", "id", "nll", 0.5)
        directory.write_results({})
        directory.finish({"val_nll": 0.5}, inputs)
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    marker = json.loads(whole["finished.json"])
    if name == "finished.json":
        changed = mutations(marker, *size)
    else:
        rng = random.Random(size[1])
        changed = (rng.choice(RAW)(whole[name], rng) for _ in range(size[0]))
    for index, data in enumerate(changed):
        (path / name).write_bytes(data)
        looked_at = RunDirectory(path)
        assert looked_at.state(None if index % 4 else yaml).status != "new" and isinstance(
            looked_at.verify(), list
        )
        if index % 10:  # the rest takes longer
            continue
        with RunDirectory(path) as directory:
            state = directory.begin("a" * 16, yaml)
            assert state.status != "finished" or not isinstance(directory.summary().get("val_nll"), str)
        if name != "finished.json":
            assert (state.status == "finished") == (data == whole[name])
        for aside in tmp_path.glob("r.old-*"):
            shutil.rmtree(aside)
        for file, content in whole.items():
            (path / file).write_bytes(content)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_changed_metrics_file_is_repaired_or_refused(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(metrics_file.log, "disabled", True)
    path, rng = tmp_path / "metrics.csv", random.Random(size[1])
    table = metrics_file.MetricsFile(path)
    table.append([(step, "val", 'a "b", c', "nll", 0.5) for step in range(4)])
    table.close()
    whole = path.read_bytes()
    for _ in range(size[0]):
        path.write_bytes(rng.choice(RAW)(whole, rng))
        try:
            table.repair()
        except ClipkalError as error:
            assert "not a metrics file" in str(error)
            continue
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            header, *rows = csv.reader(file)
        assert len(header) == 5 and all(len(row) == 5 and math.isfinite(int(row[0])) for row in rows)


def test_only_damaged_runs_are_no_report(tmp_path: Path) -> None:
    path = write_run(tmp_path, n=20)
    (path / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"no finished run under .* \(.*results.json cannot be read"):
        collect([tmp_path])
