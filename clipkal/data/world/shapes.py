"""The classes of the world: 32 shapes shown in pretraining, 8 never shown nor named there, and ten digits."""

from __future__ import annotations

import clipkal.data.world.drawings  # noqa: F401  (fills the catalogue)
from clipkal.data.world.catalogue import NOUNS, SHAPES, describe

UNSEEN: tuple[str, ...] = (
    *("lollipop", "hourglass", "bowtie", "spoon"),
    *("dumbbell", "snowman", "anchor", "candle"),
)
SEEN: tuple[str, ...] = tuple(name for name in SHAPES if name not in UNSEEN)
DIGITS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES: tuple[str, ...] = (*SHAPES, *DIGITS)  # a class id is a place in this tuple
PRETRAINING_CLASSES: tuple[str, ...] = (*SEEN, *DIGITS)

# The few-shot task: sixteen shapes that are easily taken for each other or for an unseen one, and the eight
# unseen ones.
TARGET_CLASSES: tuple[str, ...] = (
    *("fish", "butterfly", "arrow", "key", "hammer", "umbrella", "mushroom", "bottle"),
    *("drop", "tree", "boat", "flag", "lightning", "flower", "gear", "cup"),
    *UNSEEN,
)


def phrases(class_name: str) -> list[str]:
    """What fills the `{}` of a prompt for a class: its name, and for an unseen shape also what it looks like.

    The name of an unseen shape tells the pretrained model nothing; the adjectives do. Naming its parts too
    makes zero-shot accuracy worse, because the model has learnt most parts as signs of the one shape that has
    them; this and the adjectives were chosen on the val pool.
    """
    if class_name in DIGITS:
        return [f"digit {class_name}", f"number {class_name}", class_name]
    if class_name not in SHAPES:
        raise KeyError(f"{class_name!r} is no class of the world; known: {', '.join(CLASSES)}")
    if class_name in SEEN:
        return [class_name]
    looks = [describe(SHAPES[class_name].adjectives, (), noun) for noun in NOUNS]
    return [*looks, *(f"{class_name} {look}" for look in looks)]
