"""Small dense algebra in float64: factors of I + B, Gram matrices of wide blocks, index pairs; and white noise."""

from functools import lru_cache

import torch
from torch import Tensor


def unit_cholesky(gram: Tensor) -> Tensor:
    """Lower Cholesky factor of I + B for B [..., k, k] positive semi-definite up to rounding; float64.

    Only the lower triangle of B is read, so the factored matrix is symmetric by construction.

    Its eigenvalues are at least 1 in exact arithmetic, so the factorisation can only fail when rounding in
    B, some 1e-16 ‖B‖, exceeds 1; then that much is added to the diagonal (three times, tenfold), which only
    inflates the noise. Raises FloatingPointError if B is not finite. k³/3 flop.
    """
    return unit_cholesky_(gram.to(torch.float64, copy=True))


def unit_cholesky_(S: Tensor) -> Tensor:
    """The same of S = B [..., k, k] float64, which is overwritten."""
    S.diagonal(dim1=-2, dim2=-1).add_(1.0)
    factor, info = torch.linalg.cholesky_ex(S)
    if not (info.any() if info.ndim else info):
        return factor
    if not torch.isfinite(S).all():
        raise FloatingPointError("the innovation covariance is not finite; step refused")
    scale = S.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None]
    for jitter in (1e-14, 1e-13, 1e-12):
        S.diagonal(dim1=-2, dim2=-1).add_(jitter * scale)
        factor, info = torch.linalg.cholesky_ex(S)
        if not info.any():
            return factor
    raise FloatingPointError("the innovation covariance is not positive definite; step refused")


def log_det(cholesky: Tensor) -> Tensor:
    """log det(L Lᵀ) of a lower factor L [..., k, k]."""
    return 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def gram_matrix(rows: Tensor, weights: Tensor | None = None, chunk: int = 1 << 16) -> Tensor:
    """rows diag(weights) rowsᵀ in float64 for rows [k, n] of any float dtype; `chunk` columns at a time.

    Products are exact to float64, so the result is positive semi-definite to 1e-16. k² n flop.
    """
    k, n = rows.shape
    total = rows.new_zeros(k, k, dtype=torch.float64)
    for start in range(0, n, chunk):
        part = rows[:, start : start + chunk].double()
        right = part if weights is None else part * weights[start : start + chunk].double()
        total.addmm_(right, part.mT)
    return total


@lru_cache(maxsize=64)
def pair_indices(b: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs i ≤ j of b things: i, j [b(b+1)/2] and how often each counts in a symmetric sum (1, or 2)."""
    i, j = torch.triu_indices(b, b, device=device)
    return i, j, torch.where(i == j, 1.0, 2.0).double()


def psd_root(matrix: Tensor) -> Tensor:
    """X [..., k, k] with X Xᵀ = matrix, symmetric positive semi-definite (negative rounding cut off); float64."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT).double() / 2)
    return vectors * values.clamp(min=0).sqrt()[..., None, :]


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """White noise, drawn on the generator's device (the CPU for None) so that a seed means the same everywhere."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
