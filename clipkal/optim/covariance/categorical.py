"""The joint update of a bilinear model for the categorical likelihood, in logit space: nothing is whitened.

For R = w (diag(π) − ππᵀ), block-diagonal over the images of a block, and K = J P Jᵀ, Gaussian-process classification
(GPML eq. 3.44–3.47) has what S gives in a third of the operations. With D = diag(wπ), A [bm, b] the classes of each
image, and z = y/π_y, for which R z = w (y − π):

    S' = I + D^½ K D^½,   E = D^½ S'⁻¹ D^½,   N = E − E A (AᵀEA)⁻¹ AᵀE = Q̃ S⁻¹ Q̃ᵀ = (I + R K)⁻¹ R
    Q̃ S⁻¹ r = N z          the mean's direction, leftᵀ N z          curvature, diag(leftᵀ N left)
    log det S = log det S' + log det AᵀEA − Σ log w          rᵀ(I − S⁻¹)r = (N z)ᵀ K R z

S' has no eigenvalue below 1 either, and its rows scale with √π, so unlikely classes, and an unlikely y, cost no
accuracy. Iterated, this is Newton's method for the mode of the block in bm unknowns: K stays, only π moves (with a
trainable log_scale, the linearisation of its column stays as well). Merged classes (measurement.py) are the same with
the coarse logits of each image.
"""

import torch
from torch import Tensor

from clipkal.optim.covariance.blocks import BlockUpdate, Pairs, diagonal_form, too_wide, weighted_gram
from clipkal.optim.innovation import Innovation, Weigher
from clipkal.optim.jacobian import BilinearJacobian
from clipkal.optim.linalg import log_det, unit_cholesky
from clipkal.optim.measurement import CategoricalMeasurement, MergedMeasurement
from clipkal.optim.observation import LOWEST_LOG_PROBABILITY

IGNORED = 1e-100  # the weight of an image that a gate leaves out: AᵀEA stays invertible
# Iterations end when one gains less than GAIN nats an image; a step is halved up to HALVINGS times.
GAIN, HALVINGS = 0.01, 12


def solve_categorical(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: CategoricalMeasurement,
    weigher: Weigher,
    iterations: int = 1,
) -> BlockUpdate | None:
    """One block for variance [p, q] and extra_variance [e]; changes nothing. None if it needs float64."""
    pairs = Pairs(len(jacobian.right), jacobian.right.device)
    i, j = pairs.first, pairs.second
    products = jacobian.right[i] * jacobian.right[j]
    U = products @ variance.mT
    left = coarse(measurement, jacobian.left) if isinstance(measurement, MergedMeasurement) else None
    K = weighted_gram(jacobian, U) if left is None else (left[i] * U[:, None, :]) @ left[j].mT
    if too_wide(K):
        return None
    K = K.double()
    z = _coarse_columns(jacobian, measurement) if len(extra_variance) else None
    if z is not None:
        K = K + (z[i] * extra_variance.double()) @ z[j].mT
    score, N, innovation = posterior_curvature(pairs.assemble(K), measurement, weigher, iterations)
    blocks = pairs.blocks(N)
    single, direction = blocks.to(U.dtype), score.to(U.dtype)
    none = score.new_zeros(0)
    return BlockUpdate(
        direction=direction @ jacobian.left if left is None else (direction[:, None, :] @ left)[:, 0],
        curvature=(
            diagonal_form(jacobian, single) if left is None else ((single @ left[j]).mul_(left[i])).sum(1)
        ),
        products=products,
        extra_direction=none if z is None else (score[..., None] * z).sum((0, 1)),
        extra_curvature=none if z is None else ((blocks @ z[j]) * z[i]).sum((0, 1)),
        innovation=innovation,
    )


def posterior_curvature(
    K: Tensor, measurement: CategoricalMeasurement, weigher: Weigher, iterations: int = 1
) -> tuple[Tensor, Tensor, Innovation]:
    """s = N z [b, m], N [bm, bm] and what the block says, for K [bm, bm] float64; (bm)³ flop an iteration."""
    root, r = measurement.columns, measurement.residual
    z = r / root + 1  # y/π_y: r is Qᵀz
    weights, mahalanobis = _weigh(K, measurement, z, weigher)
    scale = weights if weights is None else weights.clamp(min=IGNORED).sqrt()[:, None]
    N, log_det_s = _projected_inverse(K, root, scale)
    score = N @ z.view(-1)
    if mahalanobis is None:
        mahalanobis = (score.view_as(z) * z).sum(-1)
    if weights is None:
        weights = torch.ones_like(mahalanobis)
    if iterations == 1:
        explained = score.dot(K @ (weights[:, None] * root * r).view(-1))
        evidence = weights.dot(measurement.log_likelihood) + (explained - log_det_s) / 2
    else:
        mode = Mode(K, measurement, weights)
        while mode.advance(score) and mode.steps < iterations:
            N, log_det_s = _projected_inverse(K, (mode.log_pi / 2).exp(), scale)
            score = N @ (mode.change + mode.inverse_likelihood())
        score, evidence = mode.score, mode.log_joint - log_det_s / 2
    score = score.view_as(z)
    if weigher.gate.active:
        score = torch.where(weights[:, None] > 0, score, 0.0)
    return score, N, Innovation(score, None, evidence, mahalanobis / measurement.dof, weights)


