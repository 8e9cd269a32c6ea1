"""Evaluation: every set through every predictive, to metrics and an OOD-detection table.

The label space of a set: the ID set is scored over all classes, and so is a transfer set, whose classes are
its own; an OOD set over those it is given, or those that occur in it (as is usual for ImageNet-A and -R,
which have 200 of the 1000), by leaving the other logits out before the softmax. Detection compares scores
*between* sets, so it always uses all classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipkal.data.sets import LabelledSet
from clipkal.errors import ConfigError
from clipkal.metrics.calibration import BINS
from clipkal.scoring import INTERVALS, metrics_of, scores_of, told_apart
from clipkal.tracking.reported import SCALED, reported
from clipkal.uncertainty import Images, Plugin, Prediction, Predictive, Reader, Sampled, View, predict
from clipkal.uncertainty.fitting import temperatures as temperatures_of
from clipkal.uncertainty.prediction_sets import Calibration
from clipkal.uncertainty.shot_scores import SOURCES, ShotScores

ROLES = ("id", "ood", "transfer")


@dataclass
class SetEvaluation:
    """One set: its labels, and per predictive a `Prediction`, metrics and detection scores.

    Attributes:
        role: one of `ROLES`.
        ids: N names.
        labels: int64 [N], among all C classes.
        classes: the label space, ascending indices among all C classes.
        rule: how it was chosen, "all" or "occurring".
        class_names: where they are the set's own.
        predictions: over the label space, columns in the order of `classes`.
        metrics: as `clipkal.scoring.metrics_of`, and `temperature` where one was applied.
        scores: per predictive what detection compares, over all C classes, each [N]: msp, entropy, and
            mutual_information and novelty where there are.
        image_scores: the same of no predictive: energy, and distances to the shots; see `ShotScores`.
        conformal: prediction sets of the reported predictive over all C classes, see `Calibration`; None without.
    """

    role: str
    ids: list[str]
    labels: Tensor
    classes: list[int]
    rule: str = "all"
    class_names: list[str] | None = None
    predictions: dict[str, Prediction] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    image_scores: dict[str, Tensor] = field(default_factory=dict)
    conformal: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """This set's part of results.json."""
        found: dict[str, Any] = {"role": self.role, "label_space": self.classes, "label_rule": self.rule}
        found |= {"class_names": self.class_names} if self.class_names is not None else {}
        found |= {"conformal": self.conformal} if self.conformal is not None else {}
        return found | {"predictive": self.metrics}


@dataclass
class Evaluation:
    """What a run is worth.

    Attributes:
        sets: per set name.
        detection: {ood set: {score: {auroc, aupr, fpr95, predictive, n_id, n_ood}}}, see `detection_table`.
        settings: {samples, seed, bins, temperatures, intervals, conformal (`Calibration.record`, where there is one)}.
    """

    sets: dict[str, SetEvaluation]
    detection: dict[str, dict[str, dict[str, Any]]]
    settings: dict[str, Any]

    @property
    def reported(self) -> str:
        """The name of the predictive that is the run's result, beside which others are for comparison."""
        return reported(next(iter(self.sets.values())).metrics)

    def to_dict(self) -> dict[str, Any]:
        """The parts `sets`, `detection` and `evaluation` of results.json."""
        sets = {name: one.to_dict() for name, one in self.sets.items()}
        return {"sets": sets, "detection": self.detection, "evaluation": self.settings}


