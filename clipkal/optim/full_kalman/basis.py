"""Orthonormal bases of what the data can see, turned so that the curvature is nearly diagonal.

The prior of W is isotropic, so any orthonormal basis of the span is as good as any other for the mathematics; for the solver the
best one diagonalises the two Kronecker factors of the curvature Σ_i (G_i G_iᵀ) ⊗ (Aᵀ M_i A):

    Σ_i w_i G_i G_iᵀ  (w_i = tr M_i = 1 − ‖π_i‖²)     and     Aᵀ (Σ_i M_i) A = Aᵀ (diag(Σπ_i) − Σ π_i π_iᵀ) A.
"""

import torch
from torch import Tensor

from clipkal.optim.full_kalman.reduced import ReducedModel

# Directions whose squared singular value is below this fraction of the largest are not in the span: leaving them at their prior
# changes the kernel by less than this fraction.
RANK_TOLERANCE = 1e-12
# From this many multiply-adds a product, N·C·r, on, the solves are float32 where the precision is "auto".
LARGE = 2**22


def span(rows: Tensor) -> Tensor:
    """Orthonormal basis [q, r] of the row space of rows [n, q], from the smaller of the two Gram matrices; min(n, q)³ flop."""
    rows = rows.double()
    n, q = rows.shape
    if n == 0 or q == 0:
        return rows.new_zeros(q, 0)
    values, vectors = torch.linalg.eigh(rows @ rows.T if n < q else rows.T @ rows)
    keep = values > max(RANK_TOLERANCE * float(values[-1]), 0.0)
    vectors = vectors[:, keep]
    if n < q:
        vectors = torch.linalg.qr(rows.T @ (vectors / values[keep].sqrt()))[0]
    return vectors


def feature_rotation(features: Tensor, probs: Tensor) -> Tensor:
    """Eigenvectors [r, r] of Σ_i w_i G_i G_iᵀ for G [N, r], π [N, C]."""
    weights = (1.0 - probs.square().sum(-1)).clamp(min=0.0)
    return _eigenvectors((features * weights[:, None]).T @ features)


def class_rotation(classes: Tensor, probs: Tensor) -> Tensor:
    """Eigenvectors [t, t] of Aᵀ (Σ_i M_i) A for A [C, t], π [N, C]."""
    projected = probs @ classes
    return _eigenvectors((classes * probs.sum(0)[:, None]).T @ classes - projected.T @ projected)


def _eigenvectors(matrix: Tensor) -> Tensor:
    if not len(matrix):
        return matrix.double()
    return torch.linalg.eigh((0.5 * (matrix + matrix.T)).double())[1]


def reduce(
    left: Tensor, right: Tensor, offset: Tensor, labels: Tensor, scale_sd: float, precision: str
) -> tuple[ReducedModel, Tensor, Tensor]:
    """The reduced model at p₀ = 1, V_F [q, r], and [V_T, u] [p, t + 1] with u the unit vector of the mean left factor outside V_T.

    left [C, p], right [N, q], offset [N, C]. Bases are found in float64; the model is float64 unless the problem is large.
    """
    left, right = left.double(), right.double()
    mean = left.mean(0)
    centred = left - mean
    v_f, v_t = span(right), span(centred)
    large = offset.numel() * v_f.shape[1] >= LARGE
    dtype = torch.float32 if precision == "float32" or (precision == "auto" and large) else torch.float64
    offset = (offset - offset.mean(-1, keepdim=True)).to(dtype)
    probs = offset.softmax(-1)
    v_f = v_f @ feature_rotation((right @ v_f).to(dtype), probs)
    v_t = v_t @ class_rotation((centred @ v_t).to(dtype), probs)
    outside = mean - v_t @ (v_t.T @ mean)
    norm = outside.norm()
    unit = outside / norm if norm > 1e-10 * left.norm() else torch.zeros_like(outside)
    model = ReducedModel((right @ v_f).to(dtype), (centred @ v_t).to(dtype), offset, labels, 1.0, scale_sd)
    return model, v_f.to(dtype), torch.cat((v_t, unit[:, None]), 1).to(dtype)
