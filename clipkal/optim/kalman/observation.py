"""Observation models: what a labelled image measures, as a whitened linear measurement of its logits.

Every model is brought to one form, with unit noise and all of it in float64:
    r = R^-½ (y − ŷ)  [b, m]        H̃ = Qᵀ J  [b, m, n]        J = ∂logits/∂θ [b, C, n],   Q = (R^-½
    ∂ŷ/∂logits)ᵀ [b, C, m]
so that S = I + H̃ P H̃ᵀ has no eigenvalue below 1. For the categorical likelihood R = diag(π) − ππᵀ is
singular and H = R J, but R = Q Qᵀ with Q = diag(√π) − π√πᵀ, hence H̃ = Qᵀ J and r = (y − π)/√π (the Pearson
residual), exactly: Q r = y − π = −∂NLL/∂logits, so an extended Kalman step is a natural-gradient step
(Ollivier 2018, arXiv 1703.00209).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkal.optim.kalman.noise import FixedNoise, ModelNoise, Noise, ResidualNoise
from clipkal.optim.model.measurement import (
    CategoricalMeasurement,
    Measurement,
    MergedMeasurement,
    centred_logits,
)
from clipkal.optim.naming import named

LOWEST_LOG_PROBABILITY = -600.0  # exp(½·600) and its square stay finite in float64


class Observation(ABC):
    """What is observed of an image, given its logits [C]; the docstring of a model states ŷ, y and R.

    scalar: whether m = 1; otherwise m = C. ratio, iterated_ratio: defaults of the ratio rule for updates that are
    linearised once and for iterated ones, chosen on real image features (one epoch, 1 to 16 shots, 8 to 53 classes):
    NLL is flat between a third and three times them.
    of_softmax: whether ŷ saturates where the model is sure, so that the ratio alone could ask for any P₀.
    """

    scalar = False
    of_softmax = False
    ratio = iterated_ratio = 0.4

    def default_noise(self) -> Noise:
        return ResidualNoise()

    @abstractmethod
    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """e = y − ŷ [b, m], (∂ŷ/∂logits)ᵀ [b, C, m], and the model's own variances [b, m] where it has them."""

    def first_variance(self, logits: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
        """R₀ of a noise that is to be estimated: the mean of e² over the first batch.

        The e of a softmax output vanishes where the model is sure and right: there one more image counts, of which the
        model knows nothing (logits 0). Ours: without it a first batch of one such image makes outliers of all others.
        """
        squares = lambda z: self.outputs(z, targets, scale)[0].square().mean()
        if not self.of_softmax:
            return squares(logits)
        return (len(logits) * squares(logits) + squares(torch.zeros_like(logits))) / (len(logits) + 1)

    def check(self, noise: Noise, scale_is_trainable: bool) -> None:  # noqa: B027
        """Raises ValueError if this observation cannot go with the noise or with a trainable log_scale."""

    def measure(self, logits: Tensor, targets: Tensor, noise: Noise, scale: float = 1.0) -> Measurement:
        """Whitened measurement of logits [b, C] (any dtype); scale: the logits' factor, for `cosine`."""
        error, columns, variance = self.outputs(logits.double(), targets, scale)
        residual, columns, log_det = noise.whiten(error, columns, variance)
        m = error.shape[1]
        log_likelihood = -(residual.square().sum(-1) + log_det + m * math.log(2 * math.pi)) / 2
        return Measurement(residual, log_likelihood, m, columns)

    def reference(self, logits: Tensor, targets: Tensor, noise: Noise, scale: float = 1.0) -> Measurement:
        """The measurement against which the ratio rule sets P₀: mean of diag(H P₀ Hᵀ)/R₀ over outputs."""
        return self.measure(logits, targets, noise, scale)

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        """What a step reports: mean cross-entropy of the batch."""
        return F.cross_entropy(logits.double(), targets)


class Categorical(Observation):
    """ŷ = π = softmax(logits), y one-hot, R = diag(π) − ππᵀ: the categorical likelihood, linearised.

    One step is a natural-gradient step on cross-entropy with P⁺ as inverse Fisher (Ollivier 2018). The
    whitened form is ours. m = C of which C − 1 matter: √π spans the kernel of Q, and r is orthogonal to it.

    merge: classes other than y whose probabilities sum to at most this in each image of a block are
        observed as one (ours). That is the exact likelihood of a coarser label: the gradient stays y − π to
        the last digit, and the curvature loses merge · Cov(logits within the tail), so P can only be a
        little too wide. m falls from C to the number of likely classes, and the cost of an image from C² p
        to m² p. 0 merges nothing; `categorical_merged` has 0.1.
    """

    ratio = 3.0
    iterated_ratio = 10.0

    def __init__(self, merge: float = 0.0):
        if not 0 <= merge < 1:
            raise ValueError(f"merge must lie in [0, 1), got {merge}")
        self.merge = merge

    def default_noise(self) -> Noise:
        return ModelNoise()

    def check(self, noise: Noise, scale_is_trainable: bool) -> None:
        if not noise.model_based:
            raise ValueError("observation 'categorical' has its own noise: use noise='model', or 'probs'")

    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        raise NotImplementedError("the categorical measurement is whitened in closed form")

    def measure(self, logits: Tensor, targets: Tensor, noise: Noise, scale: float = 1.0) -> Measurement:
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

    def reference(self, logits: Tensor, targets: Tensor, noise: Noise, scale: float = 1.0) -> Measurement:
        """The centred logits, z_c − mean z, with unit noise: the ratio is their mean prior variance, in nats².

        Not R = W, the whitened measurement itself: where the model is sure W vanishes, so a ratio to it
        asks for an enormous P₀, while the softmax is linear over a change of about one nat of its logits
        however sure it is.
        """
        return centred_logits(logits)


class Softmax(Observation):
    """ŷ = π_y, the probability of the true class; y = 1; R scalar: estimated, or π_y(1 − π_y) with noise='model'.

    One scalar an image: a reading of arXiv 2511.01694 in which its similarity is the scaled class softmax
    (`cosine` is the other). One backward pass for a batch, whatever C.
    """

    of_softmax = True
    scalar = True

    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        log_pi = F.log_softmax(logits, dim=-1).clamp(min=LOWEST_LOG_PROBABILITY)
        own = log_pi.gather(1, targets[:, None])
        rest = -torch.expm1(own)
        columns = (-log_pi.exp()).scatter(1, targets[:, None], rest) * own.exp()
        variance = (own.exp() * rest).clamp(min=1e-200)
        return rest, columns[..., None], variance


class Cosine(Observation):
    """ŷ = logits_y / scale, the image's similarity to the text of its class; y = 1; R scalar, estimated.

    The literal text of arXiv 2511.01694, ŷ = diag(SC(I, T)) with y the diagonal of an identity. It sees no
    negatives: mapping every image onto every text is a minimiser, so it can collapse. Kept for faithful
    comparison.
    """

    scalar = True

    def check(self, noise: Noise, scale_is_trainable: bool) -> None:
        if scale_is_trainable:
            raise ValueError("observation 'cosine' does not depend on the logit scale: freeze log_scale")

    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        error = 1 - logits.gather(1, targets[:, None]) / scale
        columns = F.one_hot(targets, logits.shape[1]).to(logits.dtype) / scale
        return error, columns[..., None], None


class Logits(Observation):
    """ŷ = logits [C], y one-hot; R estimated. LoKO (arXiv 2410.11551) with an affine output map (its map for
    classification could not be read; `probs` is the likelier one)."""

    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        C = logits.shape[1]
        error = F.one_hot(targets, C).to(logits.dtype) - logits
        return error, torch.eye(C, dtype=logits.dtype, device=logits.device).expand(len(logits), C, C), None


class Probs(Observation):
    """ŷ = π = softmax(logits) [C], y one-hot; R estimated: the observation of LoKO (arXiv 2410.11551).

    With R from the model this would be `categorical`; the C × C covariance is singular, so use that instead.
    """

    of_softmax = True

    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        pi = F.softmax(logits, dim=-1)
        error = F.one_hot(targets, logits.shape[1]).to(logits.dtype) - pi
        return error, torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :], None


class Gaussian(Observation):
    """ŷ = the outputs [C], y real [b, C]; R fixed or estimated: regression, and the exact case in the tests."""

    def default_noise(self) -> Noise:
        return FixedNoise()

    def outputs(self, logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        C = logits.shape[1]
        eye = torch.eye(C, dtype=logits.dtype, device=logits.device).expand(len(logits), C, C)
        return targets.to(logits.dtype).reshape(logits.shape) - logits, eye, None

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        """Mean negative log N(y; ŷ, R) a row."""
        return -measurement.log_likelihood.mean()


OBSERVATIONS: dict[str, Callable[[], Observation]] = {
    "categorical": Categorical,
    "categorical_merged": partial(Categorical, merge=0.1),
    "softmax": Softmax,
    "cosine": Cosine,
    "logits": Logits,
    "probs": Probs,
    "gaussian": Gaussian,
}


def make_observation(observation: str | Observation) -> Observation:
    """An observation model from its name in `OBSERVATIONS`, or the model itself."""
    return named(observation, "observation", OBSERVATIONS)
