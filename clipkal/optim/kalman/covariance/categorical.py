"""The joint update of a bilinear model for the categorical likelihood, in logit space: nothing is whitened.

For R = w (diag(π) − ππᵀ), block-diagonal over the images of a block, and K = J P Jᵀ, Gaussian-process classification
(GPML eq. 3.44–3.47) has what S gives in a third of the operations. With D = diag(wπ), A [bm, b] the classes of each
image, and z = y/π_y, for which R z = w (y − π):

    S' = I + D^½ K D^½,   E = D^½ S'⁻¹ D^½,   N = E − E A (AᵀEA)⁻¹ AᵀE = Q̃ S⁻¹ Q̃ᵀ = (I + R K)⁻¹ R
    Q̃ S⁻¹ r = N z          the mean's direction, leftᵀ N z          curvature, diag(leftᵀ N left)
    log det S = log det S' + log det AᵀEA − Σ log w          rᵀ(I − S⁻¹)r = (N z)ᵀ K R z

S' has no eigenvalue below 1 either, and its rows scale with √π, so unlikely classes, and an unlikely y, cost no
accuracy. Iterated, this is Newton's method for the mode of the block in bm unknowns: K stays, only π moves (with a
trainable log_scale, the linearisation of its column stays as well), and N is formed at the last π only. Merged classes
(measurement.py) are the same with the coarse logits of each image.
"""

from functools import lru_cache

import torch
from torch import Tensor

