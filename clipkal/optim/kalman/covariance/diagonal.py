"""P = diag(p): LoKO's covariance (arXiv 2410.11551), in the gain form.

    θ ← θ + K e,   p ← p ∘ (1 − diag(K H))                 (FD: the diagonal of the exact posterior)

Given a diagonal P and one block, mean and variances are those of the dense filter, then P is cut to its
diagonal. The gain carries the mean because a diagonal information form, p ← 1/(1/p + diag(HᵀR⁻¹H)), θ ← θ −
p ∘ ∇NLL, is diagonal
preconditioning with unit step: it diverges on correlated inputs (measured, errors of 1e5 and more at
correlation 0.5). `form="information"` (VD, the KL-optimal projection of one image's posterior) uses it for
the variances only: they are smaller, over-confident where FD is under-confident.

Cost of a block of b images, m outputs each: bilinear models see covariance/bilinear.py; otherwise the rows H̃
[bm, n] are formed, (bm)² n flop and bm·n memory. State: n numbers.
"""

import torch
from torch import Tensor

from clipkal.optim.base import check_finite
from clipkal.optim.kalman.covariance.base import Covariance, class_cotangents
from clipkal.optim.kalman.covariance.bilinear import logit_covariance, logit_noise, solve_block
from clipkal.optim.kalman.covariance.blocks import BlockUpdate
from clipkal.optim.kalman.innovation import Innovation, Weigher, innovate
from clipkal.optim.linalg import gram_matrix, normal, psd_root
from clipkal.optim.model.bilinear import BilinearJacobian
from clipkal.optim.model.jacobian import Jacobian
from clipkal.optim.model.measurement import Measurement
from clipkal.optim.model.parameters import ParameterVector

FLOOR = 1e-12  # of the largest prior variance


