"""Few-shot sampling as the field does it, on labels alone.

`coop` is the protocol of CoOp (Zhou et al. 2022; its code and Dassl's): one private stream
`random.Random(seed)`; the train items are grouped by label in the order in which the labels first appear in
the list (not sorted); each class gives `sample(items, k)`, or all its items where it has fewer; then, on the
same stream, the val items with min(k, 4). Verified against the index files that cross_modal_adaptation
publishes: all 105 (dataset, shots, seed) of seven datasets, in order. `cliplora` is the order of CLIP-LoRA's
code: val first, then train, so that the same seed gives other shots.

Sampling positions instead of items gives the same draw, since `random.sample` looks only at the length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Draw = tuple[list[int], list[int]]
Protocol = Callable[[Sequence[int], Sequence[int], int, int], Draw]
MOST_VAL_SHOTS = 4


def by_first_appearance(labels: Sequence[int]) -> dict[int, list[int]]:
    """Positions of each label, the labels in the order in which they first appear."""
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    return groups


def sample_each_class(labels: Sequence[int], k: int, stream: random.Random) -> list[int]:
    """Positions of `k` items of each class, all where there are fewer; k < 1 takes all and draws nothing."""
    if k < 1:
        return list(range(len(labels)))
    chosen: list[int] = []
    for items in by_first_appearance(labels).values():
        chosen += stream.sample(items, k) if len(items) >= k else items
    return chosen


def coop(train: Sequence[int], val: Sequence[int], shots: int, seed: int) -> Draw:
    """Train positions, then val positions on the same stream.

    Args:
        train, val: the labels, in the order of the list they come from.
        shots: images per class; below 1 means all of train and all of val.
        seed: any integer from 0 on; 0 is a seed like every other.
    """
    stream = random.Random(seed)
    chosen = sample_each_class(train, shots, stream)
    return chosen, sample_each_class(val, min(shots, MOST_VAL_SHOTS), stream)


def cliplora(train: Sequence[int], val: Sequence[int], shots: int, seed: int) -> Draw:
    """As `coop`, but val is drawn before train.

    Differs from CLIP-LoRA in one case: a class with fewer images than shots keeps each image once, where that
    code draws with replacement.
    """
    stream = random.Random(seed)
    chosen_val = sample_each_class(val, min(shots, MOST_VAL_SHOTS), stream)
    return sample_each_class(train, shots, stream), chosen_val


PROTOCOLS: dict[str, Protocol] = {"coop": coop, "cliplora": cliplora}


def base_or_new(labels: Sequence[int], subset: str) -> list[int]:
    """The labels kept by base-to-new: of those that occur, sorted, the first ceil(C/2) are base."""
    occurring = sorted(set(labels))
    half = (len(occurring) + 1) // 2
    return {"all": occurring, "base": occurring[:half], "new": occurring[half:]}[subset]
