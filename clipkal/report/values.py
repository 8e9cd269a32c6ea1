"""The numbers of one run: every metric of every set, detection, and what the run cost."""

import math
from collections.abc import Iterator
from typing import Any

from clipkal.report.collect import Run
from clipkal.report.results import is_number
from clipkal.tracking.reported import reported

ID = "ID"
MEAN_OOD = "mean OOD"
NEW = "new"
"""The new half of the classes, where the base half is learnt: then ID are the base classes."""
H = "H"
"""Harmonic mean of the accuracies on base and new classes."""
MEAN_TRANSFER = "mean transfer"
"""Over the other datasets that a run was tested on."""
OVERALL = (ID, MEAN_OOD, MEAN_TRANSFER, NEW, H)
"""What runs on different datasets can be compared and averaged by."""
COST = "(cost)"
"""The name under which a run's seconds, passes and their like stand among its sets."""
FACTS = ("n", "bins", "classes", "alpha")
"""What stands beside the metrics and is none."""

Values = dict[tuple[str, str], float]


def values_of(run: Run, predictive: str) -> Values:
    """(set, metric) -> value of one run; a null NLL is the infinite one that JSON cannot write.

    Any number is taken, whatever its name, so that a new metric or detection score needs no change here; those within a
    mapping are called `outer.inner`, and an interval in it `outer.inner.low` and `.high`.
    """
    found: Values = {}
    for name, one in run.sets.items():
        place, metrics = ID if one["role"] == "id" else name, one["predictive"].get(predictive, {})
        sets = one.get("conformal")
        if isinstance(sets, dict) and sets.get("predictive") == predictive:
            metrics = metrics | {"conformal": sets}
        numbers = (pair for key, value in metrics.items() for pair in _numbers(key, value))
        found |= {(place, key): number for key, number in numbers if key.rpartition(".")[2] not in FACTS}
    for name, scores in run.detection.items():
        for score, entry in scores.items():
            if _source(run, entry["predictive"]) == predictive:
                plain = score.removeprefix("plugin_")
                there = [k for k, v in entry.items() if is_number(v) and not k.startswith("n_")]
                found |= {(name, f"{key}_{plain}"): float(entry[key]) for key in there}
    return found | {(COST, key): value for key, value in _cost(run).items()}


def predictives_of(run: Run) -> list[str]:
    """The names of a run's predictives, in their order."""
    return list(dict.fromkeys(p for one in run.sets.values() for p in one["predictive"]))


def _source(run: Run, predictive: str) -> str:
    """The predictive that a detection score belongs to; one of the image alone, to that which the run reports."""
    there = predictives_of(run)
    return predictive if predictive in there else reported(there)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if value is None and name == "nll":
        yield name, math.inf
    elif is_number(value):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, list) and len(inner) == 2 and all(map(is_number, inner)):
                yield f"{name}.{key}.low", float(inner[0])
                yield f"{name}.{key}.high", float(inner[1])
            else:
                yield from _numbers(f"{name}.{key}", inner)


def _cost(run: Run) -> dict[str, float]:
    """Whatever the record of the training counts or times, and how often it went over the shots, in all trials."""
    outcome = ("rate", "epoch", "val_nll")
    cost = {k: float(v) for k, v in run.training.items() if k not in outcome and is_number(v)}
    trials = run.training.get("trials", [])
    if trials:
        cost["trials"] = float(len(trials))
        cost["passes"] = float(sum(_passes(trial.get("curve", [])) for trial in trials))
    return cost


def _passes(curve: list[Any]) -> int:
    """The last epoch of a trial, which counts from 1; 0 is the state before the first."""
    epochs = [point.get("epoch") for point in curve if isinstance(point, dict)]
    return max((int(epoch) for epoch in epochs if epoch is not None and is_number(epoch)), default=0)
