"""Zero-shot at a temperature that is fitted on the shots: the reference that costs nothing.

Temperature scaling (Guo et al. 2017, arXiv 1706.04599) wants images that the model has not learnt from. Zero-shot has learnt from
none, so all shots and all validation images serve, where a learnt model has a few validation images.
"""

from collections.abc import Mapping
from typing import Any

import torch

from clipkal.data.sets import LabelledSet
from clipkal.errors import CheckpointError
from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.predictives.novelty import ZEROSHOT_SD
from clipkal.uncertainty.predictives.plugin import plugin
from clipkal.uncertainty.reader import Reader
from clipkal.uncertainty.temperature import fit_temperature


class Tempered(Predictive):
    """p = softmax(z₀/T₀) of the zero-shot logits z₀; it is refused where something is learnt, under whose name it would stand."""

    needs = ("zeroshot",)
    zeroshot_only = True

    def __init__(self) -> None:
        self.temperature = 1.0

    def fit(self, reader: Reader, shots: LabelledSet, validation: LabelledSet | None) -> None:
        sets = [one for one in (shots, validation) if one is not None and len(one.labels)]
        known = [reader.whole(one.inputs, len(one.labels), self.needs, "shots").zeroshot for one in sets]
        logits = torch.cat([one for one in known if one is not None])
        labels = torch.cat([one.labels.cpu() for one in sets])
        self.temperature = fit_temperature(logits, labels, ZEROSHOT_SD)

    def predict(self, chunk: Chunk) -> Prediction:
        assert chunk.zeroshot is not None
        return plugin(chunk.zeroshot / self.temperature)

    def state(self) -> dict[str, Any]:
        """T₀."""
        return {"temperature": self.temperature}

    def load_state(self, state: Mapping[str, Any]) -> None:
        try:
            self.temperature = float(state["temperature"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"this is no state of predictive=tempered: {error!r} is wrong or missing"
            ) from error
