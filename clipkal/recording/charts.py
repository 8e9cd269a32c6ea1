"""What a finished run shows on a dashboard: its final numbers, the headline among them, tables and charts."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from clipkal.data.sets import ImageSet
from clipkal.evaluation import Evaluation
from clipkal.metrics import risk_coverage
from clipkal.tracking.tracker import Lines
from clipkal.training import Training
from clipkal.uncertainty import Prediction

FINAL = ("accuracy", "nll", "brier")
COLUMNS = ("accuracy", "nll", "brier", "ece", "adaptive_ece", "aurc", "entropy", "epistemic")
"""Of the table of sets, beside AUROC and FPR95 of telling an OOD set from the ID set."""
HEADLINE = (
    *("id/accuracy", "id/nll", "id/brier", "cal/id/ece"),
    *("ood/mean_accuracy", "ood/mean_nll", "ood/mean_auroc", "cal/ood_mean_ece"),
    *("transfer/mean_accuracy", "transfer/mean_nll"),
)
MOST_ROWS = 10_000
"""Rows of a table; a dashboard loads all of them."""
MOST_SETS = 12
"""Sets in one chart, and sets of which images are shown."""
POINTS = 30
"""Points of a risk–coverage curve."""
RANDOM, MISTAKES, PIXELS = 4, 4, 96
"""Images shown of each set: drawn at random, and the most confident mistakes; and their longer side."""


def final_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Every final number of the reported predictive: `id/*`, `ood/<set>/*`, `transfer/<set>/*`, and the calibration in `cal/*`."""
    found: dict[str, float] = {}
    for name, one in evaluation.sets.items():
        metrics = one.metrics[evaluation.reported]
        place = "id" if one.role == "id" else f"{one.role}/{name}"
        found |= {f"{place}/{metric}": metrics[metric] for metric in FINAL}
        calibration = "id" if one.role == "id" else name
        found |= {f"cal/{calibration}/{metric}": metrics[metric] for metric in ("ece", "adaptive_ece")}
        if one.role == "ood" and name in evaluation.detection:
            found[f"{place}/auroc"] = evaluation.detection[name]["msp"]["auroc"]
    for role in ("ood", "transfer"):
        found |= _means(evaluation, role, found)
    temperatures = evaluation.settings.get("temperatures") or {}
    return found | {f"cal/temperature/{name}": value for name, value in temperatures.items()}


def _means(evaluation: Evaluation, role: str, found: Mapping[str, float]) -> dict[str, float]:
    """Unweighted means over the sets of a role, as `<role>/mean_<metric>`, and of their ECE."""
    names = [name for name, one in evaluation.sets.items() if one.role == role]
    means: dict[str, float] = {}
    for metric in (*FINAL, "auroc"):
        values = [found[key] for name in names if (key := f"{role}/{name}/{metric}") in found]
        means |= {f"{role}/mean_{metric}": fmean(values)} if values else {}
    if names:
        means[f"cal/{role}_mean_ece"] = fmean(found[f"cal/{name}/ece"] for name in names)
    return means


def headline(final: Mapping[str, float], training: Training | None) -> dict[str, Any]:
    """The few numbers that a table of runs is read by."""
    found: dict[str, Any] = {name: final[name] for name in HEADLINE if name in final}
    if training is None:
        return found
    found |= {"val/nll": training.kept.val_nll, "train/seconds": training.seconds}
    found |= (
        {}
        if training.kept.rate is None
        else {"train/lr": training.kept.rate, "train/epoch": training.kept.epoch}
    )
    last = training.last_step
    return found | ({"posterior/log_evidence": last["log_evidence"]} if "log_evidence" in last else {})


def sets_table(evaluation: Evaluation) -> tuple[list[str], list[list[Any]]]:
    """A row for each set and predictive."""
    columns = ["set", "role", "predictive", "images", "classes", *COLUMNS, "temperature", "auroc", "fpr95"]
    rows = []
    for name, one in evaluation.sets.items():
        for predictive, metrics in one.metrics.items():
            detection = _detection(evaluation, name, predictive)
            row = [name, one.role, predictive, metrics["n"], len(one.classes), *(metrics[c] for c in COLUMNS)]
            rows.append([*row, metrics.get("temperature"), detection.get("auroc"), detection.get("fpr95")])
    return columns, rows


