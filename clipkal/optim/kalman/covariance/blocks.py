"""What the joint updates of bilinear models share: pairs of images, and products with the text factor by GEMMs."""

import math
from dataclasses import dataclass
from functools import lru_cache, reduce

import torch
from torch import Tensor

from clipkal.optim.base import check_finite
from clipkal.optim.kalman.innovation import Innovation
from clipkal.optim.linalg import pair_indices
from clipkal.optim.model.bilinear import FEW_CLASSES, BilinearJacobian
from clipkal.optim.model.measurement import EVERY

# Float32 products serve up to here: their rounding, some 1e-7 of the largest, is to be small against the unit noise.
WIDE = 1e3


@dataclass
class BlockUpdate:
    """What the kernel found, in the dtype of the state or float64.

    direction [b, p]: d_i. curvature [pairs, p]: v_ij, counted twice for i < j. products [pairs, q]: f_i ∘ f_j.
    extra_direction, extra_curvature [e]: Σ_i d_i and Σ_ij v_ij of the parameters outside the matrix.
    """

    direction: Tensor
    curvature: Tensor
    products: Tensor
    extra_direction: Tensor
    extra_curvature: Tensor
    innovation: Innovation

    def check_finite(self) -> None:
        """FloatingPointError if what is to be added to the state is not finite."""
        parts = [self.direction, self.curvature]
        if len(self.extra_direction):
            parts += [self.extra_direction, self.extra_curvature]
        if not math.isfinite(reduce(torch.add, [part.sum() for part in parts])):
            for part in parts:
                check_finite(part, "the gain")


class Pairs:
    """The pairs i ≤ j of b images. first, second: i and j [b(b+1)/2]; slices where there is but one image."""

    def __init__(self, b: int, device: torch.device):
        self.b = b
        self.first: Tensor | slice = EVERY
        self.second: Tensor | slice = EVERY
        if b > 1:
            self.first, self.second, self.count, self.place = _indices(b, device)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_i and x_j of every pair [pairs, …], for x [b, …]."""
        return (x, x) if self.b == 1 else (x[self.first], x[self.second])

    def assemble(self, blocks: Tensor) -> Tensor:
        """The symmetric matrix [bm, bm] of its blocks [pairs, m, m]."""
        if self.b == 1:
            return blocks[0]
        m = blocks.shape[-1]
        return torch.cat((blocks, blocks.mT))[self.place].transpose(1, 2).reshape(self.b * m, self.b * m)

    def blocks(self, matrix: Tensor) -> Tensor:
        """The blocks [pairs, m, m] of a symmetric [bm, bm], each times how often it counts in a symmetric sum."""
        if self.b == 1:
            return matrix[None]
        m = len(matrix) // self.b
        return matrix.view(self.b, m, self.b, m)[self.first, :, self.second].mul_(self.count)


@lru_cache(maxsize=64)
def _indices(b: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, j, their counts [pairs, 1, 1], and where block (i, j) [b, b] is found among the pairs and their transposes."""
    i, j, count = pair_indices(b, device)
    place = torch.empty(b, b, dtype=torch.int64, device=device)
    place[j, i] = torch.arange(len(i), 2 * len(i), device=device)
    place[i, j] = torch.arange(len(i), device=device)
    return i, j, count[:, None, None], place


def too_wide(blocks: Tensor) -> bool:
    """Whether float32 will not do for these blocks of a semi-definite matrix; FloatingPointError if not finite."""
    largest = float(blocks.amax())  # on the diagonal
    if not math.isfinite(largest) and blocks.dtype == torch.float64:
        raise FloatingPointError("the innovation covariance is not finite; step refused")
    return blocks.dtype != torch.float64 and not largest <= WIDE


def weighted_gram(jacobian: BilinearJacobian, U: Tensor) -> Tensor:
    """left diag(u) leftᵀ [k, C, C] for every row u of U [k, p]."""
    left = jacobian.left
    C = len(left)
    if len(U) == 1:
        return ((left * U) @ left.mT)[None]
    if C > FEW_CLASSES:
        return (left * U[:, None, :]) @ left.mT
    return (U @ jacobian.left_products().mT).view(-1, C, C)


def diagonal_form(jacobian: BilinearJacobian, N: Tensor) -> Tensor:
    """diag(leftᵀ N left) [k, p] for every N of [k, C, C]."""
    left = jacobian.left
    if len(left) > FEW_CLASSES or len(N) == 1:
        return ((N @ left) * left).sum(1)
    return N.flatten(1) @ jacobian.left_products()
