"""Does it learn? Every optimiser on the linear adapter × 1, 4, 16 shots × 3 seeds × several data sets, at equal search budget.

    python -m benchmarks.study [--features FOLDER] [--coordinates classes] [--only TEXT …] [--datasets NAME …]

`--features` is a folder with officecaltech10.npz, caltech8_cues.npz and caltech53.npz (dataset=features); without it the study
runs on the two embedded sets. Every cell is appended to cells.csv as soon as it is done and is not done again, so a study that was
stopped goes on; tables and figures are written from that file at the end (and by `--tables` alone). study_plan.py says what is
compared and what is searched. About 40 minutes on one core for all five sets.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.study_cell import METRICS, run_cell
from benchmarks.study_plan import SEEDS, SHOTS, Data, Entry, data_sets, entries
from benchmarks.study_report import write_report
from clipkal.adapters.linear import COORDINATES

Cell = tuple[Data, Entry, int, int]
COLUMNS = (
    ["dataset", "shots", "seed", "entry", "predictive", "diverged", "value", "epoch", "val_nll", "seconds"]
    + [f"id_{m}" for m in METRICS]
    + [f"ood_{m}" for m in METRICS]
)


def cells(data: list[Data], only: list[str]) -> list[Cell]:
    """Every cell; `only` keeps the entries whose key contains one of these texts."""
    chosen = [e for e in entries() if not only or any(text in e.key for text in only)]
    return [(d, e, shots, seed) for d in data for shots in SHOTS for seed in SEEDS for e in chosen]


def identity(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells a cell from others, as text."""
    return tuple(str(row[name]) for name in ("dataset", "shots", "seed", "entry"))


def done(path: Path) -> set[tuple[str, ...]]:
    """Cells that the file has already."""
    if not path.is_file():
        return set()
    with path.open(newline="") as file:
        return {identity(row) for row in csv.DictReader(file)}


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Adds the rows of one cell in one write, so that a cell is there in full or not at all."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows([{k: _short(v) for k, v in row.items()} for row in rows])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help="folder of precomputed features")
    parser.add_argument("--coordinates", default="classes", choices=COORDINATES, help="of the linear adapter")
    parser.add_argument("--out", type=Path, help="default docs/study/COORDINATES")
    parser.add_argument("--datasets", nargs="+", help="names of data sets to run; default all that are there")
    parser.add_argument(
        "--only", nargs="+", default=[], help="run the entries that contain one of these texts"
    )
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is done")
    options = parser.parse_args()
    out = options.out or Path("docs/study") / options.coordinates
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cells.csv"
    if not options.tables:
        known = data_sets(options.features, options.coordinates)
        data = [d for d in known if not options.datasets or d.name in options.datasets]
        run(path, cells(data, options.only))
    write_report(path, out)


def run(path: Path, wanted: list[Cell]) -> None:
    """Runs the cells that `path` lacks, one after the other."""
    torch.set_num_threads(1)
    finished, started = done(path), time.time()
    for count, (data, entry, shots, seed) in enumerate(wanted, 1):
        key = (data.name, str(shots), str(seed), entry.key)
        if key not in finished:
            append(path, run_cell(data, entry, shots, seed))
            print(f"{count}/{len(wanted)} {time.time() - started:6.0f} s  {' · '.join(key)}", flush=True)


if __name__ == "__main__":
    main()
