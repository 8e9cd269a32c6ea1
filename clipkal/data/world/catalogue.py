"""What a shape of the world is: a name, the words that describe it, a drawing. And the catalogue of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

NOUNS = ("thing", "object", "shape")  # for what is described and not named

Draw = Callable[[Tensor, "Chance"], Tensor]


class Chance:
    """Four uniform numbers in 0..1 per image ([n, 4]), handed out as measures of shape [n, 1, 1]."""

    def __init__(self, uniform: Tensor) -> None:
        self._uniform = uniform[:, :, None, None]

    def between(self, which: int, low: float, high: float) -> Tensor:
        """The `which`-th number, scaled to low..high."""
        return low + (high - low) * self._uniform[:, which]


@dataclass(frozen=True)
class Shape:
    """One class of the world: its name, the words that describe it, and how it is drawn."""

    name: str
    adjectives: tuple[str, ...]
    parts: tuple[str, ...]
    draw: Draw

    @property
    def description(self) -> str:
        """All adjectives and parts: "long thin shape with a round head and a stick"."""
        return describe(self.adjectives, self.parts)


def describe(adjectives: tuple[str, ...], parts: tuple[str, ...], noun: str = "shape") -> str:
    """A noun phrase without article from some adjectives and some parts."""
    phrase = " ".join([*adjectives, noun])
    return f"{phrase} with {' and '.join(parts)}" if parts else phrase


SHAPES: dict[str, Shape] = {}


def shape(name: str, adjectives: str, *parts: str) -> Callable[[Draw], Draw]:
    """Register the decorated drawing under `name`."""

    def register(draw: Draw) -> Draw:
        SHAPES[name] = Shape(name, tuple(adjectives.split()), parts, draw)
        return draw

    return register