def evaluate(
    reader: Reader,
    sets: Mapping[str, tuple[str, LabelledSet]],
    predictives: Mapping[str, Predictive] | None = None,
    temperature: float | Mapping[str, float] | None = None,
    bins: int = BINS,
    spaces: Mapping[str, Sequence[int]] | None = None,
    shots: LabelledSet | None = None,
    validation: LabelledSet | None = None,
) -> Evaluation:
    """Predicts every set with every predictive and scores the predictions on the full set.

    Args:
        reader: of the model, and of its posterior where a predictive needs that.
        sets: name -> (role, set), a role of `ROLES`; the first "id" set is the reference of OOD detection.
        predictives: by the name that they have in the results; None: the plug-in, and draws where there is a posterior.
        temperature: adds for each predictive a second one, with the suffix "_scaled", whose logits are
            divided by this temperature; a mapping gives it per predictive (see `fit_temperatures`).
        bins: of the calibration errors.
        spaces: OOD set -> the labels it is scored over, ascending; the labels that occur where it is not named.
        shots: what was learnt from, for the distances to it; and for conformal sets where there is no `validation`.
        validation: images for conformal sets.

    Raises:
        ConfigError: an unknown role, no set, no predictive, or a model or posterior that cannot give what one needs.
        FloatingPointError: a logit is not finite; names the set and the images.
        ValueError: a set is empty or has a label that the model does not know.
    """
    chosen = _chosen(predictives, reader)
    roles = [role for role, _ in sets.values()]
    if not sets or set(roles) - set(ROLES):
        raise ConfigError(f"evaluation needs sets with role {', '.join(ROLES)}, got {roles}")
    temperatures = _temperatures(temperature, chosen)
    calibration = Calibration.of(reader, reported(chosen), chosen, shots, validation)
    watcher = ShotScores.of(reader, list(chosen.values()), shots)
    evaluated = _predict(reader, sets, chosen, temperatures, spaces or {}, watcher, calibration)
    for one in evaluated.values():
        _score(one, temperatures, bins)
    samples = max(one.samples if "draws" in one.needs else 0 for one in chosen.values())
    settings = {"samples": samples, "seed": reader.seed, "bins": bins, "temperatures": temperatures}
    settings |= {"intervals": INTERVALS} | (
        {} if calibration is None else {"conformal": calibration.record()}
    )
    return Evaluation(evaluated, detection_table(evaluated), settings)


def fit_temperatures(
    reader: Reader,
    validation: LabelledSet,
    predictives: Mapping[str, Predictive] | None = None,
    prior_sd: float = 1.0,
) -> dict[str, float]:
    """One temperature per predictive, fitted on validation images; for `evaluate(temperature=…)`.

    Those that have calibrated themselves are left out.
    Arguments and errors as `evaluate`; `prior_sd` as `clipkal.uncertainty.fit_temperature`.
    """
    labels = validation.labels.cpu()
    chosen = {name: one for name, one in _chosen(predictives, reader).items() if not one.calibrated}
    return temperatures_of(reader, validation.inputs, labels, chosen, prior_sd)


def detection_table(sets: Mapping[str, SetEvaluation]) -> dict[str, dict[str, dict[str, Any]]]:
    """AUROC, AUPR and FPR95 of telling each OOD set from the first ID set, per score; empty without such a pair.

    The scores of a prediction (msp, entropy, and mutual_information and novelty where there are) are those of the
    reported predictive; beside another one, plugin_msp and plugin_entropy show what it adds to the plug-in. Then follow
    those of the image alone: energy, and the distances to the shots where there are.
    """
    reference = next((one for one in sets.values() if one.role == "id"), None)
    if reference is None:
        return {}
    chosen = reported(reference.scores)
    pairs = {score: (chosen, score) for score in reference.scores[chosen]}
    if chosen != "plugin" and "plugin" in reference.scores:
        pairs |= {f"plugin_{score}": ("plugin", score) for score in reference.scores["plugin"]}
    sources = {key: predictive for key, (predictive, _) in pairs.items()} | SOURCES

    def compared(one: SetEvaluation) -> dict[str, Tensor]:
        of_predictions = {key: one.scores[p][score] for key, (p, score) in pairs.items()}
        return of_predictions | {score: one.image_scores[score] for score in reference.image_scores}

    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, one in sets.items():
        if one.role == "ood":
            told = told_apart(compared(reference), compared(one))
            table[name] = {key: values | {"predictive": sources[key]} for key, values in told.items()}
    return table


