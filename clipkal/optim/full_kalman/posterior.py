"""What the filter knows about W once it has seen the data: the Laplace posterior at the MAP, in samples and covariances.

Samples need no factor of the covariance. Matheron's rule, or perturb-and-MAP (Wilson et al. 2020, arXiv 2002.09309, in
function space; here in reduced coordinates), `perturb`:

    x₀ ~ N(0, I),  ε ~ N(0, I) [N, C],   δ = H⁻¹ (x₀ + Φᵀ M^{½} ε),   H = I + ΦᵀMΦ

has covariance H⁻¹(I + ΦᵀMΦ)H⁻¹ = H⁻¹, so x* + δ is a sample. Of many images and classes M^{½} ε is replaced by the labels that
the model itself would give (ours; the idea is that of the Fisher matrix by sampled labels):

    ỹ_i ~ π_i,   e_ỹ − π_i   has mean 0 and covariance diag(π_i) − π_i π_iᵀ = M_i,

one number an image instead of C. The covariance is the same to the letter; the sum over the images is Gaussian by the central
limit theorem. Samples come in mirrored pairs x* ± δ (antithetic variates, Hammersley & Morton 1956): a solve for two samples,
and their mean is x* itself. The temperature T of a cold posterior p(y, W)^{1/T} scales the
Laplace covariance and leaves the mode: x* + √T δ.

Ours: a sample must also say what W does where the data are silent. x₀ is therefore read off a prior sample R₀ [q, t + 1] of
*all* right coordinates, and only the part in the span is exchanged (`LaplacePosterior._coordinates`):

    R = V_F X* + √T (R₀ + V_F (δ − V_Fᵀ R₀))

An image outside the span keeps the variance p₀‖f_⊥‖² left leftᵀ. The extra column is the one left direction that the
class-centred span misses: the shift common to all classes.

Classes that nothing was learnt from are other left factors of the same W (`OtherClasses`, ours):

    left′ W right = left′ V_T (V_Tᵀ W) right + (left′ − left′ V_T V_Tᵀ) W right

The first part the shots have informed. In the second W keeps its prior N(0, p₀ I), independent of the first, so V_T is only
continued by an orthonormal basis of what the new classes see beyond it. No problem is solved again, and W is never formed.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from clipkal.optim.full_kalman.mode import PosteriorMode, hessian_factor, solve
from clipkal.optim.full_kalman.problem import ReducedModel, Sites, span
from clipkal.optim.linalg import normal, uniform

# Left factors whose part outside the learnt directions is below this share of their norm lie inside them.
NEGLIGIBLE = 1e-6
# About as many numbers exist at a time in a computation that is chunked over samples.
ENTRIES = 2**25
# From this many numbers N·C a sample on, the likelihood's noise is that of sampled labels.
MANY = 2**20
# Residual of conjugate gradients for samples, float64 and float32: the second leaves the variance of a logit some 3 % too
# small, a quarter of the Monte-Carlo error of a hundred samples.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-2}


@dataclass(frozen=True)
class FunctionSamples:
    """S functions from image features to logits.

    Attributes:
        weights: Rᵀ A⁺ᵀ [S, q, C], of coordinates R [S, q, t + 1] and classes A⁺ = √p₀ left [V_T, u] [C, t + 1].
    """

    weights: Tensor

    @classmethod
    def of(cls, coordinates: Tensor, classes: Tensor) -> "FunctionSamples":
        """From R and A⁺, in float32; S·q·C·t multiply-adds."""
        return cls(coordinates.float() @ classes.float().T)

    def logits(self, offset: Tensor, right: Tensor) -> Tensor:
        """Logits [S, B, C] of zero-weight logits [B, C] and features [B, q]; S·B·q·C multiply-adds."""
        return torch.matmul(right, self.weights).add_(offset)


def perturb(
    model: ReducedModel,
    sites: Sites,
    samples: int,
    generator: torch.Generator | None,
    white: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x₀ ~ N(0, I) [S, D], which `white` may give, and the right-hand side x₀ + Φᵀ n [S, D], n of mean 0 and covariance M."""
    if white is None:
        white = normal((samples, model.size), model.offset, generator)
    if model.offset.numel() < MANY:
        noise = sites.root(normal((samples, *model.offset.shape), model.offset, generator))
        return white, white + model.adjoint(noise)
    seen = torch.stack([model.features.T @ model.scaled[labels] for labels in _labels(sites, samples, generator)])
    return white, white + (seen.flatten(-2) - model.adjoint(sites.probs))


