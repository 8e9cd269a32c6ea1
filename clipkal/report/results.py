"""Reading a results.json: either what a report can be made of, or one line that says where it is not."""

import json
from pathlib import Path
from typing import Any

from clipkal import files
from clipkal.errors import DataError
from clipkal.tracking.directory import SCHEMA_VERSION
from clipkal.tracking.marker import MARKER
from clipkal.tracking.writing import plain, printable

RESULTS = "results.json"
AGAIN = "run clipkal with its settings again, which moves it aside"
RUN_KEYS = (
    "dataset",
    "backbone",
    "method",
    "adapter",
    "optimizer",
    "shots",
    "seed",
    "validation",
    "protocol",
)
ROLES = ("id", "ood", "transfer")
NEEDED = ("accuracy", "ece", "n", "classes", "bins")  # nll may be null: infinite, which JSON cannot write
LARGEST = 1e12  # no number of a run is larger


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a finished run, checked; its texts are printable.

    Raises:
        DataError: the file is not what the run wrote, has another schema version, or lacks what a report needs.
    """
    file = folder / RESULTS
    content, marker = _json(file), _json(folder / MARKER)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise DataError(f"{file} is no results.json of clipkal; {AGAIN}")
    if content["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{file} has schema version {content['schema_version']}, this clipkal reads {SCHEMA_VERSION}; "
            "report on it with the clipkal that wrote it"
        )
    listed = marker.get("files", {}) if isinstance(marker, dict) else None
    if not isinstance(listed, dict) or (RESULTS in listed and listed[RESULTS] != files.sha256(file)):
        raise DataError(f"{file} is not what the run wrote: its digest in {MARKER} is another; {AGAIN}")
    if problem := _problem(content):
        raise DataError(f"{file}: {problem}; {AGAIN}")
    found: dict[str, Any] = plain(content, printable)
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({printable(str(error)[:200])}); {AGAIN}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _problem(content: dict[str, Any]) -> str:
    """What is wrong, with its place; "" where nothing is."""
    run, sets, detection = content.get("run"), content.get("sets"), content.get("detection") or {}
    environment, training = content.get("environment") or {}, content.get("training") or {}
    if not isinstance(content.get("run_id"), str):
        return "run_id is no text"
    if not isinstance(run, dict) or not all(isinstance(run.get(k, ()), str | int | None) for k in RUN_KEYS):
        return f"run lacks what defines it ({', '.join(RUN_KEYS)})"
    if not _texts(run.get("overrides", [])):
        return "run.overrides is no list of texts"
    if not isinstance(sets, dict) or not sets:
        return "sets is empty or no mapping"
    if not isinstance(detection, dict) or not all(map(_scores, detection.values())):
        return "detection is no table of scores"
    if not isinstance(environment, dict):
        return "environment is no mapping"
    if not isinstance(training, dict) or not _trials(training.get("trials", [])):
        return "training is no record of trials with a curve each"
    problems = ((name, _set_problem(one)) for name, one in sets.items())
    return next((printable(f"sets.{name}{problem}") for name, problem in problems if problem), "")


def _set_problem(one: Any) -> str:
    if not isinstance(one, dict) or one.get("role") not in ROLES:
        return f".role is none of {', '.join(ROLES)}"
    predictives = one.get("predictive")
    if not isinstance(predictives, dict) or not predictives:
        return ".predictive is empty or no mapping"
    problems = ((name, _metric_problem(metrics)) for name, metrics in predictives.items())
    return next((f".predictive.{name}{problem}" for name, problem in problems if problem), "")


def _metric_problem(metrics: Any) -> str:
    if not isinstance(metrics, dict):
        return " is no mapping"
    for name in NEEDED:
        if not is_number(metrics.get(name)):
            return f".{name} is missing or no number"
    for name, value in metrics.items():  # beside numbers, what a later clipkal may add
        if not (value is None or isinstance(value, list | dict | str | bool) or is_number(value)):
            return f".{name} is no number"
    if isinstance(metrics.get("nll"), list | dict | str | bool):
        return ".nll is no number"
    if "reliability" in metrics and not _reliability(metrics):
        return ".reliability is no list of bins"
    return ""


def _reliability(metrics: dict[str, Any]) -> bool:
    bins = metrics["reliability"]
    return is_number(metrics.get("confidence")) and isinstance(bins, list) and all(map(_bin, bins))


def _bin(one: Any) -> bool:
    if not isinstance(one, dict) or not is_number(one.get("n")) or one["n"] < 0:
        return False
    return not one["n"] or (is_number(one.get("accuracy")) and is_number(one.get("confidence")))


def _scores(table: Any) -> bool:
    return isinstance(table, dict) and all(
        isinstance(score, dict)
        and isinstance(score.get("predictive"), str)
        and is_number(score.get("auroc"))
        and is_number(score.get("fpr95"))
        for score in table.values()
    )


def _trials(trials: Any) -> bool:
    return isinstance(trials, list) and all(
        isinstance(one, dict) and isinstance(one.get("curve", []), list) for one in trials
    )


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number of a believable size, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
