"""Frozen CLIP backbones: images and prompts go in, unit-norm features come out, cached on disk.

`load_backbone` builds any open_clip model (or the embedded `mini`) and refuses weights that do not fit it;
`image_features` and `text_features` run it once per set; `featurise` does both for a whole few-shot task,
`pixelise` prepares the images of one for adapters inside the towers.
Names load on first use, because open_clip is slow to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipkal.backbones.features import image_features
    from clipkal.backbones.openclip import Backbone, load_backbone
    from clipkal.backbones.pixels import pixelise
    from clipkal.backbones.prompts import text_features
    from clipkal.backbones.remembered import remembered_backbone
    from clipkal.backbones.task import featurise

_HOMES = {
    "Backbone": "openclip",
    "load_backbone": "openclip",
    "image_features": "features",
    "text_features": "prompts",
    "featurise": "task",
    "pixelise": "pixels",
    "remembered_backbone": "remembered",
}
__all__ = [
    "Backbone",
    "featurise",
    "image_features",
    "load_backbone",
    "pixelise",
    "remembered_backbone",
    "text_features",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
