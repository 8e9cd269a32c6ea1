"""Two ways to solve (I + ΦᵀMΦ) x = b: a Cholesky factor, or conjugate gradients with the diagonal in a Kronecker eigenbasis.

The bases V_F and V_T (basis.py) are the eigenvectors of the two Kronecker factors of the curvature, so in the coordinates x the
matrix is nearly diagonal and its exact diagonal is the natural preconditioner (the same idea as the eigenvalue correction of
Kronecker-factored curvature, George et al. 2018, arXiv 1806.03884). All eigenvalues are ≥ 1, so neither can fail for lack of
definiteness.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.full_kalman.likelihood import Sites
from clipkal.optim.full_kalman.reduced import ReducedModel


@dataclass(frozen=True)
class Direct:
    """Cholesky factor [D, D] of the precision; D³/3 multiply-adds once, D² a solve."""

    factor: Tensor

    @classmethod
    def at(cls, model: ReducedModel, sites: Sites) -> "Direct":
        return cls(torch.linalg.cholesky(model.precision_matrix(sites)))

    def solve(self, rhs: Tensor) -> Tensor:
        """Solution of rhs [..., D]."""
        flat = rhs.reshape(-1, rhs.shape[-1]).T
        return torch.cholesky_solve(flat, self.factor).T.reshape(rhs.shape)

    def log_determinant(self) -> float:
        return 2.0 * float(self.factor.diagonal().double().log().sum())


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    rhs: Tensor,
    diagonal: Tensor,
    tolerance: float,
    max_iterations: int = 1000,
) -> tuple[Tensor, int]:
    """Solves A x = rhs for a batch of right-hand sides [..., D] at once; returns x and the number of products.

    product: x [..., D] -> A x. diagonal [D]: the preconditioner P. Stops when every residual is below tolerance · ‖rhs‖, both in
    the norm of P⁻¹. Each right-hand side has its own step lengths, so the batch shares products and nothing else.
    """
    x = torch.zeros_like(rhs)
    r = rhs.clone()
    z = r / diagonal
    p = z.clone()
    rz = (r * z).sum(-1, keepdim=True)
    target = tolerance**2 * rz
    tiny = torch.finfo(rhs.dtype).tiny
    for iteration in range(max_iterations):
        if bool((rz <= target).all()):
            return x, iteration
        ap = product(p)
        alpha = rz / (p * ap).sum(-1, keepdim=True).clamp(min=tiny)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, ap, value=-1.0)
        z = r / diagonal
        rz, old = (r * z).sum(-1, keepdim=True), rz
        p.mul_(rz / old.clamp(min=tiny)).add_(z)
    return x, max_iterations
