"""Adapters: the trainable part of a run, from features (or images) to logits; everything else is frozen.

`ZeroShotAdapter` is CLIP's own classifier, `LinearAdapter` a residual linear map on the image feature, `PrototypeAdapter`
one prototype a class, and lora/ has low-rank changes inside the towers. Every adapter starts exactly at zero-shot.
"""

from clipkal.adapters.base import Adapter
from clipkal.adapters.linear import LinearAdapter
from clipkal.adapters.prototypes import PrototypeAdapter
from clipkal.adapters.zeroshot import ZeroShotAdapter

__all__ = ["Adapter", "LinearAdapter", "PrototypeAdapter", "ZeroShotAdapter"]
