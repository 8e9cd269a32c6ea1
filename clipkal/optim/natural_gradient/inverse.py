"""The inverse of a damped Kronecker factor by Newton's iteration: warm-started, and products only.

    R ← I − A X
    X ← X (2I − A X) = X + X R

(Newton; Schulz 1933; Ben-Israel 1965.) The residual squares at each step, so the iteration converges if and only if the
spectral radius of I − A X₀ is below 1:

    I − A X_{k+1} = (I − A X_k)²

‖I − A X‖_F < 1 proves it on the way; a residual that grows ends the attempt, and the next start is tried.

Paper: arXiv 2601.18420 uses "Newton's iteration to avoid direct FIM inversion". Ours: warm starts (a factor that is an
exponential moving average moves little, so a few steps from the last inverse restore it), how many steps, and three
starts, the cheapest that is safe for symmetric positive definite A and X:

* warm: the last inverse X, if the spectral radius of I − A X, by ten power iterations, is below 0.9;
* rescaled: 1.5 X / (1 + 1.2 radius), if not. The eigenvalues of A X are positive and at most 1 + radius, so those of
  I − A X fall into about [−0.5, 1): a factor that only gained mass is reached in log₂(1 + radius) more steps, not in
  log₂ cond(A);
* cold: I / ‖A‖_∞.

What float32 cannot resolve (condition numbers past 1e5 or so) is done again in float64, with products still.

Cost: two n³ products (4n³ flop) a step, batched over factors of equal size. Memory: three n² a factor.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class NewtonInverse:
    """What an inversion gave.

    Attributes:
        inverse: [..., n, n].
        residual: the largest ‖I − A X‖_F of the batch; after the last allowed step it is not measured again but
            bounded by the square of the one before (exact arithmetic).
        steps: how many were taken (by the float64 retry alone, where there was one).
        start: "warm", "rescaled" or "cold", the furthest any matrix of the batch had to go back.
        float64: whether it took the retry.
    """

    inverse: Tensor
    residual: float
    steps: int
    start: str
    float64: bool = False


def newton_inverse(
    A: Tensor,
    X: Tensor | None = None,
    steps: int = 3,
    tolerance: float = 1e-4,
    max_steps: int = 60,
) -> NewtonInverse:
    """Inverse of symmetric positive definite A [..., n, n], from an approximate inverse X of the same shape if given.

    Iterates until ‖I − A X‖_F ≤ tolerance for every matrix of the batch, but no more than `steps` steps once
    that norm is at most ½ (three steps then leave at most 0.004).

    Raises FloatingPointError if not even float64 gets there in `max_steps`.
    """
    with torch.no_grad(), torch.autocast(A.device.type, enabled=False):
        iterate = partial(_iterate, A, steps, tolerance, max_steps)
        start = None if X is None else _warm_start(A, X)
        found = None if start is None else iterate(*start)
        if found is None:
            cold = _eye_like(A) / A.abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
            found = iterate(cold, A @ cold, "cold")
        if found is None and A.dtype != torch.float64:
            retry = newton_inverse(A.double(), None, steps, tolerance, 2 * max_steps)
            return replace(retry, inverse=retry.inverse.to(A.dtype), float64=True)
    if found is None:
        raise FloatingPointError(
            "Newton's iteration found no inverse (singular or not finite): raise the damping"
        )
    return found


def _warm_start(A: Tensor, X: Tensor) -> tuple[Tensor, Tensor, str] | None:
    """X, A X and what it is called: rescaled where it is too far off; None if no safe start leads from it."""
    AX = A @ X
    if not bool(torch.isfinite(AX).all()):
        return None
    radius = _spectral_radius(_eye_like(A) - AX)
    outside = radius >= 0.9
    if not bool(outside.any()):
        return X, AX, "warm"
    scale = torch.where(outside, 1.5 / (1 + 1.2 * radius), torch.ones_like(radius))
    return scale * X, scale * AX, "rescaled"


def _spectral_radius(R: Tensor, iterations: int = 10) -> Tensor:
    """Power iteration [..., 1, 1], from below: 2n² flop an iteration, nothing beside a step of Newton's."""
    n = R.shape[-1]
    v = torch.cos(torch.arange(n, dtype=R.dtype, device=R.device))[:, None].expand(*R.shape[:-1], 1)
    for _ in range(iterations):
        v = R @ (v / _norm(v).clamp_min(torch.finfo(R.dtype).tiny))
    return _norm(v)


def _iterate(
    A: Tensor, steps: int, tolerance: float, max_steps: int, X: Tensor, AX: Tensor, start: str
) -> NewtonInverse | None:
    """Newton's iteration from X, each matrix until it is done; None if a residual grows or stays at 1."""
    n = A.shape[-1]
    eye = torch.eye(n, dtype=A.dtype, device=A.device)
    As, Xs = A.reshape(-1, n, n), X.reshape(-1, n, n).clone()
    product, active = AX.reshape(-1, n, n), list(range(len(Xs)))
    last, left = [float("inf")] * len(Xs), [steps] * len(Xs)
    for taken in range(max_steps):
        R = eye - product
        for i, residual in zip(active, _norm(R).flatten().tolist(), strict=True):
            if not residual < max(1.0, 1.5 * last[i]) or (left[i] < steps and residual >= 1):
                return None  # outside the region of convergence, or rounding threw it out, or not finite
            last[i] = residual
        going = [j for j, i in enumerate(active) if last[i] > tolerance]
        active, R = [active[j] for j in going], R[going]
        if active:
            step = Xs[active] + Xs[active] @ R
            Xs[active] = (step + step.mT) / 2
        for i in active:
            left[i] -= last[i] <= 0.5
            last[i] = last[i] ** 2 if left[i] == 0 else last[i]
        active = [i for i in active if left[i] > 0]
        if not active:
            return NewtonInverse(Xs.view_as(A), max(last), taken + bool(going), start)
        product = As[active] @ Xs[active]
    return None


def _eye_like(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)


def _norm(A: Tensor) -> Tensor:
    """Frobenius norms [..., 1, 1]: an upper bound on the spectral norm that costs n²."""
    return torch.linalg.matrix_norm(A, keepdim=True)
