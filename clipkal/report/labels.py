"""What a run is called in a table: its method, and whatever else tells it from the others."""

from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from clipkal.report.collect import Run
from clipkal.tracking import old_names

DOMAIN = "dataset.id_domain"
CHOICES = ("adapter", "optimizer", "validation", "protocol")
"""What a method's rows are told apart by, beside shots, where runs of one method differ in it."""


def domain_of(run: Run) -> str | None:
    """The domain that a run learns from; None where it is not said, which is the dataset's first or only one."""
    domain = run.run.get("id_domain")
    typed = [part.partition("=")[2] for part in _typed(run) if part.startswith(f"{DOMAIN}=")]  # of older runs
    return str(domain) if domain is not None else next(iter(typed), None)


def places_of(runs: Sequence[Run]) -> list[str]:
    """What each run learns from: its dataset, and which of its domains, where its runs differ in it or one was typed."""
    domains: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for run in runs:
        domains[_task(run)].add(domain_of(run))
    told = {task for task, found in domains.items() if len(found) > 1}
    told |= {_task(run) for run in runs if any(part.startswith(f"{DOMAIN}=") for part in _typed(run))}
    return [_place(run) if _task(run) in told else str(run.run["dataset"]) for run in runs]


def _place(run: Run) -> str:
    return f"{run.run['dataset']} from {domain_of(run) or 'its first domain'}"


def given_to_all(runs: Sequence[Run]) -> set[str]:
    """The further overrides that all runs have in common, which tell no row from another; nothing where all runs are of one row."""
    kinds = {(str(run.run["method"]), *_overrides(run)) for run in runs}
    return set.intersection(*(set(_overrides(run)) for run in runs)) if len(kinds) > 1 else set()


def labels_of(family: Sequence[Run], known: AbstractSet[str] = frozenset()) -> list[str]:
    """A name for each run's row: its method, and what tells it from other runs of the same method, place and backbone.

    That is any of `CHOICES` in which the method's runs differ, and further overrides. Runs that still share
    label, shots and seed are different runs all the same: they get their run id, for an average over them
    would not be one over seeds. `known` are overrides that need not be said.
    """
    methods: dict[str, list[Run]] = defaultdict(list)
    for run in family:
        methods[str(run.run["method"])].append(run)
    differing = {
        method: [choice for choice in CHOICES if len({str(run.run[choice]) for run in runs}) > 1]
        for method, runs in methods.items()
    }
    shared = _shared(family) | known
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
    """The run's further overrides, without the choices known anyway."""
    known = (*CHOICES, "name", DOMAIN.rpartition(".")[2])
    return [part for part in _typed(run) if part.partition("=")[0].rpartition(".")[2] not in known]


def _typed(run: Run) -> list[str]:
    """The run's further overrides; those of older runs stand in its path."""
    found: list[str] = run.run.get("overrides", old_names.overrides(run.path.name))
    return found


def _task(run: Run) -> tuple[str, str]:
    return str(run.run["dataset"]), str(run.run["backbone"])
