"""Several predictives of the same images, from one pass over the logits, the draws or the moments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.uncertainty.gaussian import probit
from clipkal.uncertainty.prediction import Prediction, plugin
from clipkal.uncertainty.predictor import Predictor
from clipkal.uncertainty.sampled import SampleAverage


@dataclass(frozen=True)
class View:
    """One way to read the logits.

    Attributes:
        predictive: "plugin", "sampled" or "probit".
        temperature: divides the logits.
        classes: the label space: indices of the logits that are kept, or None for all.
    """

    predictive: str
    temperature: float = 1.0
    classes: tuple[int, ...] | None = None

    def of(self, logits: Tensor) -> Tensor:
        """The logits (…, C) as this view has them, (…, C′)."""
        kept = logits if self.classes is None else logits[..., list(self.classes)]
        return kept if self.temperature == 1 else kept / self.temperature

    def of_covariance(self, covariance: Tensor) -> Tensor:
        """The same for a covariance (…, C, C)."""
        return self.of(self.of(covariance).mT).mT


@dataclass(frozen=True)
class Images:
    """Inputs of N images (whatever `inputs[a:b]` gives) and the views wanted of them."""

    inputs: Tensor
    count: int
    views: Sequence[View]

    def wanted(self, predictive: str) -> list[View]:
        """The views of one predictive, each once."""
        return [view for view in dict.fromkeys(self.views) if view.predictive == predictive]


def predict(predictor: Predictor, sets: Mapping[str, Images]) -> dict[str, dict[View, Prediction]]:
    """Every view of every set. Without `log_probs` only where a caller drops them; raises as the predictives do."""
    found: dict[str, dict[View, Prediction]] = {}
    classes = 0
    for name, images in sets.items():
        logits = predictor.logits(images.inputs, images.count, name)
        classes = logits.shape[1]
        found[name] = {view: plugin(view.of(logits)) for view in images.wanted("plugin")}
    for name, averages in _sampled(predictor, sets, classes).items():
        found[name] |= {view: average.prediction() for view, average in averages.items()}
    for name, images in sets.items():
        found[name] |= _probit(predictor, name, images, classes)
    return found


def _sampled(
    predictor: Predictor, sets: Mapping[str, Images], classes: int
) -> dict[str, dict[View, SampleAverage]]:
    averages = {
        name: {view: SampleAverage(images.count, len(view.classes or range(classes))) for view in wanted}
        for name, images in sets.items()
        if (wanted := images.wanted("sampled"))
    }
    inputs = {name: (sets[name].inputs, sets[name].count) for name in averages}
    if inputs:
        for name, rows, chunk in predictor.draws(inputs, classes):
            for view, average in averages[name].items():
                average.add(view.of(chunk), rows)
    return averages


def _probit(predictor: Predictor, name: str, images: Images, classes: int) -> dict[View, Prediction]:
    wanted = images.wanted("probit")
    parts: dict[View, list[Prediction]] = {view: [] for view in wanted}
    if wanted:
        for mean, covariance in predictor.moments(images.inputs, images.count, classes, name):
            for view in wanted:
                parts[view].append(probit(view.of(mean), view.of_covariance(covariance)))
    return {view: _joined(chunks) for view, chunks in parts.items()}


def _joined(parts: Sequence[Prediction]) -> Prediction:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Prediction(*map(cat, ("probs", "entropy", "aleatoric", "epistemic", "log_probs")))
