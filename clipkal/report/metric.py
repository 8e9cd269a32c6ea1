"""How each number is shown: its title, unit and decimals, and which end is good."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clipkal.report.values import COST


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its key, its title, the factor and decimals, and which end is good (None: neither)."""

    key: str
    title: str
    factor: float = 1.0
    decimals: int = 3
    higher_is_better: bool | None = False
    short: str = ""


METRICS = (
    Metric("accuracy", "Accuracy (%)", 100, 1, True, "Acc. %"),
    Metric("nll", "NLL (nats)", short="NLL"),
    Metric("ece", "ECE (%)", 100, 1, short="ECE %"),
)
"""What every overview shows."""

OTHERS = (
    Metric("brier", "Brier score"),
    Metric("adaptive_ece", "ECE with equal-mass bins (%)", 100, 1),
    Metric("classwise_ece", "Class-wise ECE (%)", 100, 1),
    Metric("mce", "Largest gap of a bin, MCE (%)", 100, 1),
    Metric("brier_reliability", "Brier score: reliability", 1, 4),
    Metric("brier_resolution", "Brier score: resolution", 1, 4, True),
    Metric("aurc", "AURC (area under risk–coverage)", 1, 4),
    Metric("e_aurc", "AURC beyond that of a perfect order, E-AURC", 1, 4),
    Metric("macro_f1", "Macro-F1 (%)", 100, 1, True),
    Metric("confidence", "Mean confidence (%)", 100, 1, None),
    Metric("entropy", "Entropy (nats)", higher_is_better=None),
    Metric("aleatoric", "Aleatoric part (nats)", higher_is_better=None),
    Metric("epistemic", "Epistemic part (nats)", higher_is_better=None),
    Metric("novelty", "Novelty", higher_is_better=None),
    Metric("temperature", "Fitted temperature", higher_is_better=None),
)

COSTS = (
    Metric("seconds", "Training (s)", 1, 2),
    Metric("peak_memory_mib", "Peak memory (MiB)", 1, 0),
    Metric("peak_gpu_memory_mib", "Peak GPU memory (MiB)", 1, 0),
    Metric("passes", "Passes over the shots", 1, 0),
    Metric("trials", "Learning rates tried", 1, 0, None),
    Metric("parameters", "Trained parameters", 1, 0),
)

SCORES = {"msp": "1 − max p"}
KEPT_TO_CSV = re.compile(r".*\.(low|high|aupr|fpr95)|(aupr|fpr95)_.*")
"""Ends of intervals, and what says nearly the same as an AUROC, are not in the tables."""
_KNOWN = {metric.key: metric for metric in (*METRICS, *OTHERS)}
_COSTS = {metric.key: metric for metric in COSTS}


def metric_of(key: str) -> Metric:
    """How a metric is shown; one that is not known here by its key, with neither end called good."""
    if key in _KNOWN:
        return _KNOWN[key]
    if key.startswith("auroc_"):
        return Metric(key, f"Detection AUROC (%), score {_score(key[len('auroc_') :])}", 100, 1, True)
    if told := re.fullmatch(r"errors\.(.+)\.auroc", key):
        return Metric(key, f"AUROC of telling errors (%), score {_score(told[1])}", 100, 1, True)
    return Metric(key, _words(key), decimals=4, higher_is_better=None)


def cost_of(key: str) -> Metric:
    """The same for what a run cost."""
    return _COSTS.get(key) or Metric(key, _words(key), decimals=1, higher_is_better=None)


def other_metrics(values: Iterable[Mapping[tuple[str, str], object]]) -> list[Metric]:
    """What beside `METRICS` has values: known ones first, the rest in the order in which it comes.

    What `KEPT_TO_CSV` says is left out.
    """
    shown = {metric.key for metric in METRICS}
    keys = dict.fromkeys(key for one in values for name, key in one if name != COST)
    there = [key for key in keys if key not in shown and not KEPT_TO_CSV.fullmatch(key)]
    known = [metric.key for metric in OTHERS if metric.key in there]
    return [metric_of(key) for key in dict.fromkeys([*known, *there])]


def cost_metrics(values: Iterable[Mapping[tuple[str, str], object]]) -> list[Metric]:
    """What the runs cost, as far as they recorded it."""
    keys = dict.fromkeys(key for one in values for name, key in one if name == COST)
    return [cost_of(key) for key in dict.fromkeys([*(key for key in _COSTS if key in keys), *keys])]


def _score(name: str) -> str:
    return SCORES.get(name, _words(name))


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")
