"""The figures of one run: reliability, risk against coverage, and uncertainty in and out of distribution."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from clipkal.evaluation import Evaluation, SetEvaluation
from clipkal.metrics import auroc
from clipkal.report.reliability import MARKS, reliability_figure
from clipkal.report.style import BAD, GOOD, INK, MUTED, PALETTE, plain, shown

MOST_SETS = 8
"""OOD sets with a line of their own."""
PANELS = {
    "entropy": "entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "novelty": "novelty",
    "nearest_shot": "distance to the nearest shot",
}
"""The scores that histograms are drawn of, where there are, and how they are called there."""
BARS = 30


def run_figures() -> dict[str, Callable[[Evaluation], Figure | None]]:
    """File name -> what draws it; None of a figure that has nothing to show."""
    return {
        "reliability": reliability_figure,
        "risk_coverage": risk_coverage_figure,
        "uncertainty": uncertainty_figure,
    }


def risk_coverage_figure(evaluation: Evaluation) -> Figure:
    """The error rate on the most confident share of the images: what a user gains who lets the model abstain.

    Left the ID set, with the plug-in and the best order there could be; right the OOD sets.
    """
    sets = {name: one for name, one in evaluation.sets.items() if one.role != "transfer"} or evaluation.sets
    chosen = evaluation.reported
    first, *others = sets.items()
    figure = _figure(9.2 if others else 4.2, 3.4)
    axes = figure.subplots(1, 2 if others else 1, sharey=True, squeeze=False)[0]
    name, one = first
    best = one.metrics[chosen]["accuracy"]
    _curve(axes[0], one.metrics[chosen], chosen, GOOD)
    if chosen != "plugin" and "plugin" in one.metrics:
        _curve(axes[0], one.metrics["plugin"], "plugin", MUTED, "--")
    coverage = one.metrics[chosen]["coverage"]
    axes[0].plot(coverage, [max(0.0, 1 - best / c) for c in coverage], ":", color=INK, label="best order")
    axes[0].set_title(shown(name + MARKS.get(one.role, "")), fontsize=10, color=INK, loc="left")
    worst = sorted(others, key=lambda pair: pair[1].metrics[chosen]["accuracy"])[:MOST_SETS]
    for color, (name, one) in zip(PALETTE, worst, strict=False):
        _curve(axes[1], one.metrics[chosen], name, color)
    for panel in axes:
        panel.set_xlabel("coverage: share of images answered")
        panel.set_xlim(0, 1.01)
        panel.set_ylim(bottom=0)
        plain(panel, grid="both")
    legend = {"fontsize": 7, "frameon": False, "labelcolor": INK, "loc": "upper left"}
    axes[0].legend(**legend)
    axes[0].set_ylabel("error rate on them")
    if others:
        axes[1].legend(**legend, bbox_to_anchor=(1.01, 1.02))
        title = "out of distribution" if len(worst) == len(others) else f"the {MOST_SETS} hardest OOD sets"
        axes[1].set_title(f"{title} ({shown(chosen)})", fontsize=10, color=INK, loc="left")
    return figure


def uncertainty_figure(evaluation: Evaluation) -> Figure | None:
    """Histograms of the reported predictive's scores: ID images rightly and wrongly classified, and all OOD images.

    A score that knows what it does not know has the last two to the right of the first. None without an ID set.
    """
    inside = next((one for one in evaluation.sets.values() if one.role == "id"), None)
    if inside is None:
        return None
    chosen = evaluation.reported
    outside = [_scores(one, chosen) for one in evaluation.sets.values() if one.role == "ood"]
    own = _scores(inside, chosen)
    panels = [name for name in PANELS if name in own and all(name in one for one in outside)]
    if not panels:
        return None
    figure = _figure(3.1 * len(panels), 2.9)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        together = torch.cat([one[name] for one in outside]) if outside else None
        _histograms(axes, own[name], right(inside, chosen), together)
        axes.set_xlabel(PANELS[name])
    figure.axes[0].set_ylabel("share of the group")
    figure.axes[0].legend(fontsize=7, frameon=False, labelcolor=INK)
    return figure


def _scores(one: SetEvaluation, predictive: str) -> dict[str, Tensor]:
    return one.scores[predictive] | one.image_scores


def right(one: SetEvaluation, predictive: str) -> Tensor:
    """Whether each image of a set is classified rightly, bool [N]."""
    return torch.tensor(one.classes)[one.predictions[predictive].predicted] == one.labels


def _histograms(axes: Axes, inside: Tensor, correct: Tensor, outside: Tensor | None) -> None:
    groups: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "ID, right": (inside[correct], {"color": GOOD, "alpha": 0.45, "histtype": "stepfilled"}),
        "ID, wrong": (inside[~correct], {"color": INK, "histtype": "step", "linewidth": 1.3}),
    }
    if outside is not None:
        groups["OOD"] = (outside, {"color": BAD, "histtype": "step", "linewidth": 1.8})
    every = torch.cat([values for values, _ in groups.values()])
    low, high = every.quantile(torch.tensor([0.002, 0.998], dtype=every.dtype)).tolist()
    high = high if high > low else low + 1e-6
    for label, (values, style) in groups.items():
        if len(values):
            weights = torch.full_like(values, 1 / len(values))
            held = values.clamp(low, high)
            style |= {"weights": weights.numpy(), "label": f"{label} ({len(values):,})"}
            axes.hist(held.numpy(), bins=BARS, range=(low, high), **style)
    told = []
    if outside is not None:
        told.append(f"OOD {auroc(inside, outside):.2f}")
    if correct.any() and not correct.all():
        told.append(f"errors {auroc(inside[correct], inside[~correct]):.2f}")
    axes.set_title(f"AUROC: {', '.join(told)}" if told else "", fontsize=9, color=INK, loc="left")
    plain(axes)


def _curve(axes: Axes, metrics: Mapping[str, Any], label: str, color: str, line: str = "-") -> None:
    risk = [1 - accuracy for accuracy in metrics["accuracy_at_coverage"]]
    text = f"{shown(label)}, AURC {metrics['aurc']:.3f}"
    axes.plot(metrics["coverage"], risk, line, color=color, linewidth=1.7, label=text)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
