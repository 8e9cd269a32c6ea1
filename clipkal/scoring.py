"""From the predictions of a set to what is stored of them: metrics, intervals, and how well errors are told."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics import Outcomes, bootstrap_intervals, msp, outcomes, separations, summary
from clipkal.metrics.bootstrap import LEVEL, RESAMPLES
from clipkal.metrics.calibration import BINS, TopBins
from clipkal.metrics.classwise import class_bins
from clipkal.uncertainty import Prediction

INTERVALS = {"method": "bootstrap", "resamples": RESAMPLES, "level": LEVEL}
"""How the intervals in results.json were made."""


def scores_of(prediction: Prediction, epistemic: bool) -> dict[str, Tensor]:
    """The scores that a prediction gives, [N] each: msp, entropy, mutual_information where asked, novelty where it is known."""
    scores = {"msp": msp(prediction.probs), "entropy": prediction.entropy}
    scores |= {"mutual_information": prediction.epistemic} if epistemic else {}
    return scores | ({} if prediction.novelty is None else {"novelty": prediction.novelty})


def metrics_of(
    predictions: Mapping[str, Prediction],
    labels: Tensor,
    image_scores: Mapping[str, Tensor],
    bins: int = BINS,
) -> dict[str, dict[str, Any]]:
    """The metrics of several predictions of the same N images, by name.

    Args:
        predictions: over the label space of the set.
        labels: int64 [N], in that label space.
        image_scores: further scores of the images, [N] each, higher = less like the shots.
        bins: of the calibration errors.

    Returns:
        As `clipkal.metrics.summary`, with the means of entropy, aleatoric and epistemic parts and novelty, the
        `reliability` bins, `intervals` {accuracy, nll, ece: [low, high]}, and `errors`, see `told_errors`.
    """
    every: dict[str, Outcomes] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, one in predictions.items():
        every[name] = outcomes(one.probs, labels, one.log_probs)
        top = TopBins.of(every[name], bins)
        values = summary(every[name], top, class_bins(one.probs, labels, bins))
        parts = {part: getattr(one, part) for part in ("entropy", "aleatoric", "epistemic", "novelty")}
        values |= {part: value.mean().item() for part, value in parts.items() if value is not None}
        values["reliability"] = [vars(one_bin) for one_bin in top.diagram()]
        values["errors"] = told_errors(
            every[name].correct, scores_of(one, bool(one.epistemic.any())) | dict(image_scores)
        )
        found[name] = values
    intervals = bootstrap_intervals(list(every.values()), bins)
    for values, limits in zip(found.values(), intervals, strict=True):
        values["intervals"] = {name: list(ends) for name, ends in limits.items()}
    return found


def told_errors(correct: Tensor, scores: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """{score: {auroc, aupr, fpr95}} of telling a set's wrongly classified images from the others.

    None where all are right, or all wrong. The share of errors, which AUPR depends on, is 1 − accuracy.
    """
    if correct.all() or not correct.any():
        return None
    told = separations(torch.stack(list(scores.values())), ~correct)
    return dict(zip(scores, told, strict=True))


def told_apart(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """{score: {auroc, aupr, fpr95, n_id, n_ood}} of telling OOD images from ID ones by the same scores of both."""
    scores = torch.stack([torch.cat([values, outside[name]]) for name, values in inside.items()])
    n_id, n_ood = (len(next(iter(one.values()))) for one in (inside, outside))
    told = separations(scores, torch.arange(n_id + n_ood) >= n_id)
    return {name: one | {"n_id": n_id, "n_ood": n_ood} for name, one in zip(inside, told, strict=True)}
