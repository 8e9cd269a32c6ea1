"""A LoRA adapter over a loaded backbone."""

from torch import Tensor

from clipkal.adapters.lora.adapter import LoRAAdapter
from clipkal.adapters.lora.settings import LoRASettings
from clipkal.backbones.features import reduced_precision
from clipkal.backbones.openclip import Backbone
from clipkal.backbones.prompts import tokenise


def build_lora(
    backbone: Backbone,
    prompts: list[list[str]],
    text_features: Tensor | None = None,
    settings: LoRASettings | None = None,
) -> LoRAAdapter:
    """LoRA on the towers of `backbone`, zero-shot at the start.

    Args:
        backbone: from `load_backbone`; shared, never changed. Its image tower runs in `backbone.precision`.
        prompts: for each of C classes the sentences of its ensemble; only used where the text tower is adapted.
        text_features: `backbones.text_features(backbone, prompts)` [C, d]; only used where it is not.
        settings: see `LoRAAdapter`.
    """
    settings = settings or LoRASettings()
    tokens = tokenise(backbone, prompts) if settings.adapts("text") else None
    model = reduced_precision(backbone.model, backbone.precision)
    adapter = LoRAAdapter(model, text_features, backbone.logit_scale, settings, tokens)
    adapter.batch_size = backbone.batch_size
    return adapter
