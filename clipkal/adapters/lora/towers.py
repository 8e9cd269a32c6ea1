"""The frozen CLIP under a LoRA: run with low-rank paths beside some of its weights, never written to."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from clipkal.adapters.lora.paths import LowRankPaths, Path
from clipkal.errors import ConfigError

Paths = Mapping[str, Sequence[Path]]


class FrozenClip:
    """A CLIP whose parameters are frozen and which is in evaluation mode; ConfigError otherwise.

    Deliberately no module: an adapter that holds one neither registers, saves, casts, moves nor copies it.
    """

    def __init__(self, clip: nn.Module):
        if any(p.requires_grad for p in clip.parameters()) or any(m.training for m in clip.modules()):
            raise ConfigError(
                "a LoRA needs a frozen backbone in evaluation mode: model.eval().requires_grad_(False)"
            )
        self.clip: Any = clip
        self.parameters = dict(clip.named_parameters())

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenClip":
        return self

    def image_features(self, images: Tensor, paths: Paths) -> Tensor:
        """Images [B, 3, H, W] to features [B, d], not normalised; `paths` by the names of their weights."""
        dtype = next(self.clip.visual.parameters()).dtype
        with self._with(paths):
            return self.clip.encode_image(images.to(dtype))

    def text_features(self, tokens: Tensor, paths: Paths) -> Tensor:
        """Token ids [P, context] to features [P, d], not normalised."""
        with self._with(paths):
            return self.clip.encode_text(tokens)

    def _with(self, paths: Paths) -> LowRankPaths:
        return LowRankPaths({self.parameters[name]: own for name, own in paths.items()})
