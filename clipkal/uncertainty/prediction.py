"""What a model says about N images: probabilities, and how much of their uncertainty is the model's own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """Class probabilities and the parts of their uncertainty, all float64; entropies in nats.

    Attributes:
        probs: [N, C], rows sum to 1.
        entropy: total uncertainty of the label, H[p], [N], in [0, log C].
        aleatoric: expected entropy under a draw of the parameters [N]; what more shots would not remove.
        epistemic: entropy − aleatoric [N], ≥ 0: the mutual information of label and parameters; 0 for a plug-in.
        log_probs: logarithms of `probs` [N, C], finite where `probs` underflows to 0; None once dropped.
        novelty: how unlike the shots an image is, [N] in 0…1; None where the predictive knows nothing of that.
    """

    probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    log_probs: Tensor | None = None
    novelty: Tensor | None = None

    def __len__(self) -> int:
        return len(self.probs)

    @property
    def confidence(self) -> Tensor:
        """Largest probability of each row, (N,), in [1/C, 1]."""
        return self.probs.amax(1)

    @property
    def predicted(self) -> Tensor:
        """Most probable class of each row, int64 (N,); the first where several tie."""
        return torch.from_numpy(self.probs.numpy().argmax(1))

    def without_logs(self) -> "Prediction":
        """The same without `log_probs`, which are half of its memory."""
        return replace(self, log_probs=None)

    @classmethod
    def joined(cls, parts: "Sequence[Prediction]") -> "Prediction":
        """The images of all, in this order; a part that one of them lacks is None."""
        names = [
            one.name for one in fields(cls) if all(getattr(part, one.name) is not None for part in parts)
        ]
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined)


def log_softmax(logits: Tensor, dims: int) -> Tensor:
    """Float64 log-softmax over the last of `dims` dimensions; ValueError unless all logits are finite."""
    if logits.ndim != dims or logits.shape[-1] == 0:
        raise ValueError(
            f"logits must have {dims} dimensions and at least one class, got {tuple(logits.shape)}"
        )
    logits = logits.detach().to("cpu", torch.float64)
    if not torch.isfinite(logits).all():
        raise ValueError(f"{int((~torch.isfinite(logits)).sum())} of {logits.numel()} logits are not finite")
    return logits.log_softmax(-1)


def entropy_of(probs: Tensor, log_probs: Tensor) -> Tensor:
    """−Σ_c p_c log p_c in nats over the last dimension, ≥ 0; log_probs may be −inf where probs is 0."""
    return -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1).clamp(max=0)
