"""What a LoRA is made of, in the words of a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from clipkal.errors import ConfigError

Target = Literal["q", "k", "v", "out", "fc1", "fc2", "conv"]
Tower = Literal["vision", "text", "both"]
Blocks = Annotated[
    Annotated[str, Field(pattern="^(all|(first|last):0*[1-9][0-9]*)$")] | Sequence[int],
    Field(description="all, first:2, last:2 or a list of numbers"),
]
TARGETS, TOWERS = get_args(Target), get_args(Tower)


@dataclass(frozen=True)
class LoRASettings:
    """Which weights get a low-rank change, and of what kind. Raises ConfigError for a value that does not exist.

    rank: r ≥ 1.
    alpha: the change is (alpha / rank) · B A (LoRA, arXiv 2106.09685); None: alpha = rank.
    dropout: of the inputs of the low-rank paths, in training mode. A Kalman filter needs 0: its Jacobian must
        belong to one function.
    targets: among q, k, v (of attention, each with its own A and B even where the weight is fused), out (its
        output projection), fc1, fc2 (the MLP) and conv (ModifiedResNet's).
    blocks: "all", "first:n", "last:n" or a list of places, negative ones from the end. A ModifiedResNet's blocks
        are its bottlenecks in order and, last, its attention pool.
    towers: vision, text or both.
    seed: of A, which starts random; B starts at zero.
    """

    rank: int = 4
    alpha: float | None = None
    dropout: float = 0.0
    targets: Sequence[str] = ("q", "k", "v")
    blocks: str | Sequence[int] = "all"
    towers: str = "vision"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"adapter.rank={self.rank}: must be a whole number from 1 on")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"adapter.alpha={self.alpha}: must be positive, or null for alpha = rank")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout={self.dropout}: must lie in 0 ≤ dropout < 1")
        if isinstance(self.targets, str) or not self.targets:
            raise ConfigError(f"adapter.targets={self.targets}: give a list of {', '.join(TARGETS)}")
        for target in self.targets:
            _check_word("targets", target, TARGETS)
        _check_word("towers", self.towers, TOWERS)
        self.pick_blocks([])  # a malformed `blocks` is told at once

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def adapts(self, tower: str) -> bool:
        """Whether the `vision` or the `text` tower is adapted."""
        return self.towers in (tower, "both")

    def pick_blocks(self, found: list[str]) -> list[str]:
        """Those of a tower's blocks, in order, that `blocks` names."""
        if isinstance(self.blocks, str):
            return self._pick_by_word(self.blocks, found)
        places = list(self.blocks)
        if found and (bad := [i for i in places if not -len(found) <= i < len(found)]):
            raise ConfigError(f"adapter.blocks={places}: {bad[0]} is not among 0…{len(found) - 1}")
        chosen = {i % len(found) for i in places} if found else set()
        return [block for i, block in enumerate(found) if i in chosen]

    def _pick_by_word(self, word: str, found: list[str]) -> list[str]:
        end, _, count = word.partition(":")
        if word == "all":
            return found
        if end not in ("first", "last") or not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"adapter.blocks={word}: type all, first:2, last:2 or a list of numbers")
        return found[: int(count)] if end == "first" else found[-int(count) :]


def _check_word(key: str, value: Any, words: Sequence[str]) -> None:
    if value not in words:
        raise ConfigError(f"adapter.{key}: there is no {value!r}; it can be {', '.join(words)}")