class Mode:
    """The way to the mode of a block, Ψ(s) = Σ w log p(y | f + Ks) − ½ sᵀKs, by Newton's method with halved steps.

    score: s [bm]. change: Ks. log_pi: [b, m] at f + Ks. log_joint: Ψ. The iterated extended Kalman filter (Bell &
    Cathey 1993) is this: relinearised at f + Ks, R and N are those there, and the next s is N (Ks + y/π_y).
    """

    def __init__(self, K: Tensor, measurement: CategoricalMeasurement, weights: Tensor):
        self.K, self.weights, self.steps = K, weights, 0
        self.start = 2 * measurement.columns.log()
        self.target = measurement.residual.argmax(1, keepdim=True)  # r is positive there alone
        self.score = self.change = torch.zeros_like(K[0])
        self.log_pi, self.log_joint = self._look(self.score, self.change)

    def _look(self, score: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        log_pi = (self.start + change.view_as(self.start)).log_softmax(-1).clamp(min=LOWEST_LOG_PROBABILITY)
        likelihood = self.weights.dot(log_pi.gather(1, self.target)[:, 0])
        return log_pi, likelihood - score.dot(change) / 2

    def advance(self, score: Tensor) -> bool:
        """Goes to `score`, or as far towards it as Ψ increases; whether another step is worth while."""
        self.steps += 1
        before, start, direction = self.log_joint, self.score, score - self.score
        for halvings in range(HALVINGS):
            score = start + direction * 0.5**halvings
            change = self.K @ score
            log_pi, log_joint = self._look(score, change)
            if log_joint >= before:
                self.score, self.change, self.log_pi, self.log_joint = score, change, log_pi, log_joint
                return bool(log_joint - before > GAIN * len(log_pi))
        return False

    def inverse_likelihood(self) -> Tensor:
        """y/π_y [bm]."""
        own = self.log_pi.gather(1, self.target)
        return torch.zeros_like(self.log_pi).scatter(1, self.target, (-own).exp()).view(-1)


def _projected_inverse(K: Tensor, root: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """N [bm, bm] and log det S for √π [b, m] and √w [b, 1], None where all are 1."""
    b = len(root)
    flat = (root if scale is None else scale * root).view(-1)
    outer = flat[:, None] * flat
    factor = unit_cholesky(outer * K)
    E = torch.cholesky_inverse(factor).mul_(outer)
    sums = E.view(b, -1, len(K)).sum(1)  # AᵀE [b, bm]
    half, log_det_inner = _half(sums, sums.view(b, b, -1).sum(-1))
    log_det_s = log_det(factor) + log_det_inner
    if scale is not None:
        log_det_s = log_det_s - 2 * scale.log().sum()
    return E.addmm_(half.mT, half, alpha=-1), log_det_s


def _half(sums: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """X [b, bm] with XᵀX = EA (AᵀEA)⁻¹ AᵀE, and log det AᵀEA."""
    if len(sums) == 1:
        return sums / inner.sqrt(), inner.log().sum()
    factor, info = torch.linalg.cholesky_ex(inner)
    if info:
        raise FloatingPointError("the innovation covariance is not positive definite; step refused")
    return torch.linalg.solve_triangular(factor, sums, upper=False), log_det(factor)


def _weigh(
    K: Tensor, measurement: CategoricalMeasurement, z: Tensor, weigher: Weigher
) -> tuple[Tensor | None, Tensor | None]:
    """w [b], None where all are 1; and d² [b] of each image by itself where a gate needs it."""
    r = measurement.residual
    if not weigher.gate.active:
        return (None if weigher.power == 1 else torch.full_like(r[:, 0], weigher.power)), None
    b, m = r.shape
    alone = K.view(b, m, b, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    squares = [
        value.dot(_projected_inverse(block, root[None])[0] @ value)
        for block, root, value in zip(alone, measurement.columns, z, strict=True)
    ]
    mahalanobis = torch.stack(squares)
    return weigher.weights(mahalanobis, r.square().sum(-1), measurement.dof), mahalanobis


def coarse(measurement: MergedMeasurement, x: Tensor) -> Tensor:
    """The coarse logits of x [C, l]: M x [b, m, l] in the dtype of x."""
    return torch.cat([x[measurement.kept], (measurement.tail.to(x.dtype) @ x)[:, None, :]], dim=1)


def _coarse_columns(jacobian: BilinearJacobian, measurement: CategoricalMeasurement) -> Tensor:
    """The columns outside the matrix [b, m, e], float64."""
    x = jacobian.extra.double()
    if not isinstance(measurement, MergedMeasurement):
        return x
    picked = x.gather(1, measurement.kept[..., None].expand(-1, -1, x.shape[-1]))
    return torch.cat([picked, measurement.tail[:, None, :] @ x], dim=1)
