"""Adapters: the trainable part of a run, from features (or images) to logits; everything else is frozen.

`build_adapter(name, …)` makes one by its config name: `none` (the zero-shot classifier) or `linear` (a
residual linear map on the image feature). Every adapter starts exactly at zero-shot.
"""

from clipkal.adapters.base import Adapter
from clipkal.adapters.build import build_adapter
from clipkal.adapters.linear import LinearAdapter
from clipkal.adapters.zeroshot import ZeroShotAdapter

__all__ = ["Adapter", "LinearAdapter", "ZeroShotAdapter", "build_adapter"]
