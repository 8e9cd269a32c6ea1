"""SaLS-style range matching: an image's learnt logits may spread no wider, and no less, than its zero-shot logits.

Murugesan et al. (2024), "Robust calibration of large vision-language adapters", arXiv 2407.13588, sample-adaptive logit scaling:
adaptation widens the range of the logits, most of all out of distribution, and each image is given its zero-shot range back,

    z′ = (range z₀ / range z) (z − min z) + min z₀,     range z = max_c z_c − min_c z_c

which leaves every decision as it is and sets a temperature for each image. Nothing is fitted. Ours: where the label space of a set
is smaller, both ranges are those over its classes; and learnt logits that are all alike stay as they are.
"""

from torch import Tensor

from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.predictives.plugin import plugin

LEAST_RANGE = 1e-12


class RangeMatched(Predictive):
    """p = softmax(z′) of the learnt logits, each image's scaled to the range of its zero-shot logits."""

    needs = ("zeroshot",)

    def predict(self, chunk: Chunk) -> Prediction:
        assert chunk.zeroshot is not None
        scale = _range(chunk.zeroshot) / _range(chunk.logits).clamp(min=LEAST_RANGE)
        return plugin(scale * chunk.logits)  # the softmax does not see a shift


def _range(logits: Tensor) -> Tensor:
    """max − min over the classes [B, 1] of logits [B, C]."""
    return logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
