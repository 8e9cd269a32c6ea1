"""How many images of a batch a filter conditions on jointly."""

from typing import Literal

Block = int | Literal["auto"] | None

# Outputs taken jointly by "auto": where the two costs of a block, its GEMMs and its passes over P, balance.
LARGEST_SOLVE = 128


def joint_slices(images: int, m: int, block: Block, most: int | None) -> list[slice]:
    """The slices of a batch that are taken one after the other.

    m: outputs an image. block: images a slice, None for all of them, or "auto": as many as keep a slice cheap.
    most: images whose Jacobian rows fit into memory, for "auto"; None where rows are not formed.
    """
    size = images if block is None else block if block != "auto" else min(images, _cheap(m, most))
    return [slice(start, min(start + size, images)) for start in range(0, images, size)]


def _cheap(m: int, most: int | None) -> int:
    few = max(1, min(8, LARGEST_SOLVE // m))
    if most is None:
        return few
    return min(max(1, most), 64 if m == 1 else few)
