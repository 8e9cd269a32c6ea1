"""The posterior of W read by classes that nothing was learnt from: other left factors, the same W.

    left′ W right = left′ V_T (V_Tᵀ W) right + (left′ − left′ V_T V_Tᵀ) W right

The first part the shots have informed. In the second W keeps its prior N(0, p₀ I), independent of the first, so
V_T is only continued by an orthonormal basis of what the new classes see beyond it. The state has all there is to
know: no problem is solved again, and W [p, q] is never formed.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipkal.optim.full_kalman.basis import span
from clipkal.optim.full_kalman.posterior import Posterior
from clipkal.optim.full_kalman.sampling import FunctionDraws
from clipkal.optim.linalg import normal

# Left factors whose part outside the learnt directions is below this share of their norm lie inside them.
NEGLIGIBLE = 1e-6


@dataclass
class OtherClasses:
    """A posterior over the logits of C′ other classes; `wide` has their left factors and the continued basis.

    Drawn functions have, for a generator in the same state, the same W as those over the learnt classes.
    """

    wide: Posterior

    @classmethod
    def of(cls, learnt: Posterior, left: Tensor) -> "OtherClasses":
        """left [C′, p], at the reference scale."""
        basis = learnt.left_basis.double()
        beyond = left.double() - (left.double() @ basis) @ basis.T
        if beyond.norm() > NEGLIGIBLE * left.double().norm():
            basis = torch.cat((basis, span(beyond)), 1)
        return cls(replace(learnt, left=left, left_basis=basis.to(learnt.left_basis)))

    @property
    def left(self) -> Tensor:
        return self.wide.left

    def draw(
        self, samples: int, generator: torch.Generator | None, tolerance: float | None = None
    ) -> FunctionDraws:
        """Functions from the posterior, in float32; S·q more numbers for each direction beyond the learnt ones."""
        draws = self.wide.draw(samples, generator, tolerance)
        _, q, seen = draws.coordinates.shape
        more = normal((samples, q, draws.classes.shape[1] - seen), draws.coordinates, generator)
        spread = self.wide.temperature**0.5
        return replace(draws, coordinates=torch.cat((draws.coordinates, spread * more), -1))

    def logit_covariance(self, offset: Tensor, right: Tensor) -> Tensor:
        """Exact covariance [B, C′, C′] of the drawn logits."""
        return self.wide.logit_covariance(offset, right)
