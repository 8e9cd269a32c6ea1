"""What is in a picture, in words: one English caption per image, one of many ways to say it."""

from __future__ import annotations

import random

from clipkal.data.world.catalogue import NOUNS, SHAPES, describe
from clipkal.data.world.render import Attributes
from clipkal.data.world.shapes import CLASSES, PRETRAINING_CLASSES, SEEN, UNSEEN
from clipkal.data.world.styles import STYLES
from clipkal.data.world.surfaces import BACKGROUNDS, COLORS, PATTERNS

OPENINGS: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of", "a picture of", "a close view of", ""),
    "painting": ("a painting of", "a cartoon of"),
    "sketch": ("a sketch of", "a pencil drawing of"),
    "silhouette": ("a silhouette of", "a black shadow of"),
    "neon": ("a neon sign of", "a glowing outline of"),
}
# Prompts for zero-shot heads: one per way in which a pretraining caption opens.
TEMPLATES: tuple[str, ...] = tuple(f"{o} a {{}}" for openings in OPENINGS.values() for o in openings if o)
_DIGIT_NOUNS = ("digit ", "number ", "")
_COLORLESS = ("sketch", "silhouette")
_SMALL_WORDS = "a an with and on in front of at the big small top bottom left right digit number"


def vocabulary() -> list[str]:
    """Every word that a pretraining caption may hold, sorted; invented names are not counted."""
    phrases = [*PRETRAINING_CLASSES, *COLORS, *PATTERNS, *BACKGROUNDS, *NOUNS, _SMALL_WORDS]
    phrases += [words for name in SEEN for words in (*SHAPES[name].adjectives, *SHAPES[name].parts)]
    phrases += [opening for openings in OPENINGS.values() for opening in openings]
    return sorted({word for phrase in phrases for word in phrase.split()})


def invented_name(rng: random.Random) -> str:
    """A word that means nothing, from two or three syllables; unknown names should say nothing."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def _described(class_name: str, rng: random.Random) -> str:
    """Some of the adjectives and parts of a shape, at least two of them, in the usual order."""
    shape = SHAPES[class_name]
    words = [*shape.adjectives, *shape.parts]
    count = min(len(words), rng.randint(2, 5))
    chosen = set(rng.sample(words, count))
    adjectives = tuple(a for a in shape.adjectives if a in chosen)
    parts = [part for part in shape.parts if part in chosen]
    rng.shuffle(parts)
    text = describe(adjectives, tuple(parts), rng.choice(NOUNS))
    return f"{invented_name(rng)} {text}" if rng.random() < 0.15 else text


def _place(offset: tuple[float, float]) -> str:
    """Where the thing is, "top left", or an empty string in the middle."""
    x, y = offset
    words = [
        "top" if y < -0.2 else "bottom" if y > 0.2 else "",
        "left" if x < -0.2 else "right" if x > 0.2 else "",
    ]
    return " ".join(word for word in words if word)


def caption(class_id: int, style_id: int, attributes: Attributes, row: int, rng: random.Random) -> str:
    """A caption for image `row` of a rendered batch; `rng` chooses the wording.

    Digits are always named; three shapes in ten are described by their parts instead of named, which is what
    lets the model recognise a shape by description. Unseen shapes are never named, nor are held-out styles.
    """
    name, style = CLASSES[class_id], STYLES[style_id]
    words: list[str] = []
    size = float(attributes.size[row])
    if rng.random() < 0.4:
        words += ["big"] if size > 0.65 else ["small"] if size < 0.55 else []
    if style not in _COLORLESS and rng.random() < 0.7:
        words.append(list(COLORS)[int(attributes.color[row])])
    pattern = PATTERNS[int(attributes.pattern[row])]
    if style in ("photo", "painting") and pattern != "plain" and rng.random() < 0.5:
        words.append(pattern)
    if name not in SHAPES:
        words.append(rng.choice(_DIGIT_NOUNS) + name)
    else:
        words.append(_described(name, rng) if rng.random() < 0.3 or name in UNSEEN else name)
    thing = " ".join(words)
    thing = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    text = f"{rng.choice(OPENINGS[style])} {thing}".strip() if style in OPENINGS else thing
    background = BACKGROUNDS[int(attributes.background[row])]
    if style in ("photo", "painting") and background != "plain" and rng.random() < 0.4:
        return f"{text} {rng.choice(('on', 'in front of'))} {background}"
    place = _place((float(attributes.offset[row, 0]), float(attributes.offset[row, 1])))
    if place and rng.random() < 0.3:
        return f"{text} at the {place}"
    return text
