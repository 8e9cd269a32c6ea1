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

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from clipkal.optim.kalman.covariance.blocks import BlockUpdate, Pairs, diagonal_form, too_wide, weighted_gram
from clipkal.optim.kalman.covariance.categorical import solve_categorical
from clipkal.optim.kalman.innovation import Innovation, Weigher, innovate
from clipkal.optim.linalg import log_det, normal, unit_cholesky
from clipkal.optim.model.bilinear import BilinearJacobian
from clipkal.optim.model.measurement import CategoricalMeasurement, Measurement


def solve_block(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: Measurement,
    weigher: Weigher,
    iterations: int = 1,
) -> BlockUpdate:
    """Solves one block for variance [p, q] and extra_variance [e]; changes nothing.

    iterations: see categorical.py; one image with more classes than p is linearised once.
    """
    b, m = measurement.residual.shape
    C, p = jacobian.left.shape
    plain = type(measurement) is CategoricalMeasurement
    if b == 1 and plain and p + len(extra_variance) < C and not weigher.adaptive:
        return _solve_dual(jacobian, variance, extra_variance, measurement, weigher)
    solve: Callable[..., BlockUpdate | None] = _solve_logits if 2 * m >= C else _solve_outputs
    if isinstance(measurement, CategoricalMeasurement):
        solve = partial(solve_categorical, iterations=iterations)
    update = solve(jacobian, variance, extra_variance, measurement, weigher)
    if update is None:
        update = solve(jacobian.double(), variance.double(), extra_variance.double(), measurement, weigher)
    assert update is not None
    return update


def _solve_logits(
    jacobian: BilinearJacobian,
    variance: Tensor,
    extra_variance: Tensor,
    measurement: Measurement,
    weigher: Weigher,
) -> BlockUpdate | None:
    """By way of K [pairs, C, C]; None if it needs float64."""
    F, m = jacobian.right, measurement.residual.shape[1]
    pairs = Pairs(len(F), F.device)
    i, j = pairs.first, pairs.second
    products = F[i] * F[j]
    K = weighted_gram(jacobian, products @ variance.mT)
    if too_wide(K):
        return None
    K = K.double()
    z = jacobian.extra.double() if len(extra_variance) else None
    if z is not None:
        K = K + (z[i] * extra_variance.double()) @ z[j].mT
    blocks = measurement.pull(measurement.pull(K, i).mT, j).mT
    innovation = innovate(pairs.assemble(blocks).view(len(F), m, len(F), m), measurement, weigher)
    assert innovation.matrix is not None
    N = measurement.push(
        measurement.push(pairs.blocks(innovation.matrix.reshape(len(F) * m, -1)), i).mT, j
    ).mT
    score = measurement.push(innovation.vector[..., None])[..., 0]
    none = score.new_zeros(0)
    return BlockUpdate(
        direction=score.to(F.dtype) @ jacobian.left,
        curvature=diagonal_form(jacobian, N.to(F.dtype)),
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
    F, G, m = jacobian.right, measurement.pull(jacobian.left), measurement.residual.shape[1]
    pairs = Pairs(len(F), F.device)
    i, j = pairs.first, pairs.second
    products = F[i] * F[j]
    U = products @ variance.mT
    if len(F) > 1 and too_wide(U * G.abs().amax().square().to(U.dtype)):
        return None
    blocks = (G[i] * U[:, None, :].double()) @ G[j].mT
    g = measurement.pull(jacobian.extra) if len(extra_variance) else None
    if g is not None:
        blocks = blocks + (g[i] * extra_variance.double()) @ g[j].mT
    innovation = innovate(pairs.assemble(blocks).view(len(F), m, len(F), m), measurement, weigher)
    assert innovation.matrix is not None
    M = pairs.blocks(innovation.matrix.reshape(len(F) * m, -1))
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
    noise = normal((n, *std.shape), std, generator).mul_(std) @ jacobian.left.to(std.dtype).mT
    if len(extra_variance):
        common = normal((n, len(extra_variance)), std, generator) * extra_variance.to(std.dtype).sqrt()
        noise = noise + torch.einsum("bce,ne->nbc", jacobian.extra.to(std.dtype), common)
    return noise
