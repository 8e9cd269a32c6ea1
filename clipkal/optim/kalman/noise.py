"""Observation noise R: fixed, estimated from residuals, or given by the model; and whitening by it.

Every update of this package works on whitened quantities, r = R^-½ e and H̃ = R^-½ H, so its noise is I.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from clipkal.optim.naming import named

Shape = Literal["scalar", "diagonal", "full"]


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
        """(R^-½ e, columns R^-½ᵀ, log det R) of e [b, m] and columns [b, C, m]; variance [b, m]: the
        model's own."""

    def update(self, moment: Tensor, images: int) -> None:  # noqa: B027
        """Takes M [m, m], the mean over a block's images of R^-½ (ε εᵀ + H P⁺ Hᵀ) R^-½ᵀ, R as it was during its update."""

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

    def __init__(self, variance: float = 1.0):
        if not (variance > 0 and math.isfinite(variance)):
            raise ValueError(f"the noise variance must be positive, got {variance}")
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

    ε is the *posterior* residual (Mehra 1970; Akhlaghi et al. 2017, arXiv 1702.00884). LoKO (arXiv
    2410.11551) says that R is an exponential moving average at no extra cost but its exact R̂ could not be
    read; this one is our choice. It costs nothing because it is taken in the linearised model, where in
    whitened coordinates
        ε = S⁻¹ r   and   H P⁺ Hᵀ = I − S⁻¹.

    beta: forgetting factor an image (the default by benchmarks/defaults.py). shape: scalar (mean over outputs), diagonal
    or full m × m. initial: R₀ (a variance); None: from the first batch. floor: added to R when it is used.
    """

    adaptive = True

    def __init__(
        self, beta: float = 0.9995, shape: Shape = "scalar", initial: float | None = None, floor: float = 1e-4
    ):
        if not 0 <= beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {beta}")
        if shape not in ("scalar", "diagonal", "full"):
            raise ValueError(f"shape must be scalar, diagonal or full, got {shape!r}")
        self.beta, self.shape, self.initial, self.floor = beta, shape, initial, floor
        self.R: Tensor | None = None  # [], [m] or [m, m], float64, without the floor

    def initialise(self, variance: Tensor, m: int) -> None:
        if self.initial is not None:
            variance = variance.new_tensor(self.initial)
        shapes: dict[Shape, Tensor] = {
            "scalar": torch.ones(()),
            "diagonal": torch.ones(m),
            "full": torch.eye(m),
        }
        self.R = variance.double() * shapes[self.shape].to(variance.device, torch.float64)

    def _floored(self) -> Tensor:
        if self.R is None:
            raise RuntimeError("the noise has seen no batch yet")
        if self.shape == "full":
            return self.R + self.floor * torch.eye(len(self.R), dtype=self.R.dtype, device=self.R.device)
        return self.R + self.floor

    def whiten(
        self, error: Tensor, columns: Tensor, variance: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        R = self._floored()
        if self.shape == "full":
            L = torch.linalg.cholesky(R)
            white = torch.linalg.solve_triangular(L, error.mT, upper=False).mT
            tall = torch.linalg.solve_triangular(L, columns.mT, upper=False).mT
            return white, tall, 2 * L.diagonal().log().sum().expand(len(error))
        std, logs = R.sqrt(), R.log().expand(error.shape[1]).sum()
        return error / std, columns / std, logs.expand(len(error))

    def update(self, moment: Tensor, images: int) -> None:
        R, kept = self._floored(), self.beta**images
        if self.shape == "full":
            L = torch.linalg.cholesky(R)
            new = L @ moment @ L.mT
            new = (new + new.mT) / 2
        else:
            new = R * (moment.diagonal().mean() if self.shape == "scalar" else moment.diagonal())
        if not torch.isfinite(new).all():
            raise FloatingPointError("the estimated noise is not finite; step refused")
        self.R = kept * self.R + (1 - kept) * new  # type: ignore[operator]

    def level(self) -> float:
        R = self._floored()
        return float(R.diagonal().mean() if self.shape == "full" else R.mean())

    def state_dict(self) -> dict[str, Any]:
        return {} if self.R is None else {"R": self.R.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.R = state["R"].clone() if "R" in state else None


NOISES: dict[str, Callable[[], Noise]] = {
    "fixed": FixedNoise,
    "model": ModelNoise,
    "residual": ResidualNoise,
    "residual_diagonal": partial(ResidualNoise, shape="diagonal"),
    "residual_full": partial(ResidualNoise, shape="full"),
}


def make_noise(noise: str | Noise) -> Noise:
    """A noise from its name in `NOISES`, or the noise itself."""
    return named(noise, "noise", NOISES)
