"""The counts on docs/claims.md are those of the study's cells, and its experiments and methods exist."""

import csv
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (one|many) \| (.*) \|$", PAGE, flags=re.M)
PHASES = {"one": "one epoch", "many": "converged"}
SIGNS = {"id_accuracy": 1, "id_nll": -1, "ood_accuracy": 1, "ood_nll": -1}


@cache
def cells() -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """(entry, metric) -> {(dataset, shots): mean over the seeds} of the plug-in."""
    found = defaultdict(lambda: defaultdict(list))
    path = ROOT / "docs" / "study" / "classes" / "cells.csv"
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for metric in SIGNS:
                if row["predictive"] == "plugin" and row[metric] not in ("", "nan"):
                    place = row["dataset"], row["shots"]
                    found[row["entry"], metric][place].append(float(row[metric]))
    return {key: {place: fmean(values) for place, values in one.items()} for key, one in found.items()}


def entry(method: str, passes: str) -> str:
    return f"{'converged' if method == 'zeroshot' else PHASES[passes]}: {method}"


@pytest.mark.parametrize(("first", "second", "passes", "counts"), ROWS, ids=lambda value: str(value)[:14])
def test_the_counts_are_those_of_the_study(first, second, passes, counts):
    said = []
    for metric, sign in SIGNS.items():
        ours, theirs = (cells()[entry(method, passes), metric] for method in (first, second))
        assert ours.keys() == theirs.keys()
        said.append(f"{sum(sign * (ours[place] - theirs[place]) > 0 for place in ours)}/{len(ours)}")
    assert counts == " | ".join(said)


def test_the_page_has_its_table():
    assert len(ROWS) >= 15


def test_every_experiment_on_the_page_exists():
    named = set(re.findall(r"\+experiment=(\w+)", PAGE))
    assert {"coop", "imagenet_shifts", "loko_online", "grng", "uncertainty"} <= named
    assert {name for name in named if not (ROOT / "conf" / "experiment" / f"{name}.yaml").exists()} == set()
