"""Adapters by their config."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipkal.adapters.base import Adapter
from clipkal.adapters.linear import LinearAdapter
from clipkal.adapters.zeroshot import ZeroShotAdapter
from clipkal.errors import ConfigError

if TYPE_CHECKING:
    from clipkal.backbones import Backbone

ADAPTERS = ("none", "linear", "lora")
ON_IMAGES = ("lora",)
"""Adapters that learn from images, not from the features of a frozen backbone."""


def build_adapter(
    cfg: Any,
    text_features: Tensor,
    logit_scale: float,
    backbone: "Backbone | None" = None,
    prompts: list[list[str]] | None = None,
    seed: int = 0,
) -> Adapter:
    """The adapter that `cfg` (name, and what else conf/adapter/ lists) describes.

    Args:
        text_features: [C, d] with unit rows. logit_scale: factor on the cosine.
        backbone, prompts, seed: for `lora` only, with the seed of its starting values.

    Raises ConfigError for a name that does not exist, or settings that the backbone has not.
    """
    if cfg.name == "none":
        return ZeroShotAdapter(text_features, logit_scale)
    if cfg.name == "linear":
        return LinearAdapter(text_features, logit_scale, cfg.coordinates)
    if cfg.name not in ON_IMAGES:
        raise ConfigError(f"unknown adapter.name={cfg.name}; it can be: {', '.join(ADAPTERS)}")
    if backbone is None:
        raise ConfigError("adapter=lora needs a backbone that reads images: type backbone=mini")
    from clipkal.adapters.lora import LoRASettings, build_lora

    blocks = cfg.blocks if isinstance(cfg.blocks, str) else list(cfg.blocks)
    settings = LoRASettings(
        cfg.rank, cfg.alpha, cfg.dropout, list(cfg.targets), blocks, cfg.towers, seed=seed
    )
    return build_lora(backbone, prompts or [], text_features, settings)
