"""The Laplace evidence, and its log-determinant without a matrix.

    log p(y) ≈ Ψ(x*) − ½ log det H,   H = I + ΦᵀMΦ with M at the mode        `laplace_evidence`

(GPML eq. 3.44 in reduced coordinates.) Small problems use the Cholesky factor. Otherwise, with P the diagonal of H and
P^{-½} H P^{-½} = I + E,

    log det H = Σ log P + tr log(I + E) = Σ log P + mean over ε = ±1 of εᵀ (log(I + E) − c E) ε.        `log_determinant`

The trace is estimated by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) on few *fixed* probes, so the evidence is
a smooth function of the hyper-parameters. P has the exact diagonal, so tr E = 0 and any multiple of εᵀEε may be subtracted
from a probe. Ours: c is the regression of log(1 + λ) on λ under the spectral measure, which removes most of the noise
(preconditioned quadrature is Wenger et al. 2022, arXiv 2107.00243).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from clipkal.optim.full_kalman.mode import PosteriorMode, hessian_factor
from clipkal.optim.full_kalman.problem import ReducedModel, Sites


def log_determinant(model: ReducedModel, sites: Sites, probes: Tensor, steps: int = 10) -> float:
    """log det H by preconditioned stochastic Lanczos quadrature; probes [S, D] of ±1; `steps` products of S vectors."""
    if not model.size:
        return 0.0
    diagonal = model.hessian_diagonal(sites)
    scale = diagonal.rsqrt()

    def product(v: Tensor) -> Tensor:
        return scale * model.hessian(sites, scale * v)

    nodes, weights = lanczos_quadrature(product, probes, min(steps, model.size))
    logs, excess = nodes.log(), nodes - 1.0
    slope = (weights * logs * excess).sum() / (weights * excess.square()).sum().clamp(min=1e-30)
    values = (weights * (logs - slope * excess)).sum(-1) * model.size
    return float(diagonal.double().log().sum() + values.mean())


def lanczos_quadrature(
    product: Callable[[Tensor], Tensor], starts: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of the spectral measure of A at each start vector [S, D]: nodes and weights [S, ≤ steps], weights sum to 1.

    Plain Lanczos: for log, lost orthogonality only repeats converged nodes. Stops early once every measure is resolved.
    """
    v = starts / starts.norm(dim=-1, keepdim=True)
    previous, beta = torch.zeros_like(v), starts.new_zeros(len(starts), 1)
    alphas, betas = [], []
    tiny = torch.finfo(v.dtype).eps
    for _ in range(steps):
        w = product(v).addcmul_(beta, previous, value=-1.0)
        alpha = (w * v).sum(-1, keepdim=True)
        w.addcmul_(alpha, v, value=-1.0)
        beta = w.norm(dim=-1, keepdim=True)
        alphas.append(alpha[:, 0].double())
        betas.append(beta[:, 0].double())
        alive = beta > 10 * tiny * alpha.abs()
        if not bool(alive.any()):
            break
        previous, v = v, torch.where(alive, w / beta.clamp(min=tiny), torch.zeros_like(w))
        beta = torch.where(alive, beta, torch.zeros_like(beta))
        betas[-1] = beta[:, 0].double()
    tridiagonal = torch.diag_embed(torch.stack(alphas, -1))
    off = torch.stack(betas[:-1], -1) if len(betas) > 1 else None
    if off is not None:
        tridiagonal = tridiagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    # A measure that ended early leaves zero rows: their nodes carry zero weight, and 1 keeps the logarithm finite.
    weights = vectors[:, 0, :].square()
    return torch.where(weights > 0, nodes, torch.ones_like(nodes)).clamp(min=1e-6), weights


def rademacher(samples: int, size: int, seed: int, like: Tensor) -> Tensor:
    """Fixed probes [samples, size] of ±1."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (samples, size), generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(like)


def laplace_evidence(model: ReducedModel, mode: PosteriorMode, probes: Tensor | None) -> float:
    """Total log evidence in nats; the log-determinant from a Cholesky factor where probes is None."""
    if probes is not None:
        return mode.log_joint - 0.5 * log_determinant(model, mode.sites, probes)
    if not model.size:
        return mode.log_joint
    return mode.log_joint - float(hessian_factor(model, mode.sites).diagonal().double().log().sum())
