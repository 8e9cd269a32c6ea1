"""Adapters: the trainable part of a run, from features (or images) to logits; everything else is frozen.

`build_adapter(cfg, …)` makes one by its config: `none` (the zero-shot classifier), `linear` (a residual linear
map on the image feature) or `lora` (low-rank changes inside the towers). Every adapter starts exactly at
zero-shot.
"""

from clipkal.adapters.base import Adapter
from clipkal.adapters.build import build_adapter
from clipkal.adapters.linear import LinearAdapter
from clipkal.adapters.zeroshot import ZeroShotAdapter

__all__ = ["Adapter", "LinearAdapter", "ZeroShotAdapter", "build_adapter"]
