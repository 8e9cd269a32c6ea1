"""A LoRA adapter over a loaded backbone."""

from collections.abc import Sequence

from torch import Tensor

from clipkal.adapters.lora.adapter import LoRAAdapter
from clipkal.adapters.lora.settings import Blocks, LoRASettings, Target, Tower
from clipkal.backbones.features import reduced_precision
from clipkal.backbones.openclip import Backbone
from clipkal.backbones.prompts import tokenise
from clipkal.settings import Count, Fraction, Positive


def build_lora(
    backbone: Backbone,
    prompts: list[list[str]],
    text_features: Tensor | None = None,
    *,
    rank: Count = 4,
    alpha: Positive | None = None,
    dropout: Fraction = 0.0,
    targets: Sequence[Target] = ("q", "k", "v"),
    blocks: Blocks = "all",
    towers: Tower = "vision",
    seed: int = 0,
) -> LoRAAdapter:
    """LoRA on the towers of `backbone`, zero-shot at the start.

    Args:
        backbone: from `load_backbone`; shared, never changed. Its image tower runs in `backbone.precision`.
        prompts: for each of C classes the sentences of its ensemble; only used where the text tower is adapted.
        text_features: `backbones.text_features(backbone, prompts)` [C, d]; only used where it is not.
        rank, alpha, dropout, targets, blocks, towers, seed: see `LoRASettings`.
    """
    settings = LoRASettings(rank, alpha, dropout, targets, blocks, towers, seed)
    tokens = tokenise(backbone, prompts) if settings.adapts("text") else None
    model = reduced_precision(backbone.model, backbone.precision)
    adapter = LoRAAdapter(model, text_features, backbone.logit_scale, settings, tokens)
    adapter.batch_size = backbone.batch_size
    return adapter
