"""What a run is called in a table: its method, and whatever else tells it from the others."""

from collections import defaultdict
from collections.abc import Sequence

from clipkal.report.collect import Run
from clipkal.tracking import old_names

CHOICES = ("adapter", "optimizer", "validation", "protocol")
"""What a method's rows are told apart by, beside shots, where runs of one method differ in it."""


def labels_of(family: Sequence[Run]) -> list[str]:
    """A name for each run's row: its method, and what tells it from other runs of the same method.

    That is any of `CHOICES` in which the method's runs differ, and further overrides. Runs that still share
    label, shots and seed are different runs all the same: they get their run id, for an average over them
    would not be one over seeds.
    """
    methods: dict[str, list[Run]] = defaultdict(list)
    for run in family:
        methods[str(run.run["method"])].append(run)
    differing = {
        method: [choice for choice in CHOICES if len({str(run.run[choice]) for run in runs}) > 1]
        for method, runs in methods.items()
    }
    shared = _shared(family)
    labels = []
    for run in family:
        method = str(run.run["method"])
        parts = [f"{choice}={run.run[choice]}" for choice in differing[method]]
        parts += [part for part in _overrides(run) if part not in shared]
        labels.append(f"{method} ({', '.join(dict.fromkeys(parts))})" if parts else method)
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, run in enumerate(family):
        places[labels[index], str(run.run["shots"]), str(run.run["seed"])].append(index)
    clashing = {labels[index] for indices in places.values() if len(indices) > 1 for index in indices}
    return [
        f"{label} [{run.run_id[:8]}]" if label in clashing else label
        for label, run in zip(labels, family, strict=True)
    ]


def _shared(family: Sequence[Run]) -> set[str]:
    """What all runs of one experiment were given alike, which tells no row from another; nothing without an experiment."""
    alike = set.intersection(*(set(_overrides(run)) for run in family)) if family else set()
    return alike if any(part.startswith("experiment=") for part in alike) else set()


def _overrides(run: Run) -> list[str]:
    """The run's further overrides, without the choices known anyway; those of older runs stand in its path."""
    parts = run.run.get("overrides", old_names.overrides(run.path.name))
    return [p for p in parts if p.partition("=")[0].rpartition(".")[2] not in (*CHOICES, "name")]
