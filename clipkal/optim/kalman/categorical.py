"""The categorical likelihood: ŷ = π = softmax(logits), y one-hot, R = diag(π) − ππᵀ.

R is singular and H = R J, but R = Q Qᵀ with Q = diag(√π) − π√πᵀ, hence, exactly,

    H̃ = Qᵀ J,   r = (y − π)/√π (the Pearson residual),   Q r = y − π = −∂NLL/∂logits,

so an extended Kalman step is a natural-gradient step (Ollivier 2018, arXiv 1703.00209). Where the Jacobian gives K = J P Jᵀ
(a bilinear model's does) nothing need be whitened: for R = w (diag(π) − ππᵀ), block-diagonal over the images of a block,
Gaussian-process classification (GPML eq. 3.44–3.47) has what S gives in a third of the operations. With D = diag(wπ),
A [bm, b] the classes of each image, and z = y/π_y, for which R z = w (y − π):

    S' = I + D^½ K D^½,   E = D^½ S'⁻¹ D^½
    N  = E − E A (AᵀEA)⁻¹ AᵀE = Q̃ S⁻¹ Q̃ᵀ = (I + R K)⁻¹ R
    Q̃ S⁻¹ r = N z                      the mean's direction is leftᵀ N z, the curvature diag(leftᵀ N left)
    log det S = log det S' + log det AᵀEA − Σ log w
    rᵀ(I − S⁻¹)r = (N z)ᵀ K R z

S' has no eigenvalue below 1 either, and its rows scale with √π, so unlikely classes, and an unlikely y, cost no accuracy.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkal.optim.kalman.observation import Noise
from clipkal.optim.kalman.prior import centred_logits
from clipkal.optim.kalman.update import (
    LOWEST_LOG_PROBABILITY,
    Innovation,
    Measurement,
    Observation,
    Weigher,
    diagonal_blocks,
    unit_cholesky,
)
from clipkal.settings import Fraction, checked

IGNORED = 1e-100  # the weight of an image that a gate leaves out: AᵀEA stays invertible
GAIN, HALVINGS = 0.01, 12
"""Iterations end when one gains less than GAIN nats an image; a step is halved up to HALVINGS times."""


class Categorical(Observation):
    """ŷ = π = softmax(logits), y one-hot, R = diag(π) − ππᵀ: the categorical likelihood, linearised.

    m = C of which C − 1 matter: √π spans the kernel of Q, and r is orthogonal to it.

    merge: classes other than y whose probabilities sum to at most this in each image of a block are observed as one
        (ours); 0 merges nothing. That is the exact likelihood of a coarser label: the gradient stays y − π, and the
        curvature loses merge · Cov(logits within the tail), so P can only be a little too wide. m falls from C to the
        number of likely classes, and the cost of an image from C² p to m² p.
    """

    ratio = 3.0
    iterated_ratio = 10.0
    default_noise = "model"

    @checked
    def __init__(self, merge: Fraction = 0.0):
        self.merge = merge

    def check_noise(self, noise: Noise) -> None:
        if not noise.model_based:
            raise ValueError("observation 'categorical' has its own noise: use noise='model', or 'probs'")

    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        raise NotImplementedError("the categorical measurement is whitened in closed form")

    def measure(self, logits: Tensor, targets: Tensor, noise: Noise) -> "CategoricalMeasurement":
        log_pi = F.log_softmax(logits.double(), dim=-1).clamp(min=LOWEST_LOG_PROBABILITY)
        root = log_pi.div(2).exp_()
        own = log_pi.gather(1, targets[:, None])
        at_target = own.div(-2).sinh_().mul_(2)  # (1 − π_y)/√π_y
        kept = self._kept(log_pi, targets)
        if kept is None:
            residual = (-root).scatter(1, targets[:, None], at_target)
            return CategoricalMeasurement(residual, own[:, 0], max(logits.shape[1] - 1, 1), root)
        tail = log_pi.exp().scatter(1, kept, 0.0)
        mass = tail.sum(1, keepdim=True)
        root = torch.cat([root.gather(1, kept), mass.sqrt()], dim=1)
        residual = torch.cat([at_target, -root[:, 1:]], dim=1)
        return MergedMeasurement(
            residual, own[:, 0], kept.shape[1], root, kept, tail / mass.clamp(min=1e-300)
        )

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        return -measurement.log_likelihood.mean()

    def reference(self, logits: Tensor, targets: Tensor, noise: Noise) -> Measurement:
        """The centred logits, z_c − mean z, with unit noise: the ratio is their mean prior variance, in nats².

        Not the whitened measurement itself: where the model is sure R vanishes, so a ratio to it asks for an enormous
        P₀, while the softmax is linear over a change of about one nat of its logits however sure it is.
        """
        return centred_logits(logits)

    def _kept(self, log_pi: Tensor, targets: Tensor) -> Tensor | None:
        """The classes [b, k] to keep apart, y first; None if merging would not halve their number."""
        C = log_pi.shape[1]
        if not self.merge or C <= 4:
            return None
        others = log_pi.scatter(1, targets[:, None], -torch.inf)
        ascending, order = others.sort(dim=1)
        tails = ascending.exp().cumsum(1)  # mass up to each place
        k = int((tails.amax(0) > self.merge).sum())
        if 2 * (k + 2) > C:
            return None
        return torch.cat([targets[:, None], order[:, C - k :]], dim=1)


@dataclass
class CategoricalMeasurement(Measurement):
    """A measurement with Q = diag(√π) − π√πᵀ, whose products need no matrix: O(Ck) instead of O(C²k) an image.

    columns: √π [b, C].
    """

    def pull(self, x: Tensor) -> Tensor:
        root, x = self.columns[..., None], x.double()
        return root * (x - root.square().mT @ x)

    def push(self, x: Tensor) -> Tensor:
        root = self.columns[..., None]
        return root * (x - root * (root.mT @ x))

    def cotangents(self) -> Tensor:
        root = self.columns
        return torch.diag_embed(root) - root.square()[:, :, None] * root[:, None, :]

    def score(self) -> Tensor:
        """y − π, from Q r = √π r − π Σ√π r = √π r."""
        return self.columns * self.residual

    def rows_of(self, left: Tensor) -> Tensor | None:
        return None

    def condition_rows(self, K: Tensor, weigher: Weigher, iterations: int) -> Innovation:
        """a = N z and M = N for K [bm, bm]; (bm)³ flop an iteration."""
        root, r = self.columns, self.residual
        z = r / root + 1  # y/π_y: r is Qᵀz
        weights, mahalanobis = self._weights(K, z, weigher)
        scale = weights if weights is None else weights.clamp(min=IGNORED).sqrt()[:, None]
        if weights is None:
            weights = torch.ones_like(self.log_likelihood)
        linear = Linearised(K, root, scale)
        reached: Tensor | float
        if iterations == 1:
            N = linear.curvature()
            score = first = N @ z.view(-1)
            gradient = root * r if scale is None else weights[:, None] * root * r
            explained = score.dot(K @ gradient.view(-1))
            reached = weights.dot(self.log_likelihood).add(explained, alpha=0.5)
        else:
            score = first = linear.times(z.view(-1))
            ascent = Ascent(K, self, weights)
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
        return Innovation(score, N, evidence, mahalanobis / self.dof, weights)

    def _weights(self, K: Tensor, z: Tensor, weigher: Weigher) -> tuple[Tensor | None, Tensor | None]:
        """w [b], None where all are 1; and d² [b] of each image by itself where a gate needs it."""
        r = self.residual
        if not weigher.gate.active:
            return (None if weigher.power == 1 else torch.full_like(r[:, 0], weigher.power)), None
        alone = zip(diagonal_blocks(K, len(r)), self.columns, z, strict=True)
        mahalanobis = torch.stack([v.dot(Linearised(block, root[None]).times(v)) for block, root, v in alone])
        return weigher.weights(mahalanobis, r.square().sum(-1), self.dof), mahalanobis


@dataclass
class MergedMeasurement(CategoricalMeasurement):
    """A categorical measurement in which the unlikely classes of each image are observed as one.

    With M [m, C] the map from logits to coarse logits, whose rows pick the likely classes and average the others by
    their probabilities, Q = Mᵀ Q' where Q' belongs to the coarse probabilities.

    columns: the roots of the coarse probabilities [b, m].
    kept: classes [b, m − 1].
    tail: π_c / Σ_tail π [b, C], zero on the kept ones.
    """

    kept: Tensor
    tail: Tensor

    def pull(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return super().pull(self.rows_of(x))
        picked = x.gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1]))
        return super().pull(torch.cat([picked, self.tail[:, None, :].to(x.dtype) @ x], dim=1))

    def push(self, x: Tensor) -> Tensor:
        coarse = super().push(x)
        fine = self.tail[..., None] * coarse[:, -1:]
        return fine.scatter_add(1, self.kept[..., None].expand(-1, -1, x.shape[-1]), coarse[:, :-1])

    def cotangents(self) -> Tensor:
        return self.push(torch.eye(self.columns.shape[1]).to(self.columns).expand(len(self.columns), -1, -1))

    def score(self) -> Tensor:
        """Still exactly y − π: a tail class has −π_tail · π_c / π_tail."""
        return self.push(self.residual[..., None])[..., 0]

    def rows_of(self, left: Tensor) -> Tensor:
        """The rows of the coarse logits: M left [b, m, p] in the dtype of left."""
        return torch.cat([left[self.kept], (self.tail.to(left.dtype) @ left)[:, None, :]], dim=1)


class Ascent:
    """The way to the mode of a block, Ψ(s) = Σ w log p(y | f + Ks) − ½ sᵀKs, by Newton's method with halved steps.

    The iterated extended Kalman filter (Bell & Cathey 1993) is this: K stays, R and N are those at f + Ks, and the next s is
    N (Ks + y/π_y). At the point reached, `score` is s [bm], `change` Ks, `log_pi` log π [b, m], `own` log π_y
    [b] and `log_joint` Ψ.
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
