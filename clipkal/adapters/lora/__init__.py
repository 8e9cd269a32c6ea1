"""LoRA for CLIP's towers: the trainable state that LoKO filters, from images to logits.

`build_lora(backbone, prompts, text_features, rank=…)` makes a `LoRAAdapter`. The frozen model is only
read, no module is replaced, and `torch.func` can differentiate and vectorise it.
"""

from clipkal.adapters.lora.adapter import LoRAAdapter
from clipkal.adapters.lora.build import build_lora
from clipkal.adapters.lora.settings import LoRASettings

__all__ = ["LoRAAdapter", "LoRASettings", "build_lora"]