def _detection(evaluation: Evaluation, name: str, predictive: str) -> Mapping[str, Any]:
    """By the largest probability of that predictive; nothing for what is not told apart."""
    scores = evaluation.detection.get(name, {})
    found = (scores.get(score, {}) for score in ("msp", "plugin_msp"))
    return next((one for one in found if one.get("predictive") == predictive), {})


def classes_table(evaluation: Evaluation, class_names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """A row for each set and class of its label space: images, accuracy, mean confidence of the reported predictive."""
    rows: list[list[Any]] = []
    for name, one in evaluation.sets.items():
        names, prediction = one.class_names or class_names, one.predictions[evaluation.reported]
        counts = torch.bincount(one.labels, minlength=len(names))
        confidence = torch.bincount(one.labels, prediction.confidence, len(names)) / counts.clamp(min=1)
        accuracy = one.metrics[evaluation.reported]["per_class_accuracy"]
        for label, value in zip(one.classes, accuracy, strict=True):
            if counts[label]:
                row = [name, names[label], int(counts[label]), value, float(confidence[label])]
                rows.append(row)
    return ["set", "class", "images", "accuracy", "confidence"], rows[:MOST_ROWS]


def images_table(
    evaluation: Evaluation, class_names: Sequence[str], images: Mapping[str, ImageSet], seed: int
) -> tuple[list[str], list[list[Any]]]:
    """A few images of each set that has some: drawn at random, and the most confident mistakes.

    With thumbnail, truth, prediction, uncertainties, and how novel the image is where the predictive says so.
    """
    rows: list[list[Any]] = []
    shown = [name for name in evaluation.sets if name in images][:MOST_SETS]
    for name in shown:
        one = evaluation.sets[name]
        names, prediction = one.class_names or class_names, one.predictions[evaluation.reported]
        predicted = torch.tensor(one.classes)[prediction.predicted]
        places = {image: place for place, image in enumerate(images[name].ids)}
        for why, i in _chosen(prediction, predicted, one.labels, seed):
            thumbnail = images[name].decode(places[one.ids[i]]).convert("RGB")
            thumbnail.thumbnail((PIXELS, PIXELS))
            row = [name, one.ids[i], why, thumbnail, names[int(one.labels[i])], names[int(predicted[i])]]
            rows.append([*row, *_uncertainties(prediction, i)])
    columns = ["set", "id", "chosen as", "image", "label", "predicted"]
    return [*columns, "confidence", "entropy", "aleatoric", "epistemic", "novelty"], rows


def _chosen(
    prediction: Prediction, predicted: Tensor, labels: Tensor, seed: int
) -> Iterator[tuple[str, int]]:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    yield from (("random", i) for i in order[:RANDOM].tolist())
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = prediction.confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]
    yield from (("confident mistake", i) for i in wrong[worst].tolist())


def _uncertainties(prediction: Prediction, i: int) -> list[float | None]:
    found = [
        getattr(prediction, part, None)
        for part in ("confidence", "entropy", "aleatoric", "epistemic", "novelty")
    ]
    return [None if values is None else float(values[i]) for values in found]


def reliability_lines(evaluation: Evaluation) -> Lines:
    """Accuracy over confidence of each set, a point a bin that holds an image; on the diagonal, confidence is honest."""
    series: dict[str, tuple[list[float], list[float]]] = {"perfect": ([0.0, 1.0], [0.0, 1.0])}
    for name, one in list(evaluation.sets.items())[:MOST_SETS]:
        bins = [b for b in one.metrics[evaluation.reported]["reliability"] if b["n"]]
        series[name] = ([b["confidence"] for b in bins], [b["accuracy"] for b in bins])
    return Lines("Reliability", "confidence", "accuracy", series)


def risk_coverage_lines(evaluation: Evaluation) -> Lines:
    """The error rate among the most confident share of each set."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, one in list(evaluation.sets.items())[:MOST_SETS]:
        prediction = one.predictions[evaluation.reported]
        correct = torch.tensor(one.classes)[prediction.predicted] == one.labels
        coverage, risk = risk_coverage(prediction.confidence, correct)
        kept = torch.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().long()
        series[name] = (coverage[kept].tolist(), risk[kept].tolist())
    return Lines("Risk–coverage", "coverage", "error rate", series)
