"""The trainable numbers: one pair of low-rank factors per target."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """The path x ↦ scale · B A x beside a frozen weight [out, in], with A = down.weight [r, in], B = up.weight [out, r].

    A starts uniform in ±1/√in (the Kaiming rule with a = √5 of LoRA's code; arXiv 2106.09685 §4.1 says a
    Gaussian) and B at zero, so the path adds nothing at the start. Both are `nn.Linear`s that see every token,
    which is what hooks need: natural gradients read their Kronecker factors there, Kalman filters their Jacobian.

    Args:
        size: out, in. rank: r. scale: alpha / r. dropout: of the entries of x, in training mode.
        generator: where A is drawn from, on the CPU. dtype, device: of A and B.
    """

    def __init__(
        self,
        size: tuple[int, int],
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        rows, columns = size
        self.scale, self.dropout = scale, dropout
        self.down = nn.Linear(columns, rank, bias=False, dtype=dtype, device="meta").to_empty(device=device)
        self.up = nn.Linear(rank, rows, bias=False, dtype=dtype, device="meta").to_empty(device=device)
        drawn = torch.rand(rank, columns, generator=generator, dtype=torch.float64) * 2 - 1
        with torch.no_grad():
            self.down.weight.copy_(drawn / math.sqrt(columns))
            self.up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [..., in] to [..., out], in the dtype of x."""
        inner = F.dropout(x, self.dropout, self.training).to(self.down.weight.dtype)
        return (self.scale * self.up(self.down(inner))).to(x.dtype)

    def change(self) -> Tensor:
        """scale · B A [out, in]: what merging adds to the weight."""
        return self.scale * (self.up.weight @ self.down.weight)

    @property
    def start_variance(self) -> float:
        """Variance of an entry of A at the start, 1 / (3 · in)."""
        return 1 / (3 * self.down.in_features)