class Diagonal(Covariance):
    """n variances.

    form: "gain" (FD) or "information" (VD), of the variances; the mean always takes the gain.
    iterations: how often a block is linearised at most, for the categorical observation of bilinear models.
    """

    def __init__(self, form: str = "gain", iterations: int = 1):
        if form not in ("gain", "information"):
            raise ValueError(f"form must be gain or information, got {form!r}")
        if iterations < 1:
            raise ValueError(f"iterations must be positive, got {iterations}")
        self.form, self.iterations = form, iterations

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        self.vector = vector
        self.variance = prior.to(vector.dtype).clone()
        self.floor = (FLOOR * prior.max()).to(vector.dtype)
        self.before_shrink: Tensor | None = None

    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        if isinstance(jacobian, BilinearJacobian):
            return self._update_bilinear(jacobian, measurement, weigher)
        return self._update_rows(jacobian, measurement, weigher)

    def _update_rows(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        rows = jacobian.rows(measurement)
        b, m, n = rows.shape
        flat = rows.reshape(b * m, n)
        innovation = innovate(gram_matrix(flat, self.variance).view(b, m, b, m), measurement, weigher)
        assert innovation.matrix is not None
        delta = self.variance * (innovation.vector.reshape(-1).to(flat.dtype) @ flat)
        check_finite(delta, "the change of the parameters")
        self.vector.add_(delta)
        if self.form == "gain":  # colsum((L H̃)²) with Lᵀ L = D S⁻¹ D
            root = psd_root(innovation.matrix.reshape(b * m, b * m)).mT.to(flat.dtype)
            fall_(self.variance, (root @ flat).square().sum(0))
        else:
            weights = innovation.weights.repeat_interleave(m).to(flat.dtype)
            self._gather_information(self.variance, weights @ flat.square())
        return innovation

    def _update_bilinear(
        self, jacobian: BilinearJacobian, measurement: Measurement, weigher: Weigher
    ) -> Innovation:
        P, extra = self._parts(self.variance)
        block = solve_block(jacobian, P, extra, measurement, weigher, self.iterations)
        block.check_finite()
        self._move(P, extra, block, jacobian.right)
        if self.form == "gain":
            fall = (block.curvature.to(block.products.dtype).mT @ block.products).to(P.dtype)
            fall_(P, fall)
            if len(extra):
                fall_(extra, block.extra_curvature.to(P.dtype))
        else:
            self._gather_bilinear(P, extra, jacobian, measurement, block.innovation.weights)
        return block.innovation

    @torch.no_grad()
    def _move(self, P: Tensor, extra: Tensor, block: BlockUpdate, right: Tensor) -> None:
        """θ ← θ + K e, in one pass."""
        weight = self.vector.parameters["weight"]
        change = block.direction.mT.to(P.dtype) @ right
        if weight.dtype == P.dtype:
            weight.addcmul_(P, change)
        else:
            weight.add_((P * change).to(weight.dtype))
        if len(extra):
            scale = self.vector.parameters["log_scale"]
            scale.add_((extra * block.extra_direction)[0].to(scale.dtype))

    def _gather_bilinear(
        self, P: Tensor, extra: Tensor, jacobian: BilinearJacobian, measurement: Measurement, weights: Tensor
    ) -> None:
        left = weights[:, None] * measurement.pull(jacobian.left).square().sum(1)
        self._gather_information(P, left.mT.to(P.dtype) @ jacobian.right.square())
        column = weights[:, None] * measurement.pull(jacobian.extra).square().sum(1)
        self._gather_information(extra, column.sum(0).to(P.dtype))

    def _gather_information(self, p: Tensor, x: Tensor) -> None:
        """p ← p / (1 + p ∘ x), in place; x is overwritten."""
        p.div_(x.mul_(p).add_(1.0))

    def _parts(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix part [p, q] and the rest [e] of flat [n], as views."""
        weight = self.vector.view(flat, "weight")
        if "log_scale" not in self.vector.names:
            return weight, flat[:0]
        offset = self.vector.offsets["log_scale"]
        return weight, flat[offset : offset + 1]

    def predict(self, fading: float, process_noise: float) -> None:
        if fading != 1:
            self.variance.div_(fading)
        if process_noise:
            self.variance.add_(process_noise)
        torch.clamp(self.variance, min=self.floor, out=self.variance)

    def shrink(self, precision: float) -> None:
        """p ← p / (1 + λ p)."""
        self.before_shrink = self.variance.clone()
        self.variance = self.variance / (1 + precision * self.variance)

    def unshrink(self, precision: float) -> None:
        assert self.before_shrink is not None
        self.variance = unshrunk(self.before_shrink, self.variance, precision)
        self.before_shrink = None

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, len(self.variance)), self.variance, generator) * self.variance.sqrt()

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        if isinstance(jacobian, BilinearJacobian):
            return logit_covariance(jacobian, *self._parts(self.variance))
        J = jacobian.pull(class_cotangents(jacobian))
        return torch.stack([gram_matrix(image, self.variance) for image in J])

    def logit_noise(self, jacobian: Jacobian, n: int, generator: torch.Generator | None) -> Tensor | None:
        if not isinstance(jacobian, BilinearJacobian):
            return None
        return logit_noise(jacobian, *self._parts(self.variance), n, generator).to(jacobian.logits.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"variance": self.variance, "floor": self.floor}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.variance, self.floor = tensors["variance"], tensors["floor"]
        self.before_shrink = None


def fall_(p: Tensor, x: Tensor) -> None:
    """p ← p ∘ (1 − p ∘ x), in place; x is overwritten."""
    x.mul_(p).clamp_(0.0, 1 - 10 * torch.finfo(p.dtype).eps)  # beyond, rounding could reach 0
    p.addcmul_(p, x, value=-1.0)


def unshrunk(before: Tensor, after: Tensor, precision: float) -> Tensor:
    """p₀ / (1 + p₀ d) with d = 1/p⁺ − 1/p̃ ≥ 0, what the updates added to the precision p̃⁻¹ = p₀⁻¹ + λ."""
    shrunk = before / (1 + precision * before)
    gained = ((shrunk - after) / (shrunk * after)).clamp_(min=0.0)
    return before / (1 + before * gained)
