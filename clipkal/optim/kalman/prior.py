"""P₀ = p₀ I, free of scale: the ratio rule.

p₀ is such that on the first batch the mean over images and outputs of diag(H P₀ Hᵀ)/R₀ has a given value: far above 1
the filter leaves the range in which its linearisation holds, whatever the algebra; far below it learns nothing.

P₀ by the filter's own evidence is not offered, because it chooses badly: linearised once, the evidence is not that of a
distribution over labels, and iterated it scores an average over a prior that is far wider than the plug-in needs.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from clipkal.optim.kalman.update import Measurement
from clipkal.optim.model.jacobian import Jacobian, ParameterVector

NETWORK = 0.1
"""Of a network whose layers move together the ratio rule takes this share of an observation's ratio."""
WIDEST_LOGITS = 10.0
"""Prior variance of centred logits beyond which linearised softmax outputs mislead."""


def centred_logits(logits: Tensor) -> Measurement:
    """z_c − mean z [b, C] with unit noise: what the ratio rule and its bound are measured on; no residual."""
    b, C = logits.shape
    centring = torch.eye(C, dtype=torch.float64, device=logits.device) - 1 / C
    nothing = torch.zeros(b, C, dtype=torch.float64, device=logits.device)
    return Measurement(nothing, nothing[:, 0], max(C - 1, 1), centring.expand(b, C, C))


def p0_by_ratio(
    jacobian: Jacobian, reference: Measurement, ratio: float, of_softmax: bool, apart: Collection[str]
) -> float:
    """p₀ for a reference measurement of the first batch; infinite if its Jacobian is zero.

    of_softmax: bound p₀ by WIDEST_LOGITS as well: where the model is sure, H of a softmax output vanishes, and its
        ratio alone could ask for any p₀.
    apart: names of the parameters with variances of their own.
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
    """T ≤ 1 for which draws from the prior p₀ have logits of unit variance, as posterior_temperature="unit" of `Kalman`.

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
