"""Evaluation: every set through every predictive, to metrics and an OOD-detection table.

The label space of a set: the ID set is scored over all classes, and so is a transfer set, whose classes are
its own; an OOD set over those it is given, or those that occur in it (as is usual for ImageNet-A and -R,
which have 200 of the 1000), by leaving the other logits out before the softmax. Detection compares scores
*between* sets, so it always uses all classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipkal.data.sets import LabelledSet
from clipkal.errors import ConfigError
from clipkal.metrics import auroc, classification_metrics, fpr95, msp, reliability
from clipkal.metrics.calibration import BINS
from clipkal.tracking.reported import SCALED, reported
from clipkal.uncertainty import Images, Plugin, Prediction, Predictive, Reader, Sampled, View, predict
from clipkal.uncertainty.fitting import temperatures as temperatures_of

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
        metrics: as `classification_metrics`, with the mean entropy, aleatoric and epistemic parts (nats), the
            `reliability` bins, and `temperature` where one was applied.
        scores: per predictive what detection compares, over all C classes, each [N]: msp, entropy, and
            mutual_information and novelty where there are.
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

    def to_dict(self) -> dict[str, Any]:
        """This set's part of results.json."""
        found = {"role": self.role, "label_space": self.classes, "label_rule": self.rule}
        found |= {"class_names": self.class_names} if self.class_names is not None else {}
        return found | {"predictive": self.metrics}


@dataclass
class Evaluation:
    """What a run is worth.

    Attributes:
        sets: per set name.
        detection: {ood set: {score: {auroc, fpr95, predictive, n_id, n_ood}}}, see `detection_table`.
        settings: {samples, seed, bins, temperatures}.
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
    evaluated = _predict(reader, sets, chosen, temperatures, spaces or {})
    for one in evaluated.values():
        _score(one, temperatures, bins)
    samples = max(one.samples if "draws" in one.needs else 0 for one in chosen.values())
    settings = {"samples": samples, "seed": reader.seed, "bins": bins, "temperatures": temperatures}
    return Evaluation(evaluated, detection_table(evaluated), settings)


def fit_temperatures(
    reader: Reader,
    validation: LabelledSet,
    predictives: Mapping[str, Predictive] | None = None,
    prior_sd: float = 1.0,
) -> dict[str, float]:
    """One temperature per predictive, fitted on validation images; for `evaluate(temperature=…)`.

    Arguments and errors as `evaluate`; `prior_sd` as `clipkal.uncertainty.fit_temperature`.
    """
    labels = validation.labels.cpu()
    return temperatures_of(reader, validation.inputs, labels, _chosen(predictives, reader), prior_sd)


def detection_table(sets: Mapping[str, SetEvaluation]) -> dict[str, dict[str, dict[str, Any]]]:
    """AUROC and FPR95 of telling each OOD set from the first ID set, per score; empty without such a pair.

    The scores (msp, entropy, and mutual_information and novelty where there are) are those of the reported predictive;
    beside another one, plugin_msp and plugin_entropy show what it adds to the plug-in.
    """
    reference = next((one for one in sets.values() if one.role == "id"), None)
    if reference is None:
        return {}
    chosen = reported(reference.scores)
    pairs = {score: (chosen, score) for score in reference.scores[chosen]}
    if chosen != "plugin" and "plugin" in reference.scores:
        pairs |= {f"plugin_{score}": ("plugin", score) for score in reference.scores["plugin"]}
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, one in sets.items():
        if one.role == "ood":
            table[name] = {
                key: _separation(reference.scores[p][score], one.scores[p][score]) | {"predictive": p}
                for key, (p, score) in pairs.items()
            }
    return table


def _separation(low: Tensor, high: Tensor) -> dict[str, Any]:
    return {"auroc": auroc(low, high), "fpr95": fpr95(low, high), "n_id": len(low), "n_ood": len(high)}


def _predict(
    reader: Reader,
    sets: Mapping[str, tuple[str, LabelledSet]],
    predictives: Mapping[str, Predictive],
    temperatures: Mapping[str, float],
    given: Mapping[str, Sequence[int]],
) -> dict[str, SetEvaluation]:
    """Every set with its predictions over its own label space and its detection scores over all classes."""
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
    predicted = predict(reader, predictives, images)
    every = [pair for found in predicted.values() for pair in found.items()]
    epistemic = {view.predictive for view, one in every if one.epistemic.any()}
    for name, found in predicted.items():
        one = evaluated[name]
        for key, (p, t) in keys.items():
            one.predictions[key] = found[View(p, t, spaces[name])]
            one.scores[key] = _scores(found[View(p, t)], p in epistemic)
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


def _scores(prediction: Prediction, epistemic: bool) -> dict[str, Tensor]:
    scores = {"msp": msp(prediction.probs), "entropy": prediction.entropy}
    scores |= {"mutual_information": prediction.epistemic} if epistemic else {}
    return scores | ({} if prediction.novelty is None else {"novelty": prediction.novelty})


def _score(one: SetEvaluation, temperatures: Mapping[str, float], bins: int) -> None:
    """Fills in the metrics of every prediction, and drops the logarithms, which nothing needs afterwards."""
    labels = torch.searchsorted(torch.tensor(one.classes), one.labels)
    for key, prediction in one.predictions.items():
        values = classification_metrics(prediction.probs, labels, bins, prediction.log_probs)
        for part in ("entropy", "aleatoric", "epistemic"):
            values[part] = getattr(prediction, part).mean().item()
        values["reliability"] = [asdict(b) for b in reliability(prediction.probs, labels, bins)]
        if key.endswith(SCALED):
            values["temperature"] = temperatures[key.removesuffix(SCALED)]
        one.metrics[key] = values
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
