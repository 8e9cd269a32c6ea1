"""One joint Kalman update of a bilinear model whose covariance is diagonal (in some basis); H̃ is never formed.

With variances P[a, b] of the matrix, J_i = left ⊗ f_i and H̃_i = Q_iᵀ J_i, for the pairs i ≤ j of a block:
    u_ij[a]  = Σ_b P[a, b] f_i[b] f_j[b]                  one GEMM, P times the products f_i ∘ f_j
    K_ij     = left diag(u_ij) leftᵀ = J_i P J_jᵀ         logit space, C²p a pair
    B_ij     = Q_iᵀ K_ij Q_j                              O(C²): what innovation.py solves, in float64
    d_i      = leftᵀ Q_i a_i                              K e   = P ∘ Σ_i d_i f_iᵀ
    v_ij     = diag(leftᵀ Q_i M_ij Q_jᵀ left)             diag(KH) = P ∘ Σ_ij v_ij (f_i ∘ f_j)ᵀ, a GEMM again
So b images cost 2 b (b + 1) p q flop in two GEMMs and a handful of passes over P, where one image at a time
takes that handful for each. For few classes K and v are GEMMs too, with all C² products of two rows of
`left`. Few outputs (m < C/2: scalar observations) use G_i = Q_iᵀ left [m, p] instead of K. Where C exceeds
p, one image is solved in p dimensions. Parameters outside the matrix (a logit scale) are further columns of
J.

Precision: float32 state is multiplied in float32 and solved in float64; above WIDE everything is float64,
since the rounding of K, some 1e-7 ‖K‖, is to be small against the unit noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.covariance.base import draw_normal
from clipkal.optim.innovation import Innovation, Weigher, innovate
from clipkal.optim.jacobian import FEW_CLASSES, BilinearJacobian
from clipkal.optim.linalg import log_det, pair_indices, unit_cholesky
from clipkal.optim.measurement import EVERY, CategoricalMeasurement, Measurement

WIDE = 1e3


@dataclass
class BlockUpdate:
    """What the kernel found, in the dtype of the state or float64 (see Precision).

    direction [b, p]: d_i. curvature [pairs, p]: v_ij, counted twice for i < j. products [pairs, q]: f_i ∘ f_j.
    extra_direction, extra_curvature [e]: Σ_i d_i and Σ_ij v_ij of the parameters outside the matrix.
    """

    direction: Tensor
    curvature: Tensor
    products: Tensor
    extra_direction: Tensor
    extra_curvature: Tensor
    innovation: Innovation


def solve_block(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: Measurement,
    weigher: Weigher,
) -> BlockUpdate:
    """Solves one block for variance [p, q] and extra_variance [e]; changes nothing."""
    b, m = measurement.residual.shape
    C, p = jacobian.left.shape
    plain = type(measurement) is CategoricalMeasurement
    if b == 1 and plain and p + len(extra_variance) < C and not weigher.adaptive:
        return _solve_dual(jacobian, variance, extra_variance, measurement, weigher)
    solve = _solve_logits if 2 * m >= C else _solve_outputs
    update = solve(jacobian, variance, extra_variance, measurement, weigher)
    if update is None:
        update = solve(jacobian.double(), variance.double(), extra_variance.double(), measurement, weigher)
    assert update is not None
    return update


def _too_wide(blocks: Tensor) -> bool:
    """Whether float32 will not do; FloatingPointError if the blocks are not finite."""
    largest = float(blocks.abs().amax())
    if not math.isfinite(largest) and blocks.dtype == torch.float64:
        raise FloatingPointError("the innovation covariance is not finite; step refused")
    return blocks.dtype != torch.float64 and not largest <= WIDE


def _solve_logits(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: Measurement,
    weigher: Weigher,
) -> BlockUpdate | None:
    """By way of K [pairs, C, C]; None if it needs float64."""
    F = jacobian.right
    i, j, count = _pairs(F)
    products = F[i] * F[j]
    K = _weighted_gram(jacobian, products @ variance.mT)
    if _too_wide(K):
        return None
    K = K.double()
    z = jacobian.extra.double() if len(extra_variance) else None
    if z is not None:
        K = K + (z[i] * extra_variance.double()) @ z[j].mT
    blocks = measurement.pull(measurement.pull(K, i).mT, j).mT
    innovation = innovate(_assemble(blocks, i, j), measurement, weigher)
    N = measurement.push(measurement.push(_blocks(innovation, i, j, count), i).mT, j).mT
    score = measurement.push(innovation.vector[..., None])[..., 0]
    none = score.new_zeros(0)
    return BlockUpdate(
        direction=score.to(F.dtype) @ jacobian.left,
        curvature=_diagonal_form(jacobian, N.to(F.dtype)),
        products=products,
        extra_direction=none if z is None else (score[..., None] * z).sum((0, 1)),
        extra_curvature=none if z is None else ((N @ z[j]) * z[i]).sum((0, 1)),
        innovation=innovation,
    )


def _solve_outputs(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: Measurement,
    weigher: Weigher,
) -> BlockUpdate | None:
    """By way of G_i = Q_iᵀ left [m, p]; None if it needs float64."""
    F, G = jacobian.right, measurement.pull(jacobian.left)
    i, j, count = _pairs(F)
    products = F[i] * F[j]
    U = products @ variance.mT
    if len(F) > 1 and _too_wide(U * (G.abs().amax() ** 2).to(U.dtype)):
        return None
    blocks = (G[i] * U[:, None, :].double()) @ G[j].mT
    g = measurement.pull(jacobian.extra) if len(extra_variance) else None
    if g is not None:
        blocks = blocks + (g[i] * extra_variance.double()) @ g[j].mT
    innovation = innovate(_assemble(blocks, i, j), measurement, weigher)
    M = _blocks(innovation, i, j, count)
    vector = innovation.vector[:, None, :]
    none = G.new_zeros(0)
    return BlockUpdate(
        direction=(vector @ G)[:, 0],
        curvature=((M @ G[j]) * G[i]).sum(1),
        products=products,
        extra_direction=none if g is None else (vector @ g).sum((0, 1)),
        extra_curvature=none if g is None else ((M @ g[j]) * g[i]).sum((0, 1)),
        innovation=innovation,
    )


def _pairs(F: Tensor) -> tuple[Tensor | slice, Tensor | slice, Tensor | None]:
    """Pairs i ≤ j of the images of F and their counts in a symmetric sum; slices where there is but one image."""
    return (EVERY, EVERY, None) if len(F) == 1 else pair_indices(len(F), F.device)


def _assemble(blocks: Tensor, i: Tensor | slice, j: Tensor | slice) -> Tensor:
    """[b, m, b, m] from its blocks [pairs, m, m]."""
    if isinstance(i, slice):
        return blocks[:, :, None, :]
    b, m = int(i[-1]) + 1, blocks.shape[-1]
    gram = blocks.new_empty(b, b, m, m)
    gram[i, j] = blocks
    gram[j, i] = blocks.mT
    return gram.permute(0, 2, 1, 3)


def _blocks(innovation: Innovation, i: Tensor | slice, j: Tensor | slice, count: Tensor | None) -> Tensor:
    """The blocks M_ij [pairs, m, m] of D S⁻¹ D, times their counts."""
    assert innovation.matrix is not None
    if count is None:
        return innovation.matrix[:, :, 0, :]
    return innovation.matrix.permute(0, 2, 1, 3)[i, j] * count[:, None, None]


def _weighted_gram(jacobian: BilinearJacobian, U: Tensor) -> Tensor:
    """left diag(u) leftᵀ [k, C, C] for every row u of U [k, p]."""
    left = jacobian.left
    C = len(left)
    if C > FEW_CLASSES or len(U) == 1:
        return (left * U[:, None, :]) @ left.mT
    return (U @ jacobian.left_products().mT).view(-1, C, C)


def _diagonal_form(jacobian: BilinearJacobian, N: Tensor) -> Tensor:
    """diag(leftᵀ N left) [k, p] for every N of [k, C, C]."""
    left = jacobian.left
    if len(left) > FEW_CLASSES or len(N) == 1:
        return ((N @ left) * left).sum(1)
    return N.flatten(1) @ jacobian.left_products()


def _solve_dual(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: Measurement,
    weigher: Weigher,
) -> BlockUpdate:
    """One image with C > p in k = p + e dimensions: C k² + k³ flop and more, float64.

    With H = [left, z], W = Q Qᵀ, A = Hᵀ W H, g = Hᵀ Q r, u the variances and Z = √u A √u, by the
        push-through identity Hᵀ Q S⁻¹ r = (I + w A U)⁻¹ g = g − w A √u (I + w Z)⁻¹ √u g diag(Hᵀ Q S⁻¹ Qᵀ H)
        = diag(A) − w colsum((L⁻¹ √u A)²),   L Lᵀ = I + w Z.
    """
    products = jacobian.right.square()
    u = torch.cat([(products @ variance.mT)[0].double(), extra_variance.double()])
    H = torch.cat([jacobian.left.double(), jacobian.extra[0].double()], dim=-1)
    r, pi = measurement.residual[0], measurement.columns[0].square()
    mean = pi @ H
    A = (H.mT * pi) @ H - mean[:, None] * mean
    g, root = measurement.score()[0] @ H, u.sqrt()
    Z = root[:, None] * A * root

    def gain(w: Tensor, factor: Tensor) -> Tensor:
        inner = torch.cholesky_solve((root * g)[:, None], factor)[:, 0]
        return g - w * (A @ (root * inner))

    w = torch.full_like(r[:1], weigher.power)
    squared, mahalanobis = r.dot(r), None
    if weigher.gate.active:
        mahalanobis = (squared - g.dot(u * gain(torch.ones_like(w), unit_cholesky(Z))))[None].clamp(min=0)
        w = weigher.weights(mahalanobis, squared[None], measurement.dof)
    factor = unit_cholesky(w * Z)
    direction = w * gain(w, factor)
    explained = g.dot(u * direction) * w  # rᵀD(I − S⁻¹)Dr
    tall = torch.linalg.solve_triangular(factor, root[:, None] * A, upper=False)
    curvature = w * (A.diagonal() - w * tall.square().sum(0)).clamp(min=0)
    if mahalanobis is None:
        mahalanobis = (w * squared - explained).clamp(min=0)
    innovation = Innovation(
        vector=direction[None],
        matrix=None,
        log_evidence=(w * measurement.log_likelihood + (explained - log_det(factor)) / 2)[0],
        mahalanobis=mahalanobis / measurement.dof,
        weights=w,
    )
    p = jacobian.left.shape[1]
    return BlockUpdate(
        direction[None, :p], curvature[None, :p], products, direction[p:], curvature[p:], innovation
    )


def logit_covariance(jacobian: BilinearJacobian, variance: Tensor, extra_variance: Tensor) -> Tensor:
    """J P Jᵀ of each image [b, C, C], float64: left diag(u) leftᵀ with u = P f²."""
    u = (jacobian.right.square() @ variance.mT).double()
    left, columns = jacobian.left.double(), jacobian.extra.double()
    return (left * u[:, None, :]) @ left.mT + (columns * extra_variance.double()) @ columns.mT


def logit_noise(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    n: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Draws [n, b, C] of J δ, δ ~ N(0, P): left (√u ε) + column √p ε', with u = P f².

    Local reparameterisation (Kingma et al. 2015), exact for each image: n·b·p draws and n·b·p·C flop,
    instead of n draws of θ and n·b·p·q.
    """
    std = (jacobian.right.square() @ variance.mT).sqrt()
    noise = draw_normal((n, *std.shape), std, generator).mul_(std) @ jacobian.left.to(std.dtype).mT
    if len(extra_variance):
        common = draw_normal((n, len(extra_variance)), std, generator) * extra_variance.to(std.dtype).sqrt()
        noise = noise + torch.einsum("bce,ne->nbc", jacobian.extra.to(std.dtype), common)
    return noise
