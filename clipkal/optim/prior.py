"""P₀ = p₀ I, free of scale: the ratio rule.

p₀ is such that on the first batch the mean over images and outputs of diag(H P₀ Hᵀ)/R₀ has a given value: far above 1
the filter leaves the range in which its linearisation holds, whatever the algebra; far below it learns nothing.

P₀ by the filter's own evidence is not offered, because it was tried and chooses badly. Measured on real features (8 to 53
classes, 1 to 16 shots, one pass, ratios 1 to 40): linearised once, the evidence is not that of a distribution over labels
and reaches +2 to +4 nats an image where the filter diverges; iterated it is a Laplace evidence, sane and falling from ratio
3 on, while the NLL of the next batch before it is taken in, and of held-out images, falls up to ratio 10 to 20. As in
function space (hyper.py) it scores an average over a prior that is far wider than the plug-in needs.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from clipkal.optim.jacobian import Jacobian
from clipkal.optim.measurement import Measurement, centred_logits
from clipkal.optim.vector import ParameterVector

# Variances of parameters that the rule leaves alone: a factor e^±½ on the logits.
PRIORS = {"log_scale": 0.25}
# Of a network whose layers move together the ratio rule takes this share of an observation's ratio.
NETWORK = 0.1
# Prior variance of centred logits beyond which linearised softmax outputs mislead (measured on real features).
WIDEST_LOGITS = 10.0


def ratio_prior(
    jacobian: Jacobian, reference: Measurement, ratio: float, of_softmax: bool, apart: Collection[str]
) -> float:
    """p₀ for a reference measurement of the first batch; infinite if its Jacobian is zero.

    of_softmax: bound p₀ by WIDEST_LOGITS as well: where the model is sure, H of a softmax output vanishes, and its
    ratio alone could ask for any p₀. apart: names of the parameters with variances of their own.
    """
    p0 = _p0_for(jacobian, reference, ratio, apart)
    if of_softmax:
        p0 = min(p0, _p0_for(jacobian, centred_logits(jacobian.logits), WIDEST_LOGITS, apart))
    return p0


def _p0_for(jacobian: Jacobian, reference: Measurement, ratio: float, apart: Collection[str]) -> float:
    squares = jacobian.squared_rows(reference)
    total = sum(float(value) for name, value in squares.items() if name not in apart)
    if not math.isfinite(total):
        raise FloatingPointError("the Jacobian of the first batch is not finite; step refused")
    return ratio * len(jacobian.logits) * reference.dof / total if total > 0 else math.inf


def is_network(vector: ParameterVector, apart: Collection[str]) -> bool:
    """Whether several weight matrices that are already there move together: their product is far from linear.

    A linear adapter's matrix or LoRA's B (its A has a prior of its own) are changes that begin at zero, in which the
    logits are linear or nearly so, and so are they in a single layer.
    """
    parameters = vector.parameters.items()
    return sum(name not in apart and p.ndim > 1 and bool(p.any()) for name, p in parameters) > 1


def unit_temperature(jacobian: Jacobian, p0: float, apart: Collection[str]) -> float:
    """T ≤ 1 for which draws from the prior p₀ have logits of unit variance, as function_space's temperature="unit".

    At p₀ large enough to learn from few images nearly all the variance at a new image is prior variance, which no
    image has seen; at T = 1 the average over draws is then far under-confident, though its mean predicts well.
    """
    return min(1.0, _p0_for(jacobian, centred_logits(jacobian.logits), 1.0, apart) / p0)


def prior_variances(vector: ParameterVector, p0: float, priors: Mapping[str, float]) -> Tensor:
    """diag(P₀) [n]: p₀, but for the parameters named in `priors`."""
    variances = torch.full((vector.size,), p0, dtype=vector.dtype, device=vector.device)
    for name, variance in priors.items():
        if name in vector.names:
            vector.view(variances, name).fill_(variance)
    return variances
