"""The plug-in predictive: the softmax at the learnt parameters, as if they were certain."""

import torch
from torch import Tensor

from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.prediction import Prediction, entropy_of, log_softmax
from clipkal.uncertainty.predictive import Predictive


class Plugin(Predictive):
    """p = softmax(z) of the logits at the learnt parameters."""

    def predict(self, chunk: Chunk) -> Prediction:
        return plugin(chunk.logits)


def plugin(logits: Tensor) -> Prediction:
    """The softmax of one logit vector an image; all its entropy is aleatoric.

    Args:
        logits: shape (N, C), any float type and device; computed on the CPU in float64.

    Raises:
        ValueError: wrong shape, or logits that are not finite.
    """
    log_probs = log_softmax(logits, 2)
    probs = log_probs.exp()
    entropy = entropy_of(probs, log_probs)
    return Prediction(probs, entropy, entropy, torch.zeros_like(entropy), log_probs)
