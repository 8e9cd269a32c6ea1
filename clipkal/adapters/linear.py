"""The residual linear adapter: logits that are exactly linear in what is learnt, and zero-shot at the start."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from clipkal.adapters.base import Adapter
from clipkal.errors import ConfigError

Coordinates = Literal["text", "classes"]
COORDINATES = get_args(Coordinates)
MOST_STRETCH = 10.0
"""Largest factor on the prior variance of a direction of text space, in units of that of a mean direction."""


class LinearAdapter(Adapter):
    """logits[i, c] = exp(log_scale) · t_c · (I + R W) f_i, with W = 0 at the start.

    The adapted feature is not normalised again (our choice): so the logits are exactly linear in W, and a
    Kalman filter or a Gaussian posterior over W is exact up to the likelihood. CLIP-Adapter's bottleneck
    and Tip-Adapter's cache are not linear; the linear probe of the text features (TaskRes) is the special
    case W acting through `text` only.

    R [d, d] is what W is measured in (ours). With R = I ("text") a prior W ~ N(0, p₀ I), or equal steps in all
    entries of W, move the logits by T Tᵀ: two classes whose names have similar text features can hardly be told
    apart, and CLIP's text features are all similar. With "classes", R is the symmetric matrix that makes the moves
    of all (centred) class logits equally large and uncorrelated, as far as `MOST_STRETCH` allows: K-FAC's whitening of
    the output side, known before a shot is seen. The functions that can be learnt are the same.

    Args:
        text_features: unit rows T `[C, d]`, frozen.
        logit_scale: CLIP's temperature as a factor, > 0; kept as its logarithm in `log_scale`.
        coordinates: "text" or "classes", see above. ConfigError for another word.

    It is a bilinear model: ∂logits[i, c] / ∂weight[a, b] = left[c, a] · right[i, b], where
    left = exp(log_scale) · T R and right = f.
    """

    text: Tensor
    log_scale: Tensor
    metric: Tensor | None

    def __init__(self, text_features: Tensor, logit_scale: float, coordinates: Coordinates = "text"):
        super().__init__()
        if coordinates not in COORDINATES:
            raise ConfigError(f"adapter.coordinates={coordinates}: it can be {', '.join(COORDINATES)}")
        self.coordinates = coordinates
        text = text_features.detach()
        self.register_buffer("text", text.clone())
        self.register_buffer("metric", class_metric(text) if coordinates == "classes" else None)
        self.weight = nn.Parameter(text.new_zeros(text.shape[1], text.shape[1]))
        self.register_buffer("log_scale", text.new_tensor(math.log(logit_scale)))
        self._turned: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.metric is None:
            moved = (inputs + inputs @ self.weight.T) @ self.text.T
        else:
            moved = inputs @ self.text.T + (inputs @ self.weight.T) @ self._left().T
        return self.log_scale.exp() * moved

    def zeroshot_logits(self, features: Tensor) -> Tensor:
        return self.log_scale.exp() * (features @ self.text.T)

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """left `[C, d]` and right `[B, d]` of the Jacobian with respect to `weight`."""
        return self.log_scale.exp() * self._left(), inputs

    def _left(self) -> Tensor:
        """T R [C, d], for the classes in `text` now."""
        if self.metric is None:
            return self.text
        if self._turned is None or self._turned[0] is not self.text:
            self._turned = self.text, self.text @ self.metric
        return self._turned[1]

    @torch.no_grad()
    def head(self) -> Tensor:
        """T (I + R W), whose rows are not of unit norm.

        The map cannot go into CLIP's image projection, after which CLIP normalises: the logits of an image would be
        divided by the norm of (I + R W) f.
        """
        return self.text + self._left() @ self.weight

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "coordinates": self.coordinates}


def class_metric(text: Tensor) -> Tensor:
    """R [d, d] of the coordinates "classes", from the text features [C, d].

    With the centred features T_c = U diag(σ) Vᵀ: R = V diag(min(mean(σ²)/σ², MOST_STRETCH)^½) Vᵀ + (I − V Vᵀ), so that
    T_c R Rᵀ T_cᵀ = mean(σ²) U Uᵀ where nothing is capped, and directions that no class differs in are as they were.
    """
    centred = (text - text.mean(0)).double()
    square, V = torch.linalg.eigh(centred.T @ centred)
    used = square > 1e-9 * square[-1]
    if not bool(used.any()):
        return torch.eye(text.shape[1], dtype=text.dtype, device=text.device)
    stretch = (square[used].mean() / square.clamp(min=1e-300)).clamp(max=MOST_STRETCH)
    root = torch.where(used, stretch, torch.ones_like(stretch)).sqrt()
    return ((V * root) @ V.T).to(text.dtype)