def _labels(sites: Sites, samples: int, generator: torch.Generator | None) -> Tensor:
    """ỹ [S, N]: for every image a class from π_i, by the inverse of its distribution function."""
    below = sites.probs.cumsum(-1)
    chances = uniform((len(below), samples), below, generator) * below[:, -1:]
    return torch.searchsorted(below, chances, right=True).clamp_(max=below.shape[1] - 1).T


def mirrored(deviations: Tensor, samples: int) -> Tensor:
    """The first S of δ₁, −δ₁, δ₂, −δ₂, … for δ [⌈S/2⌉, …]."""
    return torch.stack((deviations, -deviations), 1).flatten(0, 1)[:samples]


@dataclass
class LaplacePosterior:
    """The solved problem, and how to read it.

    Attributes:
        model: the reduced model at its hyper-parameters.
        mode: its MAP.
        right_basis: V_F [q, r].
        left_basis: [V_T, u] [p, t + 1].
        left: left factors [C, p] of the classes that are read.
        temperature: T.
        direct: solve by a Cholesky factor, made at first use and kept.
    """

    model: ReducedModel
    mode: PosteriorMode
    right_basis: Tensor
    left_basis: Tensor
    left: Tensor
    temperature: float
    direct: bool
    _factor: Tensor | None = None

    def classes(self) -> Tensor:
        """A⁺ = √p₀ left [V_T, u] [C, t + 1]."""
        return self.model.amplitude * (self.left.to(self.left_basis) @ self.left_basis)

    def factor(self) -> Tensor | None:
        """The Cholesky factor [D, D] of H, None where systems are solved by conjugate gradients."""
        if self._factor is None and self.direct:
            self._factor = hessian_factor(self.model, self.mode.sites)
        return self._factor

    def sample_functions(
        self, samples: int, generator: torch.Generator | None, tolerance: float | None = None
    ) -> FunctionSamples:
        """Functions from the posterior, in float32; tolerance: of the CG residual."""
        tolerance = tolerance or TOLERANCE[self.model.offset.dtype]
        return FunctionSamples.of(self._coordinates(samples, generator, tolerance), self.classes())

    def sample_weights(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """W [S, p, q]: the reduced coordinates, and the prior in every left direction the classes do not span."""
        coordinates = self._coordinates(samples, generator, 1e-8)
        p, q = self.left_basis.shape[0], self.right_basis.shape[0]
        prior = normal((samples, p, q), coordinates, generator) * self.temperature**0.5
        basis = self.left_basis
        prior = prior - basis @ (basis.T @ prior) + basis @ coordinates.transpose(1, 2)
        return self.model.amplitude * prior

    def _coordinates(self, samples: int, generator: torch.Generator | None, tolerance: float) -> Tensor:
        """R [S, q, t + 1]: V_F X* ± half as many deviations."""
        t, half = self.model.classes.shape[1], -(-samples // 2)
        chunk = max(1, ENTRIES // max(1, self.model.offset.numel() + self.model.size))
        counts = [min(chunk, half - start) for start in range(0, half, chunk)]
        deviations = torch.cat([self._deviations(count, generator, tolerance) for count in counts])
        out = mirrored(deviations.mul_(math.sqrt(self.temperature)), samples)
        out[..., :t] += self.right_basis @ self.model.matrix(self.mode.x)
        return out

    def _deviations(self, count: int, generator: torch.Generator | None, tolerance: float) -> Tensor:
        """R₀ + V_F (δ − V_Fᵀ R₀) [count, q, t + 1]."""
        model, basis = self.model, self.right_basis
        t = model.classes.shape[1]
        prior = normal((count, basis.shape[0], t + 1), model.offset, generator)
        inside = (basis.T @ prior[..., :t]).flatten(-2)
        white, rhs = perturb(model, self.mode.sites, count, generator, inside)
        delta, _ = solve(model, self.mode.sites, rhs, self.factor(), tolerance)
        prior[..., :t] += basis @ model.matrix(delta - white)
        return prior

    def logit_covariance(self, right: Tensor) -> Tensor:
        """Covariance [B, C, C] of the logits of sampled functions at features right [B, q], in closed form.

        T (Φ_f H⁻¹ Φ_fᵀ + p₀‖f_⊥‖² left V_T (left V_T)ᵀ + p₀‖f‖² left u (left u)ᵀ),   f_⊥ outside V_F.
        """
        right = right.to(self.model.offset)
        plus, t = self.classes().to(right), self.model.classes.shape[1]
        inside = right @ self.right_basis
        jacobian = torch.einsum("ba,ct->bcat", inside, plus[:, :t]).flatten(-2)
        tolerance = 1e-12 if right.dtype == torch.float64 else 1e-5
        solved, _ = solve(self.model, self.mode.sites, jacobian.flatten(0, 1), self.factor(), tolerance)
        total = right.square().sum(-1)
        outside = (total - inside.square().sum(-1)).clamp(min=0.0)
        covariance = jacobian @ solved.view_as(jacobian).transpose(1, 2)
        covariance += outside[:, None, None] * (plus[:, :t] @ plus[:, :t].T)
        covariance += total[:, None, None] * (plus[:, t:] @ plus[:, t:].T)
        return 0.5 * self.temperature * (covariance + covariance.transpose(1, 2))

    def state(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        mode = {**vars(self.mode), "sites": dict(vars(self.mode.sites))}
        plain = ("right_basis", "left_basis", "left", "temperature", "direct")
        return {
            "model": {f.name: getattr(self.model, f.name) for f in fields(self.model)},
            "mode": mode,
            **{name: getattr(self, name) for name in plain},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "LaplacePosterior":
        """Of `state()`, or of one that clipkal 0.1 wrote, unless the logit scale was part of that (ValueError)."""
        model = dict(state["model"])
        if model.pop("scale_sd", 0.0) != 0.0 or model.pop("scale_mean", 1.0) != 1.0:
            raise ValueError(
                "this state was written by clipkal 0.1 with scale='evidence', which is no more: fit the shots again"
            )
        mode = PosteriorMode(**{**state["mode"], "sites": Sites(**state["mode"]["sites"])})
        rest = {key: value for key, value in state.items() if key not in ("model", "mode", "exact")}
        rest.setdefault("direct", state.get("exact"))
        return cls(ReducedModel(**model), mode, **rest)


@dataclass
class OtherClasses:
    """A posterior over the logits of C′ other classes.

    Sampled functions have, for a generator in the same state, the same W as those over the learnt classes.

    Attributes:
        wide: the posterior with their left factors and the continued basis.
    """

    wide: LaplacePosterior

    @classmethod
    def of(cls, learnt: LaplacePosterior, left: Tensor) -> "OtherClasses":
        """The same posterior for left [C′, p], at the reference scale."""
        basis = learnt.left_basis.double()
        beyond = left.double() - (left.double() @ basis) @ basis.T
        if beyond.norm() > NEGLIGIBLE * left.double().norm():
            basis = torch.cat((basis, span(beyond)), 1)
        return cls(replace(learnt, left=left, left_basis=basis.to(learnt.left_basis)))

    @property
    def left(self) -> Tensor:
        """Left factors [C′, p]."""
        return self.wide.left

    def sample_functions(
        self, samples: int, generator: torch.Generator | None, tolerance: float | None = None
    ) -> FunctionSamples:
        """Functions from the posterior, in float32; S·q more numbers for each direction beyond the learnt ones."""
        wide = self.wide
        learnt = wide._coordinates(samples, generator, tolerance or TOLERANCE[wide.model.offset.dtype])
        beyond = wide.left_basis.shape[1] - learnt.shape[2]
        more = normal((-(-samples // 2), learnt.shape[1], beyond), learnt, generator)
        more = mirrored(more.mul_(wide.temperature**0.5), samples)
        return FunctionSamples.of(torch.cat((learnt, more), -1), wide.classes())

    def logit_covariance(self, right: Tensor) -> Tensor:
        """Covariance [B, C′, C′] of the logits of sampled functions at features right [B, q]."""
        return self.wide.logit_covariance(right)
