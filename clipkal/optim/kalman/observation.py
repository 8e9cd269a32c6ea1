"""What a labelled image measures, and how noisily: ŷ, y and R; every model is brought to whitened form (update.py).

R is fixed, estimated from residuals, or given by the model. Every update of this package works on whitened quantities,
r = R^-½ e and H̃ = R^-½ H, all of it in float64, so its noise is I. The observation of `categorical` is in categorical.py.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.base import check_finite
from clipkal.optim.kalman.update import LOWEST_LOG_PROBABILITY, Measurement
from clipkal.settings import Fraction, NonNegative, Positive, checked


class Noise(ABC):
    """R of one image; images are independent.

    adaptive: whether `update` wants the second moment of each batch.
    model_based: whether R comes from the prediction itself.
    """

    adaptive = False
    model_based = False

    def initialise(self, variance: Tensor, m: int) -> None:  # noqa: B027
        """R₀ = variance · I [m, m], as the first batch suggests it before any update (Observation.first_variance)."""

    @abstractmethod
    def whiten(
        self, error: Tensor, columns: Tensor, variance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R^-½ e [b, m], columns R^-½ᵀ [b, C, m] and log det R [b].

        error, columns: e [b, m] and columns [b, C, m].
        variance: the model's own [b, m], where the observation has one.
        """

    def update(self, moment: Tensor, images: int) -> None:  # noqa: B027
        """Takes in the mean of R^-½ (ε εᵀ + H P⁺ Hᵀ) R^-½ᵀ [m, m] over a block's images, R as it was during its update."""

    def level(self) -> float | None:
        """The mean variance, for the log; None if it differs from image to image."""
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes back what `state_dict` gave."""


class ModelNoise(Noise):
    """R is what the model itself predicts (Ollivier 2018: R = Cov(y | ŷ)); nothing to estimate."""

    model_based = True

    def whiten(
        self, error: Tensor, columns: Tensor, variance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if variance is None:
            raise ValueError("this observation has no noise of its own: use noise='fixed' or 'residual'")
        std = variance.sqrt()
        return error / std, columns / std[:, None, :], variance.log().sum(-1)


class FixedNoise(Noise):
    """R = variance · I."""

    @checked
    def __init__(self, variance: Positive = 1.0):
        self.variance = variance

    def whiten(
        self, error: Tensor, columns: Tensor, variance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        std = math.sqrt(self.variance)
        log_det = error.new_full(error.shape[:1], error.shape[1] * math.log(self.variance))
        return error / std, columns / std, log_det

    def level(self) -> float:
        return self.variance


class ResidualNoise(Noise):
    """R ← βᵇ R + (1 − βᵇ) mean_i (ε εᵀ + H P⁺ Hᵀ) after each block of b images: positive definite by construction.

    ε is the *posterior* residual (Mehra 1970; Akhlaghi et al. 2017, arXiv 1702.00884), taken in the linearised model, where
    it costs nothing, since in whitened coordinates

        ε = S⁻¹ r   and   H P⁺ Hᵀ = I − S⁻¹.

    beta: forgetting factor an image.
    shape: scalar (mean over outputs), or full m × m.
    initial: R₀ (a variance); None: from the first batch.
    floor: added to R when it is used.
    """

    adaptive = True

    @checked
    def __init__(
        self,
        beta: Fraction = 0.9995,
        shape: Literal["scalar", "full"] = "scalar",
        initial: Positive | None = None,
        floor: NonNegative = 1e-4,
    ):
        self.beta, self.full, self.initial, self.floor = beta, shape == "full", initial, floor
        self.R: Tensor | None = None  # [] or [m, m], float64, without the floor

    def initialise(self, variance: Tensor, m: int) -> None:
        if self.initial is not None:
            variance = variance.new_tensor(self.initial)
        one = torch.eye(m) if self.full else torch.ones(())
        self.R = variance.double() * one.to(variance.device, torch.float64)

    def _floored(self) -> Tensor:
        if self.R is None:
            raise RuntimeError("the noise has seen no batch yet")
        if self.full:
            return self.R + self.floor * torch.eye(len(self.R), dtype=self.R.dtype, device=self.R.device)
        return self.R + self.floor

    def whiten(
        self, error: Tensor, columns: Tensor, variance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        R = self._floored()
        if self.full:
            L = torch.linalg.cholesky(R)
            white = torch.linalg.solve_triangular(L, error.mT, upper=False).mT
            tall = torch.linalg.solve_triangular(L, columns.mT, upper=False).mT
            return white, tall, 2 * L.diagonal().log().sum().expand(len(error))
        std, log_det = R.sqrt(), R.log().expand(error.shape[1]).sum()
        return error / std, columns / std, log_det.expand(len(error))

    def update(self, moment: Tensor, images: int) -> None:
        R, kept = self._floored(), self.beta**images
        if self.full:
            L = torch.linalg.cholesky(R)
            new = L @ moment @ L.mT
            new = (new + new.mT) / 2
        else:
            new = R * moment.diagonal().mean()
        if not torch.isfinite(new).all():
            raise FloatingPointError("the estimated noise is not finite; step refused")
        self.R = kept * self.R + (1 - kept) * new  # type: ignore[operator]

    def level(self) -> float:
        R = self._floored()
        return float(R.diagonal().mean() if self.full else R)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.R is None else {"R": self.R.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.R = state["R"].clone() if "R" in state else None


class Observation(ABC):
    """What is observed of an image, given its logits [C]; the docstring of a model states ŷ, y and R.

    scalar: whether m = 1; otherwise m = C.
    ratio, iterated_ratio: defaults of the ratio rule for updates that are linearised once and for iterated ones.
    of_softmax: whether ŷ saturates where the model is sure, so that the ratio alone could ask for any P₀.
    """

    scalar = False
    of_softmax = False
    ratio = iterated_ratio = 0.4

    def default_noise(self) -> Noise:
        """The noise that this observation has where none is named."""
        return ResidualNoise()

    def attach(self, model: nn.Module) -> None:  # noqa: B027
        """Takes from the model what the observation needs to know of it."""

    def check_noise(self, noise: Noise) -> None:  # noqa: B027
        """Raises ValueError if this observation cannot go with the noise."""

    def check_targets(self, logits: Tensor, targets: Tensor) -> None:
        """Raises ValueError unless logits are [B, C] and targets int64 [B] in 0…C − 1; real [B, …] for regression."""
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        if logits.ndim != 2 or len(logits) != len(targets) or not len(targets):
            raise ValueError(f"need logits [B, C] and B targets, got {shapes}")
        self._check_values(targets, logits.shape[1])

    def _check_values(self, targets: Tensor, classes: int) -> None:
        if targets.dtype != torch.int64 or targets.ndim != 1:
            raise ValueError(f"targets must be int64 [B], got {targets.dtype} {tuple(targets.shape)}")
        lowest, highest = (int(t) for t in targets.aminmax())
        if lowest < 0 or highest >= classes:
            raise ValueError(f"targets must lie in 0…{classes - 1}")

    @abstractmethod
    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """e = y − ŷ [b, m], (∂ŷ/∂logits)ᵀ [b, C, m], and the model's own variances [b, m] where it has them."""

    def first_variance(self, logits: Tensor, targets: Tensor) -> Tensor:
        """R₀ of a noise that is to be estimated: the mean of e² over the first batch.

        The e of a softmax output vanishes where the model is sure and right: there one more image counts, of which the
        model knows nothing (logits 0). Ours: without it a first batch of one such image makes outliers of all others.
        """
        squares = lambda z: self.outputs(z, targets)[0].square().mean()
        if not self.of_softmax:
            return squares(logits)
        return (len(logits) * squares(logits) + squares(torch.zeros_like(logits))) / (len(logits) + 1)

    def measure(self, logits: Tensor, targets: Tensor, noise: Noise) -> Measurement:
        """Whitened measurement of logits [b, C] (any dtype)."""
        error, columns, variance = self.outputs(logits.double(), targets)
        residual, columns, log_det = noise.whiten(error, columns, variance)
        m = error.shape[1]
        log_likelihood = -(residual.square().sum(-1) + log_det + m * math.log(2 * math.pi)) / 2
        return Measurement(residual, log_likelihood, m, columns)

    def reference(self, logits: Tensor, targets: Tensor, noise: Noise) -> Measurement:
        """The measurement against which the ratio rule sets P₀: mean of diag(H P₀ Hᵀ)/R₀ over outputs."""
        return self.measure(logits, targets, noise)

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        """What a step reports: mean cross-entropy of the batch."""
        return F.cross_entropy(logits.double(), targets)