from clipkal.optim.kalman.covariance.blocks import BlockUpdate, Pairs, diagonal_form, too_wide, weighted_gram
from clipkal.optim.kalman.innovation import Innovation, Weigher
from clipkal.optim.kalman.observation import LOWEST_LOG_PROBABILITY
from clipkal.optim.linalg import unit_cholesky_
from clipkal.optim.model.bilinear import BilinearJacobian
from clipkal.optim.model.measurement import CategoricalMeasurement, MergedMeasurement

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
    products = torch.mul(*pairs.sides(jacobian.right))
    U = products @ variance.mT
    left = coarse(measurement, jacobian.left) if isinstance(measurement, MergedMeasurement) else None
    if left is None:
        K = weighted_gram(jacobian, U)
    else:
        first, second = pairs.sides(left)
        K = (first * U[:, None]) @ second.mT
    if too_wide(K):
        return None
    K = K.double()
    z = _coarse_columns(jacobian, measurement) if len(extra_variance) else None
    if z is not None:
        z_i, z_j = pairs.sides(z)
        K = K + (z_i * extra_variance.double()) @ z_j.mT
    score, N, innovation = posterior_curvature(pairs.assemble(K), measurement, weigher, iterations)
    blocks = pairs.blocks(N)
    single, direction = blocks.to(U.dtype), score.to(U.dtype)
    none = score.new_zeros(0)
    return BlockUpdate(
        direction=direction @ jacobian.left if left is None else (direction[:, None] @ left)[:, 0],
        curvature=(diagonal_form(jacobian, single) if left is None else (single @ second).mul_(first).sum(1)),
        products=products,
        extra_direction=none if z is None else (score[..., None] * z).sum((0, 1)),
        extra_curvature=none if z is None else ((blocks @ z_j) * z_i).sum((0, 1)),
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
    if weights is None:
        weights = torch.ones_like(measurement.log_likelihood)
    linear = Linearised(K, root, scale)
    reached: Tensor | float
    if iterations == 1:
        N = linear.curvature()
        score = first = N @ z.view(-1)
        gradient = root * r if scale is None else weights[:, None] * root * r
        explained = score.dot(K @ gradient.view(-1))
        reached = weights.dot(measurement.log_likelihood).add(explained, alpha=0.5)
    else:
        score = first = linear.solve(z.view(-1))
        mode = Mode(K, measurement, weights)
        while mode.advance(score) and mode.steps < iterations:
            linear = Linearised(K, mode.log_pi.div(2).exp_(), scale)
            score = linear.solve(mode.target())
        N, score, reached = linear.curvature(), mode.score, mode.log_joint
    evidence = reached - linear.half_log_det()
    if mahalanobis is None:
        mahalanobis = (first.view_as(z) * z).sum(-1)
    score = score.view_as(z)
    if weigher.gate.active:
        score = torch.where(weights[:, None] > 0, score, 0.0)
    return score, N, Innovation(score, None, evidence, mahalanobis / measurement.dof, weights)


class Mode:
    """The way to the mode of a block, Ψ(s) = Σ w log p(y | f + Ks) − ½ sᵀKs, by Newton's method with halved steps.

    score: s [bm]. change: Ks. log_pi: [b, m] at f + Ks. own: log π_y [b]. log_joint: Ψ. The iterated extended Kalman
    filter (Bell & Cathey 1993) is this: relinearised at f + Ks, R and N are those there, and the next s is N (Ks + y/π_y).
    """

    def __init__(self, K: Tensor, measurement: CategoricalMeasurement, weights: Tensor):
        b, m = measurement.residual.shape
        self.K, self.weights, self.enough, self.steps = K, weights, GAIN * b, 0
        self.start = self.log_pi = measurement.columns.log().mul_(2)
        labels = measurement.residual.argmax(1)  # r is positive there alone
        self.places = labels.add_(torch.arange(0, b * m, m, device=K.device)) if b > 1 else labels
        self.score = self.change = torch.zeros_like(K[0])
        self.own = measurement.log_likelihood
        self.log_joint = float(weights.dot(self.own))

    def advance(self, score: Tensor) -> bool:
        """Goes to `score`, or as far towards it as Ψ increases; whether another step is worth while."""
        self.steps += 1
        start = self.score
        for halvings in range(HALVINGS):
            ahead = torch.lerp(start, score, 0.5**halvings) if halvings else score
            change = self.K @ ahead
            log_pi = (
                (self.start + change.view_as(self.start)).log_softmax(-1).clamp_(min=LOWEST_LOG_PROBABILITY)
            )
            own = log_pi.view(-1).index_select(0, self.places)
            log_joint = float(torch.sub(self.weights.dot(own), ahead.dot(change), alpha=0.5))
            gain = log_joint - self.log_joint
            if gain >= 0:
                self.score, self.change, self.log_pi, self.own = ahead, change, log_pi, own
                self.log_joint = log_joint
                return gain > self.enough
        return False

    def target(self) -> Tensor:
        """Ks + y/π_y [bm]: N times it is the next s."""
        return self.change.index_add(0, self.places, self.own.neg().exp_())


@lru_cache(maxsize=64)
def image_columns(b: int, m: int, device: torch.device) -> Tensor:
    """A [bm, b]: the classes of each image."""
    return torch.eye(b, dtype=torch.float64, device=device).repeat_interleave(m, 0)


class Linearised:
    """N and log det S at one π, for K [bm, bm], √π [b, m] and √w [b, 1], None where all are 1; S' = L Lᵀ.

    A product with N takes (bm)³/3 flop and two triangular solves, N itself three times as much: it is formed once a
    block. Rows of different scale are never mixed (as a QR would), so √π_y may be as small as it likes.
    """

    def __init__(self, K: Tensor, root: Tensor, scale: Tensor | None = None):
        self.images, self.scale = len(root), scale
        self.root = (root if scale is None else scale * root).view(-1, 1)
        self.outer = self.root * self.root.mT
        self.factor = unit_cholesky_(self.outer * K)

    def solve(self, v: Tensor) -> Tensor:
        """N v [bm] = D^½ L⁻ᵀ (x − X (XᵀX)⁻¹ Xᵀx) for x = L⁻¹ D^½ v and X = L⁻¹ D^½ A."""
        b, factor = self.images, self.factor
        sides = torch.cat((image_columns(b, len(v) // b, v.device), v[:, None]), 1).mul_(self.root)
        X, x = torch.linalg.solve_triangular(factor, sides, upper=False).split((b, 1), 1)
        common = torch.cholesky_solve(X.mT @ x, _inner_factor(X.mT @ X))
        x = torch.addmm(x, X, common, alpha=-1)
        return torch.linalg.solve_triangular(factor.mT, x, upper=True).mul_(self.root).view(-1)

    def curvature(self) -> Tensor:
        """N [bm, bm] = E − EA (AᵀEA)⁻¹ AᵀE."""
        b, E = self.images, torch.cholesky_inverse(self.factor).mul_(self.outer)
        sums = E.view(b, -1, len(E)).sum(1)  # AᵀE [b, bm]
        self.inner = _inner_factor(sums.view(b, b, -1).sum(-1))
        half = torch.linalg.solve_triangular(self.inner, sums, upper=False)
        return E.addmm_(half.mT, half, alpha=-1)

    def half_log_det(self) -> Tensor:
        """½ log det S, once there is a curvature."""
        value = self.factor.diagonal().log().sum() + self.inner.diagonal().log().sum()
        return value if self.scale is None else value - self.scale.log().sum()


def _inner_factor(inner: Tensor) -> Tensor:
    """Lower Cholesky factor of AᵀEA [b, b]."""
    factor, info = torch.linalg.cholesky_ex(inner)
    if info:
        raise FloatingPointError("the innovation covariance is not positive definite; step refused")
    return factor


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
        value.dot(Linearised(block, root[None]).solve(value))
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
