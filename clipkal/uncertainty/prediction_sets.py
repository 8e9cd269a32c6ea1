"""Conformal prediction sets of a run: from images that the model did not learn from, or from shots left out in turn.

With validation images it is split conformal, exact but for what was chosen by the same images: one temperature, or a
learning rate and an epoch. Without them the shots would have to serve, which the model knows too well: each is then
predicted by the posterior without its own label (`leave_one_out`), and coverage is approximate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clipkal.data.sets import LabelledSet
from clipkal.metrics import SplitConformal
from clipkal.metrics.conformal import ALPHA, SCORES
from clipkal.uncertainty.chunk import View
from clipkal.uncertainty.leave_one_out import leave_one_out
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.reader import Reader
from clipkal.uncertainty.streaming import Images, predict


@dataclass(frozen=True, eq=False)
class Calibration:
    """Conformal thresholds of one predictive over all classes, and what they come from; see `clipkal.metrics.conformal`.

    Attributes:
        about: {predictive, alpha, calibration, n}. calibration: "validation", or where there are no such images "shots"
            that nothing was learnt from, or "leave-one-out", each shot as the posterior sees it without its own label;
            n images of these.
        splits: the thresholds for each conformal score.
    """

    about: dict[str, Any]
    splits: dict[str, SplitConformal]

    @classmethod
    def of(
        cls,
        reader: Reader,
        name: str,
        predictives: Mapping[str, Predictive],
        shots: LabelledSet | None,
        validation: LabelledSet | None,
    ) -> "Calibration | None":
        """None where there are neither validation images nor a posterior that leaves a shot out."""
        held_out = _held_out(reader, name, predictives[name], shots, validation)
        if held_out is None:
            return None
        source, prediction, labels = held_out
        about = {"predictive": name, "alpha": ALPHA, "calibration": source, "n": len(labels)}
        make = lambda kind: SplitConformal(prediction.probs, labels, kind, ALPHA, reader.seed)
        return cls(about, {kind: make(kind) for kind in SCORES})

    def record(self) -> dict[str, Any]:
        """`about` with the thresholds over all classes by score: an image's set are the classes whose score is no larger."""
        return self.about | {"thresholds": {kind: one.pooled for kind, one in self.splits.items()}}

    def judge(self, prediction: Prediction, labels: Tensor) -> dict[str, Any]:
        """Coverage and size of the sets of test images, by score, with what they come from."""
        return self.about | {kind: one.judge(prediction.probs, labels) for kind, one in self.splits.items()}


def _held_out(
    reader: Reader,
    name: str,
    predictive: Predictive,
    shots: LabelledSet | None,
    validation: LabelledSet | None,
) -> tuple[str, Prediction, Tensor] | None:
    """What the images are, and predictions of them by a model that did not learn from their labels."""
    frozen = isinstance(reader.model, nn.Module) and not any(
        p.requires_grad for p in reader.model.parameters()
    )
    unseen = validation if validation is not None else shots if frozen else None
    if unseen is not None:
        labels, view = unseen.labels.cpu(), View(name)
        images = {"calibration": Images(unseen.inputs, len(labels), [view])}
        found = predict(reader, {name: predictive}, images)["calibration"][view]
        return ("shots" if validation is None else "validation"), found, labels
    left_out = None if shots is None else leave_one_out(reader, predictive, shots, reader.seed)
    return None if left_out is None else ("leave-one-out", *left_out)