class Softmax(Observation):
    """ŷ = π_y, the probability of the true class; y = 1; R scalar: estimated, or π_y(1 − π_y) with noise='model'.

    One scalar an image, so one backward pass for a batch, whatever C.
    """

    of_softmax = True
    scalar = True

    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        log_pi = F.log_softmax(logits, dim=-1).clamp(min=LOWEST_LOG_PROBABILITY)
        own = log_pi.gather(1, targets[:, None])
        rest = -torch.expm1(own)
        columns = (-log_pi.exp()).scatter(1, targets[:, None], rest) * own.exp()
        variance = (own.exp() * rest).clamp(min=1e-200)
        return rest, columns[..., None], variance


class Cosine(Observation):
    """ŷ = logits_y / scale, the image's similarity to the text of its class; y = 1; R scalar, estimated.

    It sees no negatives: mapping every image onto every text is a minimiser, so it can collapse.

    scale: the factor of the logits on the similarity; None: exp of the model's `log_scale`, or 1 where it has none.
    """

    scalar = True

    @checked
    def __init__(self, scale: Positive | None = None):
        self.scale, self.factor = scale, scale or 1.0

    def attach(self, model: nn.Module) -> None:
        log_scale = getattr(model, "log_scale", None)
        if self.scale is None and log_scale is not None:
            self.factor = math.exp(float(log_scale.detach()))

    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        error = 1 - logits.gather(1, targets[:, None]) / self.factor
        columns = F.one_hot(targets, logits.shape[1]).to(logits.dtype) / self.factor
        return error, columns[..., None], None


class Probs(Observation):
    """ŷ = π = softmax(logits) [C], y one-hot; R estimated.

    With R from the model this would be `categorical`; the C × C covariance is singular, so use that instead.
    """

    of_softmax = True

    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        pi = F.softmax(logits, dim=-1)
        error = F.one_hot(targets, logits.shape[1]).to(logits.dtype) - pi
        return error, torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :], None


class Gaussian(Observation):
    """ŷ = the outputs [C], y real [b, C]; R fixed or estimated: regression, and the exact case in the tests."""

    def default_noise(self) -> Noise:
        return FixedNoise()

    def _check_values(self, targets: Tensor, classes: int) -> None:
        check_finite(targets, "targets")

    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        C = logits.shape[1]
        eye = torch.eye(C, dtype=logits.dtype, device=logits.device).expand(len(logits), C, C)
        return targets.to(logits.dtype).reshape(logits.shape) - logits, eye, None

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        """Mean negative log N(y; ŷ, R) a row."""
        return -measurement.log_likelihood.mean()
