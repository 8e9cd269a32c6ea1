"""Exact posterior draws without a factor of the covariance: Matheron's rule, also called perturb-and-MAP.

    x₀ ~ N(0, I),  ε ~ N(0, I) [N, C],   δ = (I + ΦᵀMΦ)⁻¹ (x₀ + Φᵀ M^{½} ε)

has covariance H⁻¹(I + ΦᵀMΦ)H⁻¹ = H⁻¹, so x* + δ is a draw. (Wilson et al. 2020, arXiv 2002.09309, in function space; here in
reduced coordinates.) The temperature T of a cold posterior p(y, W)^{1/T} scales the Laplace covariance and leaves the mode: x* +
√T δ.

A draw must also say what W does where the data are silent. x₀ is therefore read off a prior draw R₀ [q, t + 1] of *all* right
coordinates, and only the part in the span is exchanged: R = V_F X* + √T (R₀ + V_F (δ − V_Fᵀ R₀)). An image outside the span
keeps the variance p₀‖f_⊥‖² left leftᵀ. The extra column is the one left direction the class-centred span misses: the shift
common to all classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.full_kalman.likelihood import Sites
from clipkal.optim.full_kalman.newton import Mode
from clipkal.optim.full_kalman.reduced import ReducedModel
from clipkal.optim.full_kalman.solve import Direct, conjugate_gradients
from clipkal.optim.linalg import normal


@dataclass(frozen=True)
class FunctionDraws:
    """S functions: right coordinates R [S, q, t + 1], scales κ [S], and A⁺ = √p₀ left [V_T, u] [C, t + 1]."""

    coordinates: Tensor
    scales: Tensor
    classes: Tensor

    def logits(self, offset: Tensor, right: Tensor, entries: int = 2**25) -> Tensor:
        """Logits [S, B, C] of zero-weight logits [B, C] and features [B, q]; S·q·C·(t + B) multiply-adds, chunked over draws."""
        out = right.new_empty(len(self.scales), *offset.shape)
        chunk = max(1, entries // max(1, right.shape[1] * self.classes.shape[0]))
        for start in range(0, len(out), chunk):
            part = slice(start, start + chunk)
            torch.matmul(right, self.coordinates[part] @ self.classes.T, out=out[part])
        return out.addcmul_(self.scales[:, None, None], offset)


def perturb(
    model: ReducedModel,
    sites: Sites,
    samples: int,
    generator: torch.Generator | None,
    prior: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x₀ [S, D] and the right-hand side x₀ + Φᵀ M^{½} ε [S, D]; `prior` gives the entries of X in x₀."""
    if prior is None:
        white = normal((samples, model.size), model.offset, generator)
    else:
        rest = normal((samples, model.size - prior.shape[1]), model.offset, generator)
        white = torch.cat((prior, rest), -1)
    noise = sites.root(normal((samples, *model.offset.shape), model.offset, generator))
    return white, white + model.adjoint(noise)


def draw_posterior(
    model: ReducedModel,
    mode: Mode,
    basis: Tensor,
    factor: Direct | None,
    samples: int,
    temperature: float,
    generator: torch.Generator | None,
    tolerance: float,
    entries: int = 2**25,
) -> tuple[Tensor, Tensor]:
    """Coordinates R [S, q, t + 1] and scales κ [S]; chunked so that about `entries` numbers of [S, N, C] exist at a time."""
    (q, _), t = basis.shape, model.classes.shape[1]
    chunk = max(1, entries // max(1, model.offset.numel() + model.size))
    spread, (centre, _) = math.sqrt(temperature), model.split(mode.x)
    coordinates, scales = [], []
    for start in range(0, samples, chunk):
        count = min(chunk, samples - start)
        prior = normal((count, q, t + 1), model.offset, generator)
        inside = (basis.T @ prior[..., :t]).flatten(-2)
        white, rhs = perturb(model, mode.sites, count, generator, inside)
        delta = solve(model, mode.sites, factor, rhs, tolerance)
        change, _ = model.split(delta - white)
        prior.mul_(spread)
        prior[..., :t] += basis @ (centre + spread * change)
        coordinates.append(prior)
        scale = mode.x[-1] + spread * delta[:, -1] if model.scale_sd > 0 else delta.new_zeros(count)
        scales.append(model.scale_mean + model.scale_sd * scale)
    return torch.cat(coordinates), torch.cat(scales)


def solve(model: ReducedModel, sites: Sites, factor: Direct | None, rhs: Tensor, tolerance: float) -> Tensor:
    """(I + ΦᵀMΦ)⁻¹ rhs for rhs [S, D]."""
    if not model.size:
        return rhs
    if factor is not None:
        return factor.solve(rhs)
    diagonal = model.precision_diagonal(sites)
    return conjugate_gradients(lambda v: model.precision(sites, v), rhs, diagonal, tolerance)[0]
