"""The probit predictive: the logits' variance, in closed form, shrinks them before the softmax.

The per-class probit of Laplace libraries, softmax(m_c / √(1 + π/8 Σ_cc)), is badly under-confident for
CLIP: most of the logit variance is common to all classes, has no effect on the softmax, and yet enters
Σ_cc. Here it is removed first.
"""

import math

import torch
from torch import Tensor

from clipkal.uncertainty.chunk import Chunk
from clipkal.uncertainty.gaussian import centred_variance, checked_moments
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.predictives.plugin import plugin


class Probit(Predictive):
    """MacKay's approximation of E[softmax(z)], z ~ N(logits, covariance); see `probit`."""

    needs = ("covariance",)

    def predict(self, chunk: Chunk) -> Prediction:
        assert chunk.covariance is not None
        return probit(chunk.logits, chunk.covariance)


def probit(mean: Tensor, covariance: Tensor) -> Prediction:
    """Centred probit approximation of E[softmax(z)].

        A = I − 11ᵀ/C,   m = A·mean,   v = diag(A·covariance·A)
        p = softmax(m / √(1 + π/8 · (C+2)/(C−1) · v))

    The first two steps remove what is common to all classes. The factor (C+2)/(C−1) is a choice of this
    project: it is 4 at C = 2, where p is then MacKay's (1992) probit of the difference of the two logits,
    and goes to 1 for many classes; against Monte Carlo it is the best or close to the best of the variants
    tried at every C from 2 to 200. Expect errors of the confidence of about 0.01, and 0.05 where logit
    standard deviations reach 3 at 50 classes.

    The split of the entropy has no closed form here: the aleatoric part is taken to be the entropy at the
    mean logits (at most the total). `monte_carlo` gives the real split.

    Args:
        mean: (N, C).
        covariance: (N, C, C), symmetric positive semi-definite.

    Raises:
        ValueError: wrong shapes, values that are not finite, or a negative variance beyond rounding.
    """
    mean, covariance = checked_moments(mean, covariance)
    classes = mean.shape[1]
    variance = centred_variance(covariance)
    spread = 1 + math.pi / 8 * (classes + 2) / max(classes - 1, 1) * variance
    centred = mean - mean.mean(1, keepdim=True)
    total = plugin(centred / spread.sqrt())
    assert total.log_probs is not None
    aleatoric = torch.minimum(plugin(mean).entropy, total.entropy)
    return Prediction(total.probs, total.entropy, aleatoric, total.entropy - aleatoric, total.log_probs)
