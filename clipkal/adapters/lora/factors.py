"""The trainable numbers: one pair of low-rank factors per target."""

import math

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """Δ = scale · (B A − B₀ A₀) for a weight [out, in], with A [r, in] and B [out, r].

    A starts uniform in ±1/√in (the Kaiming rule with a = √5 of LoRA's code; arXiv 2106.09685 §4.1 says a
    Gaussian). Δ = 0 at the start either way:

    * `zero`: B = 0 as in LoRA, and nothing is subtracted. ∂Δ/∂A = scale · B is zero at the start.
    * `balanced` (ours): B starts uniform in the same interval as A, and the frozen copies B₀ and A₀ of the start
      are subtracted. Entries of equal variance give A and B Jacobians of equal expected squared norm: with
      G = ∂logit/∂W, E‖BᵀG‖² = r Var(B) ‖G‖² and E‖G Aᵀ‖² = r Var(A) ‖G‖².

    Args:
        size: out, in. rank: r. scale: alpha / r. dropout: of the r terms in training mode. balanced: see above.
        generator: where A and B are drawn from, on the CPU. dtype, device: of A and B.
    """

    A0: Tensor
    B0: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        rank: int,
        scale: float,
        dropout: float,
        balanced: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        rows, columns = size
        self.scale, self.dropout, self.balanced = scale, dropout, balanced

        def uniform(*shape: int) -> Tensor:
            drawn = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
            return (drawn / math.sqrt(columns)).to(device, dtype)

        self.A = nn.Parameter(uniform(rank, columns))
        zeros = torch.zeros(rows, rank, dtype=dtype, device=device)
        self.B = nn.Parameter(uniform(rows, rank) if balanced else zeros)
        if balanced:
            self.register_buffer("A0", self.A.detach().clone())
            self.register_buffer("B0", self.B.detach().clone())

    def forward(self) -> Tensor:
        """Δ [out, in]."""
        mask = self._mask()
        change = self._product(self.B, self.A, mask)
        if self.balanced:
            change = change - self._product(self.B0, self.A0, mask)
        return change if self.scale == 1 else self.scale * change

    @property
    def start_variance(self) -> float:
        """Variance of an entry of A at the start, 1 / (3 · in)."""
        return 1 / (3 * self.A.shape[1])

    def _product(self, B: Tensor, A: Tensor, mask: Tensor | None) -> Tensor:
        return B @ A if mask is None else (B * mask) @ A

    def _mask(self) -> Tensor | None:
        """0 or 1 / (1 − dropout) for each of the r terms [r], in training mode."""
        if not self.dropout or not self.training:
            return None
        keep = torch.rand(self.A.shape[0], device=self.A.device) >= self.dropout
        return keep.to(self.A.dtype) / (1 - self.dropout)
