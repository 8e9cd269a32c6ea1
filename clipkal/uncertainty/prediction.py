"""What a model says about N images: probabilities, and how much of their uncertainty is the model's own."""

from dataclasses import dataclass, replace

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
    """

    probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    log_probs: Tensor | None = None

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


def plugin(logits: Tensor) -> Prediction:
    """The softmax of one logit vector an image; all its entropy is aleatoric.

    Args:
        logits: shape (N, C), any float type and device; computed on the CPU in float64.

    Raises:
        ValueError: wrong shape, or logits that are not finite.
    """
    log_probs = log_softmax(logits, 2)
    probs = log_probs.exp()
    entropy = entropy_of(probs, log_probs)
    return Prediction(probs, entropy, entropy, torch.zeros_like(entropy), log_probs)


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
