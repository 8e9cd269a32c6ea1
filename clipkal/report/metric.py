"""How each number is shown: its title, unit and decimals, and which end is good."""

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
    Metric("aurc", "AURC (area under risk–coverage)", 1, 4),
    Metric("macro_f1", "Macro-F1 (%)", 100, 1, True),
    Metric("confidence", "Mean confidence (%)", 100, 1, None),
    Metric("entropy", "Entropy (nats)", higher_is_better=None),
    Metric("aleatoric", "Aleatoric part (nats)", higher_is_better=None),
    Metric("epistemic", "Epistemic part (nats)", higher_is_better=None),
    Metric("temperature", "Fitted temperature", higher_is_better=None),
)

COSTS = (
    Metric("seconds", "Training (s)", 1, 2),
    Metric("passes", "Passes over the shots", 1, 0),
    Metric("trials", "Learning rates tried", 1, 0, None),
    Metric("parameters", "Trained parameters", 1, 0),
)

DETECTION = {"auroc": ("Detection AUROC", True), "fpr95": ("Detection FPR95", False)}
SCORES = {"msp": "1 − max p", "mutual_information": "mutual information"}
_KNOWN = {metric.key: metric for metric in (*METRICS, *OTHERS)}
_COSTS = {metric.key: metric for metric in COSTS}


def metric_of(key: str) -> Metric:
    """How a metric is shown; one that is not known here by its key, with neither end called good."""
    kind, _, score = key.partition("_")
    if key in _KNOWN:
        return _KNOWN[key]
    if score and kind in DETECTION:
        title, higher = DETECTION[kind]
        return Metric(key, f"{title} (%), score {SCORES.get(score, _words(score))}", 100, 1, higher)
    return Metric(key, _words(key), decimals=4, higher_is_better=None)


def cost_of(key: str) -> Metric:
    """The same for what a run cost."""
    return _COSTS.get(key) or Metric(key, _words(key), decimals=1, higher_is_better=None)


def other_metrics(values: Iterable[Mapping[tuple[str, str], object]]) -> list[Metric]:
    """What beside `METRICS` has values: known ones first, the rest in the order in which it comes.

    The ends of intervals are left to the CSV.
    """
    shown = {metric.key for metric in METRICS}
    keys = dict.fromkeys(key for one in values for name, key in one if name != COST)
    there = [key for key in keys if key not in shown and not key.endswith((".low", ".high"))]
    known = [metric.key for metric in OTHERS if metric.key in there]
    return [metric_of(key) for key in dict.fromkeys([*known, *there])]


def cost_metrics(values: Iterable[Mapping[tuple[str, str], object]]) -> list[Metric]:
    """What the runs cost, as far as they recorded it."""
    keys = dict.fromkeys(key for one in values for name, key in one if name == COST)
    return [cost_of(key) for key in dict.fromkeys([*(key for key in _COSTS if key in keys), *keys])]


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")
