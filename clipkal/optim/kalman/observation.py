"""What a labelled image measures, how noisily, and how far it is believed: ŷ and y, the noise R, and robust gates.

R is fixed, estimated from residuals, or given by the model; the update (update.py) works on whitened quantities, in float64.
A gate says how much of one image's observation to believe, w ∈ [0, 1], acting as R ← R / w. It sees numbers formed with the
*previous* noise R only, since computed with the new one an outlier hides itself:

    mahalanobis   d² = eᵀ S⁻¹ e      with S = H P Hᵀ + R of this image alone, before any weight
    residual      eᵀ R⁻¹ e = rᵀ r
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.base import check_finite
from clipkal.optim.kalman.update import LOWEST_LOG_PROBABILITY, Measurement, Observation
from clipkal.settings import Fraction, NonNegative, Positive, checked

Quantile = Annotated[float, Field(gt=0, lt=1)]
Whitened = tuple[Tensor, Tensor, Tensor]
"""R^-½ e [b, m], columns R^-½ᵀ [b, C, m] and log det R [b]."""


class Noise(ABC):
    """R of one image; images are independent.

    adaptive: whether `update` wants the second moment of each batch.
    model_based: whether R comes from the prediction itself.
    level: the mean variance, for the log; None if it differs from image to image.
    """

    adaptive = False
    model_based = False
    level: float | None = None

    def initialise(self, variance: Tensor, m: int) -> None:  # noqa: B027
        """R₀ = variance · I [m, m], as the first batch suggests it before any update (Observation.first_variance)."""

    @abstractmethod
    def whiten(self, error: Tensor, columns: Tensor, variance: Tensor | None) -> Whitened:
        """The error and the columns in units of the noise.

        error, columns: e [b, m] and columns [b, C, m].
        variance: the model's own [b, m], where the observation has one.
        """

    def update(self, moment: Tensor, images: int) -> None:  # noqa: B027
        """Takes in the mean of R^-½ (ε εᵀ + H P⁺ Hᵀ) R^-½ᵀ [m, m] over a block's images, R as it was during its update."""

    def state_dict(self) -> dict[str, Any]:
        """What it has estimated so far."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes back what `state_dict` gave."""


class ModelNoise(Noise):
    """R is what the model itself predicts (Ollivier 2018: R = Cov(y | ŷ)); nothing to estimate."""

    model_based = True

    def whiten(self, error: Tensor, columns: Tensor, variance: Tensor | None) -> Whitened:
        if variance is None:
            raise ValueError("this observation has no noise of its own: use noise='fixed' or 'residual'")
        std = variance.sqrt()
        return error / std, columns / std[:, None, :], variance.log().sum(-1)


class FixedNoise(Noise):
    """R = variance · I.

    variance: of every output.
    """

    @checked
    def __init__(self, variance: Positive = 1.0):
        self.variance = self.level = variance

    def whiten(self, error: Tensor, columns: Tensor, variance: Tensor | None) -> Whitened:
        std = math.sqrt(self.variance)
        log_det = error.new_full(error.shape[:1], error.shape[1] * math.log(self.variance))
        return error / std, columns / std, log_det


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

    def whiten(self, error: Tensor, columns: Tensor, variance: Tensor | None) -> Whitened:
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

    @property
    def level(self) -> float:  # type: ignore[override]
        """The mean variance of an output."""
        R = self._floored()
        return float(R.diagonal().mean() if self.full else R)

    def state_dict(self) -> dict[str, Any]:
        """R [] or [m, m], once a batch has been seen."""
        return {} if self.R is None else {"R": self.R.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.R = state["R"].clone() if "R" in state else None


class Gate(ABC):
    """Weights of the images of a block.

    quantile: of the χ² distribution with as many degrees of freedom as an observation has (C − 1 for the
        categorical one); the threshold c. For a categorical observation rᵀr = 1/π_y − 1 is heavy-tailed, so
        far more than 1 − quantile of the images are gated while the model is still poor: use a high
        quantile.
    """

    active = True

    @checked
    def __init__(self, quantile: Quantile = 0.99):
        self.quantile = quantile

    def threshold(self, dof: int) -> float:
        """c for so many degrees of freedom."""
        from scipy.stats import chi2  # slow to import

        return float(chi2.ppf(self.quantile, max(dof, 1)))

    @abstractmethod
    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        """w [b] from d² [b] and rᵀr [b], float64."""


class NoGate(Gate):
    """Believes everything: w = 1."""

    active = False

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return torch.ones_like(mahalanobis)


class MahalanobisHard(Gate):
    """w = 1 if d² ≤ c, else 0: the image is left out (its mean and covariance increments vanish)."""

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return (mahalanobis <= self.threshold(dof)).double()


class MahalanobisSoft(Gate):
    """w = min(1, c / d²): the noise of an outlier is inflated until it is about on the threshold."""

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return (self.threshold(dof) / mahalanobis.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)


class InverseMultiQuadric(Gate):
    """w = 1 / (1 + rᵀr / c): WoLF (arXiv 2405.05646) with W² = w and c² the χ² quantile (our choice of c).

    Smooth and never zero, with a bounded influence of any one image on the posterior.
    """

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return 1 / (1 + residual / self.threshold(dof))


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

    default_noise = "fixed"

    def _check_values(self, logits: Tensor, targets: Tensor) -> None:
        check_finite(targets, "targets")

    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        C = logits.shape[1]
        eye = torch.eye(C, dtype=logits.dtype, device=logits.device).expand(len(logits), C, C)
        return targets.to(logits.dtype).reshape(logits.shape) - logits, eye, None

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        """Mean negative log N(y; ŷ, R) a row."""
        return -measurement.log_likelihood.mean()
