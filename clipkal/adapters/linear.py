"""The residual linear adapter: logits that are exactly linear in what is learnt, and zero-shot at the start."""

import math

import torch
from torch import Tensor, nn

from clipkal.adapters.base import Adapter


class LinearAdapter(Adapter):
    """logits[i, c] = exp(log_scale) · t_c · (I + W) f_i, with W = 0 at the start.

    The adapted feature is not normalised again (our choice): so the logits are exactly linear in W, and a
    Kalman filter or a Gaussian posterior over W is exact up to the likelihood. CLIP-Adapter's bottleneck
    and Tip-Adapter's cache are not linear; the linear probe of the text features (TaskRes) is the special
    case W acting through `text` only.

    Args:
        text_features: unit rows T `[C, d]`, frozen.
        logit_scale: CLIP's temperature as a factor, > 0; kept as its logarithm in `log_scale`.
        learn_scale: make `log_scale` trainable too (the logits are then no longer linear in all of θ).

    It is a bilinear model: ∂logits[i, c] / ∂weight[a, b] = left[c, a] · right[i, b], where
    left = exp(log_scale) · T and right = f.
    """

    text: Tensor

    def __init__(self, text_features: Tensor, logit_scale: float, learn_scale: bool = False):
        super().__init__()
        width = text_features.shape[1]
        self.register_buffer("text", text_features.detach().clone())
        self.weight = nn.Parameter(
            torch.zeros(width, width, dtype=text_features.dtype, device=text_features.device)
        )
        scale = torch.tensor(math.log(logit_scale), dtype=text_features.dtype, device=text_features.device)
        self.log_scale = nn.Parameter(scale, requires_grad=learn_scale)

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = self.jacobian_factors(inputs)
        return (right + right @ self.weight.T) @ left.T

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """left `[C, d]` and right `[B, d]` of the Jacobian with respect to `weight`."""
        return self.log_scale.exp() * self.text, inputs
