"""The frozen CLIP under a LoRA: run with other weights in the place of some of its own, never written to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.errors import ConfigError

Weights = Mapping[str, Tensor]


class _Encoder(nn.Module):
    """One method of a CLIP as a module's forward, for `functional_call`; names get the prefix `clip.`."""

    def __init__(self, clip: nn.Module, method: str):
        super().__init__()
        self.clip, self.method = clip, method

    def forward(self, inputs: Tensor) -> Tensor:
        return getattr(self.clip, self.method)(inputs)


class FrozenClip:
    """A CLIP whose parameters are frozen and which is in evaluation mode; ConfigError otherwise.

    Deliberately no module: an adapter that holds one neither registers, saves, casts, moves nor copies it.
    """

    def __init__(self, clip: nn.Module):
        if any(p.requires_grad for p in clip.parameters()) or any(m.training for m in clip.modules()):
            raise ConfigError(
                "a LoRA needs a frozen backbone in evaluation mode: model.eval().requires_grad_(False)"
            )
        self.clip = clip
        self.parameters = dict(clip.named_parameters())
        self._image, self._text = _Encoder(clip, "encode_image"), _Encoder(clip, "encode_text")

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenClip":
        return self

    def image_features(self, images: Tensor, weights: Weights) -> Tensor:
        """Images [B, 3, H, W] to features [B, d], not normalised; `weights` replace those of the same name."""
        return self._call(self._image, images, weights)

    def text_features(self, tokens: Tensor, weights: Weights) -> Tensor:
        """Token ids [P, context] to features [P, d], not normalised."""
        return self._call(self._text, tokens, weights)

    def _call(self, encoder: _Encoder, inputs: Tensor, weights: Weights) -> Tensor:
        named = {f"clip.{name}": weight for name, weight in weights.items()}
        with plain_attention():
            return functional_call(encoder, named, (inputs,), tie_weights=False)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without nn.MultiheadAttention's fused evaluation path, which has neither a vmap rule nor forward AD.

    It would be taken in frozen blocks below the first adapted one, and without gradients in all of them.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