def _predict(
    reader: Reader,
    sets: Mapping[str, tuple[str, LabelledSet]],
    predictives: Mapping[str, Predictive],
    temperatures: Mapping[str, float],
    given: Mapping[str, Sequence[int]],
    watcher: ShotScores,
    calibration: Calibration | None,
) -> dict[str, SetEvaluation]:
    """Every set with its predictions over its own label space; detection and conformal sets are over all classes."""
    keys = {p: (p, 1.0) for p in predictives} | {p + SCALED: (p, t) for p, t in temperatures.items()}
    evaluated: dict[str, SetEvaluation] = {}
    images: dict[str, Images] = {}
    classes = reader.classes(next(iter(sets.values()))[1].inputs, next(iter(sets)))
    spaces: dict[str, tuple[int, ...] | None] = {}
    for name, (role, data) in sets.items():
        labels = data.labels.cpu()
        spaces[name] = _label_space(name, role, labels, classes, given.get(name))
        views = [View(p, t, space) for p, t in keys.values() for space in {None, spaces[name]}]
        images[name] = Images(data.inputs, len(labels), views)
        evaluated[name] = SetEvaluation(role, list(data.ids), labels, [])
    predicted = predict(reader, predictives, images, watcher)
    every = [pair for found in predicted.values() for pair in found.items()]
    epistemic = {view.predictive for view, one in every if one.epistemic.any()}
    for name, found in predicted.items():
        one = evaluated[name]
        for key, (p, t) in keys.items():
            one.predictions[key] = found[View(p, t, spaces[name])]
            one.scores[key] = scores_of(found[View(p, t)], p in epistemic)
        one.image_scores = watcher.scores(name)
        if calibration is not None:
            one.conformal = calibration.judge(found[View(calibration.about["predictive"])], one.labels)
        one.classes = list(spaces[name] or range(classes))
        one.rule = "all" if spaces[name] is None else "occurring"
    return evaluated


def _label_space(
    name: str, role: str, labels: Tensor, classes: int, given: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The classes a set is scored over, ascending; None for all of them."""
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"the set {name!r} is empty or has a label outside [0, {classes})")
    if role != "ood":
        return None
    space = tuple(labels.unique().tolist()) if given is None else tuple(given)
    if not set(labels.tolist()) <= set(space) <= set(range(classes)):
        raise ValueError(f"the label space of {name!r} lacks a label of it, or is not within [0, {classes})")
    return space if len(space) < classes else None


def _score(one: SetEvaluation, temperatures: Mapping[str, float], bins: int) -> None:
    """Fills in the metrics of every prediction, and drops the logarithms, which nothing needs afterwards."""
    labels = torch.searchsorted(torch.tensor(one.classes), one.labels)
    one.metrics = metrics_of(one.predictions, labels, one.image_scores, bins)
    for key, prediction in one.predictions.items():
        if key.endswith(SCALED):
            one.metrics[key]["temperature"] = temperatures[key.removesuffix(SCALED)]
        one.predictions[key] = prediction.without_logs()


def _chosen(predictives: Mapping[str, Predictive] | None, reader: Reader) -> dict[str, Predictive]:
    if predictives is None:
        predictives = {"plugin": Plugin()} | ({"sampled": Sampled()} if reader.posterior is not None else {})
    if not predictives:
        raise ConfigError("evaluation needs at least one predictive")
    if scaled := [name for name in predictives if name.endswith(SCALED)]:
        raise ConfigError(f"predictive {scaled[0]!r}: {SCALED} marks those at a fitted temperature")
    return dict(predictives)


def _temperatures(temperature: float | Mapping[str, float] | None, names: Iterable[str]) -> dict[str, float]:
    if temperature is None:
        return {}
    given = temperature if isinstance(temperature, Mapping) else dict.fromkeys(names, temperature)
    if bad := [t for t in given.values() if not 0 < t < float("inf")]:
        raise ConfigError(f"a temperature must be positive and finite, got {bad[0]}")
    return {name: float(given[name]) for name in names if name in given}
