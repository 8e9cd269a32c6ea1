"""What makes the rows of a section hard to compare, a sentence each; nothing is left out for it."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from clipkal.report.aggregate import Row, shots_rank
from clipkal.report.collect import Run
from clipkal.report.values import ID

MOST = 4
"""Names that a sentence lists before it says how many more there are."""


def flags(rows: Sequence[Row], runs: Iterable[Run]) -> list[str]:
    """The sentences on the rows of one dataset and backbone, and the runs behind them."""
    ids = {run_id for row in rows for run_id in row.run_ids}
    mine = [run for run in runs if run.run_id in ids]
    return [*_label_spaces(mine), *_missing_sets(rows), *_seeds(rows), *_shots(mine), *_hardware(mine)]


def _label_spaces(runs: Sequence[Run]) -> Iterator[str]:
    """Sets that are not the same images, classes or bins in every run."""
    spaces: dict[str, dict[Hashable, str]] = defaultdict(dict)
    for run in runs:
        for name, one in run.sets.items():
            for metrics in one["predictive"].values():
                n, classes, bins = (metrics.get(key) for key in ("n", "classes", "bins"))
                space = (n, classes, bins, str(one.get("label_space")))
                text = f"{n} images, {classes} classes, {bins} bins"
                spaces[ID if one["role"] == "id" else name][space] = text
    for name, found in spaces.items():
        if len(found) > 1:
            kinds = sorted(set(found.values()))
            which = "; ".join(kinds[:MOST]) if len(kinds) > 1 else "other classes"
            yield f"Mixed label spaces: {name} is not the same in all runs ({which}); do not compare rows on it."


def _missing_sets(rows: Sequence[Row]) -> Iterator[str]:
    everything = dict.fromkeys(name for row in rows for name in row.facts)
    lacking = {row.label: [name for name in everything if name not in row.facts] for row in rows if row.facts}
    lines = [f"{label} lacks {_listed(names)}" for label, names in lacking.items() if names]
    if lines:
        yield f"Not every method was tested on every set: {_listed(lines)}."


def _seeds(rows: Sequence[Row]) -> Iterator[str]:
    """Numbers of shots at which methods have different seeds."""
    for shots in sorted({row.shots for row in rows}, key=shots_rank):
        seeds: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row.reported and row.shots == shots:
                seeds[" ".join(sorted(map(str, row.seeds)))].append(row.label)
        if len(seeds) > 1:
            kinds = [f"{_listed(labels)}: {which}" for which, labels in seeds.items()]
            yield (
                f"Unequal seeds at {shots} shots ({'; '.join(kinds)}): their means are not over the same draws of shots; "
                "paired differences use the shared seeds only."
            )


def _shots(runs: Sequence[Run]) -> Iterator[str]:
    """Seeds that drew other images for other methods."""
    drawn: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        if digest := run.run.get("shots_sha256"):
            drawn[str(run.run["shots"]), str(run.run["seed"])].add(str(digest))
    mixed = sorted(key for key, digests in drawn.items() if len(digests) > 1)
    if mixed:
        places = _listed([f"{shots} shots, seed {seed}" for shots, seed in mixed])
        yield f"The same seed drew different images in different runs ({places}): differences are not over the same shots."


def _hardware(runs: Sequence[Run]) -> Iterator[str]:
    kinds = {machine(run.environment) for run in runs if run.environment and run.training.get("seconds")}
    if len(kinds) > 1:
        yield f"Seconds were measured on different hardware: {_listed(sorted(kinds))}."


def machine(environment: dict[str, Any]) -> str:
    """What a run was computed on."""
    if not environment:
        return "unknown"
    threads = environment.get("threads")
    return f"{environment.get('gpu') or environment.get('cpu')}, {threads} thread{'s' * (threads != 1)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")
