"""The joint update of a block for the categorical likelihood in logit space, iterated: nothing is whitened.

For R = w (diag(π) − ππᵀ), block-diagonal over the images of a block, and K = J P Jᵀ, Gaussian-process classification
(GPML eq. 3.44–3.47) has what S gives in a third of the operations. With D = diag(wπ), A [bm, b] the classes of each
image, and z = y/π_y, for which R z = w (y − π):

    S' = I + D^½ K D^½,   E = D^½ S'⁻¹ D^½
    N  = E − E A (AᵀEA)⁻¹ AᵀE = Q̃ S⁻¹ Q̃ᵀ = (I + R K)⁻¹ R
    Q̃ S⁻¹ r = N z                      the mean's direction is leftᵀ N z, the curvature diag(leftᵀ N left)
    log det S = log det S' + log det AᵀEA − Σ log w
    rᵀ(I − S⁻¹)r = (N z)ᵀ K R z

S' has no eigenvalue below 1 either, and its rows scale with √π, so unlikely classes, and an unlikely y, cost no
accuracy. Iterated, this is Newton's method for the mode of the block in bm unknowns: K stays, only π moves, and N is formed
at the last π only. Merged classes (categorical.py) are the same with the coarse logits of each image.
"""

from functools import lru_cache

import torch
from torch import Tensor

from clipkal.optim.kalman.update import (
    LOWEST_LOG_PROBABILITY,
    Innovation,
    Measurement,
    Weigher,
    diagonal_blocks,
    log_det,
    unit_cholesky,
)

IGNORED = 1e-100
"""The weight of an image that a gate leaves out: AᵀEA stays invertible."""
GAIN, HALVINGS = 0.01, 12
"""Iterations end when one gains less than GAIN nats an image; a step is halved up to HALVINGS times."""


def condition_in_logits(measurement: Measurement, K: Tensor, weigher: Weigher, iterations: int) -> Innovation:
    """a = N z and M = N for K [bm, bm]; (bm)³ flop an iteration."""
    root, r = measurement.columns, measurement.residual
    z = r / root + 1  # y/π_y: r is Qᵀz
    weights, mahalanobis = _weights(measurement, K, z, weigher)
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
        score = first = linear.times(z.view(-1))
        ascent = Ascent(K, measurement, weights)
        while ascent.advance(score) and ascent.steps < iterations:
            linear = Linearised(K, ascent.log_pi.div(2).exp_(), scale)
            score = linear.times(ascent.target())
        N, score, reached = linear.curvature(), ascent.score, ascent.log_joint
    evidence = reached - linear.half_log_det()
    if mahalanobis is None:
        mahalanobis = (first.view_as(z) * z).sum(-1)
    score = score.view_as(z)
    if weigher.gate.active:
        score = torch.where(weights[:, None] > 0, score, 0.0)
    return Innovation(score, N, evidence, mahalanobis / measurement.dof, weights)


def _weights(
    measurement: Measurement, K: Tensor, z: Tensor, weigher: Weigher
) -> tuple[Tensor | None, Tensor | None]:
    """w [b], None where all are 1; and d² [b] of each image by itself where a gate needs it."""
    r = measurement.residual
    if not weigher.gate.active:
        return (None if weigher.power == 1 else torch.full_like(r[:, 0], weigher.power)), None
    alone = zip(diagonal_blocks(K, len(r)), measurement.columns, z, strict=True)
    mahalanobis = torch.stack([v.dot(Linearised(block, root[None]).times(v)) for block, root, v in alone])
    return weigher.weights(mahalanobis, r.square().sum(-1), measurement.dof), mahalanobis


def condition_in_factor(measurement: Measurement, left: Tensor, u: Tensor, weigher: Weigher) -> Innovation:
    """One image with C > p in p dimensions, linearised once: C p² + p³ flop and more, float64.

    `vector` is the mean's direction [1, p] and `matrix` the curvature's diagonal [1, p], both for W itself.

    With W = Q Qᵀ, A = leftᵀ W left, g = leftᵀ Q r, U = diag(u) and Z = √U A √U, by the push-through identity

        leftᵀ Q S⁻¹ r = (I + w A U)⁻¹ g = g − w A √U (I + w Z)⁻¹ √U g
        diag(leftᵀ Q S⁻¹ Qᵀ left) = diag(A) − w colsum((L⁻¹ √U A)²),      L Lᵀ = I + w Z.
    """
    r, pi = measurement.residual[0], measurement.columns[0].square()
    mean = pi @ left
    A = (left.mT * pi) @ left - mean[:, None] * mean
    g, root = measurement.score()[0] @ left, u.sqrt()
    Z = root[:, None] * A * root

    def gain(w: Tensor, factor: Tensor) -> Tensor:
        inner = torch.cholesky_solve((root * g)[:, None], factor)[:, 0]
        return g - w * (A @ (root * inner))

    w = torch.full_like(r[:1], weigher.power)
    squared, mahalanobis = r.dot(r), None
    if weigher.gate.active:
        mahalanobis = (squared - g.dot(u * gain(torch.ones_like(w), unit_cholesky(Z))))[None].clamp(min=0)
        w = weigher.weights(mahalanobis, squared[None], measurement.dof)
    factor = unit_cholesky(w * Z)
    direction = w * gain(w, factor)
    explained = g.dot(u * direction) * w  # rᵀD(I − S⁻¹)Dr
    tall = torch.linalg.solve_triangular(factor, root[:, None] * A, upper=False)
    curvature = w * (A.diagonal() - w * tall.square().sum(0)).clamp(min=0)
    if mahalanobis is None:
        mahalanobis = (w * squared - explained).clamp(min=0)
    evidence = (w * measurement.log_likelihood + (explained - log_det(factor)) / 2)[0]
    return Innovation(direction[None], curvature[None], evidence, mahalanobis / measurement.dof, w)


class Ascent:
    """The way to the mode of a block, Ψ(s) = Σ w log p(y | f + Ks) − ½ sᵀKs, by Newton's method with halved steps.

    The iterated extended Kalman filter (Bell & Cathey 1993) is this: relinearised at f + Ks, R and N are those there, and
    the next s is N (Ks + y/π_y).

    score: s [bm].
    change: Ks.
    log_pi: [b, m] at f + Ks.
    own: log π_y [b].
    log_joint: Ψ.
    """

    def __init__(self, K: Tensor, measurement: Measurement, weights: Tensor):
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
            log_pi = (self.start + change.view_as(self.start)).log_softmax(-1)
            own = log_pi.clamp_(min=LOWEST_LOG_PROBABILITY).view(-1).index_select(0, self.places)
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
        self.factor = unit_cholesky(self.outer * K)

    def times(self, v: Tensor) -> Tensor:
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
