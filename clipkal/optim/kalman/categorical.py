"""The categorical likelihood: ŷ = π = softmax(logits), y one-hot, R = diag(π) − ππᵀ.

R is singular and H = R J, but R = Q Qᵀ with Q = diag(√π) − π√πᵀ, hence, exactly,

    H̃ = Qᵀ J,   r = (y − π)/√π (the Pearson residual),   Q r = y − π = −∂NLL/∂logits,

so an extended Kalman step is a natural-gradient step (Ollivier 2018, arXiv 1703.00209). Where the Jacobian gives
J P Jᵀ (a bilinear model's does) nothing need be whitened: iterated.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkal.optim.kalman.iterated import condition_in_factor, condition_in_logits
from clipkal.optim.kalman.observation import ModelNoise, Noise, Observation
from clipkal.optim.kalman.prior import centred_logits
from clipkal.optim.kalman.update import LOWEST_LOG_PROBABILITY, Innovation, Measurement, Weigher
from clipkal.settings import Fraction, checked


class Categorical(Observation):
    """ŷ = π = softmax(logits), y one-hot, R = diag(π) − ππᵀ: the categorical likelihood, linearised.

    One step is a natural-gradient step on cross-entropy with P⁺ as inverse Fisher (Ollivier 2018). m = C of which
    C − 1 matter: √π spans the kernel of Q, and r is orthogonal to it.

    merge: classes other than y whose probabilities sum to at most this in each image of a block are
        observed as one (ours). That is the exact likelihood of a coarser label: the gradient stays y − π to
        the last digit, and the curvature loses merge · Cov(logits within the tail), so P can only be a
        little too wide. m falls from C to the number of likely classes, and the cost of an image from C² p
        to m² p. 0 merges nothing.
    """

    ratio = 3.0
    iterated_ratio = 10.0

    @checked
    def __init__(self, merge: Fraction = 0.0):
        self.merge = merge

    def default_noise(self) -> Noise:
        return ModelNoise()

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

        Not R = W, the whitened measurement itself: where the model is sure W vanishes, so a ratio to it
        asks for an enormous P₀, while the softmax is linear over a change of about one nat of its logits
        however sure it is.
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
        return condition_in_logits(self, K, weigher, iterations)

    def condition_factor(self, left: Tensor, u: Tensor, weigher: Weigher) -> Innovation | None:
        return None if weigher.adaptive else condition_in_factor(self, left, u, weigher)


@dataclass
class MergedMeasurement(CategoricalMeasurement):
    """A categorical measurement in which the unlikely classes of each image are observed as one.

    With M [m, C] the map from logits to coarse logits, whose rows pick the likely classes and average the
    others by their probabilities, Q = Mᵀ Q' where Q' belongs to the coarse probabilities.

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

    def condition_factor(self, left: Tensor, u: Tensor, weigher: Weigher) -> None:
        return None
