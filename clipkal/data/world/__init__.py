"""The embedded image world: small captioned pictures drawn from code, so that all runs offline.

Forty shapes and ten digits in eight styles. Five styles and 42 of the classes are shown when the embedded
model is pretrained (`clipkal-pretrain`); three styles and eight shapes are not. `render` draws any batch,
`render_split` the fixed images of a data set, `caption` says what is in them, and `phrases` fills the prompts
of a class.
"""

from clipkal.data.world.captions import TEMPLATES, caption
from clipkal.data.world.catalogue import SHAPES
from clipkal.data.world.render import Attributes, render, render_split
from clipkal.data.world.shapes import (
    CLASSES,
    DIGITS,
    PRETRAINING_CLASSES,
    SEEN,
    TARGET_CLASSES,
    UNSEEN,
    phrases,
)
from clipkal.data.world.styles import HELD_OUT_STYLES, PRETRAINING_STYLES, STYLES

__all__ = [
    "CLASSES",
    "DIGITS",
    "HELD_OUT_STYLES",
    "PRETRAINING_CLASSES",
    "PRETRAINING_STYLES",
    "SEEN",
    "SHAPES",
    "STYLES",
    "TARGET_CLASSES",
    "TEMPLATES",
    "UNSEEN",
    "Attributes",
    "caption",
    "phrases",
    "render",
    "render_split",
]
