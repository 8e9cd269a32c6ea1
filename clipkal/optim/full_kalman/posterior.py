"""What the filter knows about W once it has seen the data: the Laplace posterior at the MAP, in samples and covariances.

Samples need no factor of the covariance. Matheron's rule, or perturb-and-MAP (Wilson et al. 2020, arXiv 2002.09309, in
function space; here in reduced coordinates), `perturb`:

    x₀ ~ N(0, I),  ε ~ N(0, I) [N, C],   δ = H⁻¹ (x₀ + Φᵀ M^{½} ε),   H = I + ΦᵀMΦ

has covariance H⁻¹(I + ΦᵀMΦ)H⁻¹ = H⁻¹, so x* + δ is a sample. The temperature T of a cold posterior p(y, W)^{1/T} scales the
Laplace covariance and leaves the mode: x* + √T δ. Samples come in mirrored pairs x* ± √T δ (antithetic variates, Hammersley
& Morton 1956): their mean is the mode itself, and each solve serves two.

Where a product with Φ is dear (from `DEAR` multiply-adds on, some 100 classes of 16 shots), a solve a pair would cost many times
the fit. There the coordinates are drawn independently, without a solve, since the bases of problem.py are those in which H is
nearly diagonal (George et al. 2018, arXiv 1806.03884):

    δ_j = x₀_j / √h_j,   h = diag H

1/h_j is the variance of a coordinate given all others, which is too small: of the logits of all classes together 0.6 of the
variance is left (300 classes), but most of what is missing is that of classes out of the question. On 196 classes of cars, 4
and 16 shots, at unit temperature, NLL is within 0.001 nats of exact samples', mutual information within 10 %, its ranks to 0.94 and
0.97; on synthetic features without a spectrum the mutual information is 0.7 of the exact, and at T = 1 there the mean
probabilities are clearly over-confident. To give a tolerance asks for exact samples at any size.

Ours: a sample must also say what W does where the data are silent. x₀ is therefore read off a prior sample R₀ [q, t + 1] of
*all* right coordinates, and only the part in the span is exchanged (`LaplacePosterior.coordinates`):

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

from clipkal.optim.draws import normal
from clipkal.optim.full_kalman.mode import PosteriorMode, hessian_factor, solve
from clipkal.optim.full_kalman.problem import ReducedModel, Sites, span

# Left factors whose part outside the learnt directions is below this share of their norm lie inside them.
NEGLIGIBLE = 1e-6
# About as many numbers exist at a time in a computation that is chunked over samples.
ENTRIES = 2**25
# From this many multiply-adds a product, N·C·r, on, coordinates are drawn independently unless a tolerance is asked for.
DEAR = 2**26
# Residual of conjugate gradients for samples. The variance of a logit is then some 1 % too small in float32.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2}


@dataclass(frozen=True)
class FunctionSamples:
    """S functions from image features to logits.

    Attributes:
        weights: Rᵀ A⁺ᵀ [q, S, C], of coordinates R [S, q, t + 1] and classes A⁺ = √p₀ left [V_T, u] [C, t + 1]: one matrix
            product serves all functions.
    """

    weights: Tensor

    @classmethod
    def of(cls, coordinates: Tensor, classes: Tensor) -> "FunctionSamples":
        """From R and A⁺, in float32; S·q·C·t multiply-adds."""
        return cls(coordinates.float().transpose(0, 1) @ classes.float().T)

    def logits(self, offset: Tensor, right: Tensor) -> Tensor:
        """Logits [S, B, C] of zero-weight logits [B, C] and features [B, q]; S·B·q·C multiply-adds."""
        out = (right @ self.weights.flatten(1)).unflatten(1, self.weights.shape[1:])
        return out.add_(offset[:, None]).transpose(0, 1)


def perturb(
    model: ReducedModel,
    sites: Sites,
    samples: int,
    generator: torch.Generator | None,
    white: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x₀ [S, D], which `white` may give, and the right-hand side x₀ + Φᵀ M^{½} ε [S, D]."""
    if white is None:
        white = normal((samples, model.size), model.offset, generator)
    noise = sites.root(normal((samples, *model.offset.shape), model.offset, generator))
    return white, white + model.adjoint(noise)


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
    _roots: Tensor | None = None

    def classes(self) -> Tensor:
        """A⁺ = √p₀ left [V_T, u] [C, t + 1]."""
        return self.model.amplitude * (self.left.to(self.left_basis) @ self.left_basis)

    def factor(self) -> Tensor | None:
        """The Cholesky factor [D, D] of H, None where systems are solved by conjugate gradients."""
        if self._factor is None and self.direct:
            self._factor = hessian_factor(self.model, self.mode.sites)
        return self._factor

    def sample_functions(
        self, samples: int, generator: torch.Generator | None, tolerance: float | None
    ) -> FunctionSamples:
        """Functions from the posterior, in float32; tolerance: of the CG residual."""
        return FunctionSamples.of(self.coordinates(samples, generator, tolerance), self.classes())

    def sample_weights(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """W [S, p, q]: the reduced coordinates, and the prior in every left direction the classes do not span."""
        coordinates = self.coordinates(samples, generator, 1e-8)
        p, q = self.left_basis.shape[0], self.right_basis.shape[0]
        prior = normal((samples, p, q), coordinates, generator) * self.temperature**0.5
        basis = self.left_basis
        prior = prior - basis @ (basis.T @ prior) + basis @ coordinates.transpose(1, 2)
        return self.model.amplitude * prior

    def coordinates(self, samples: int, generator: torch.Generator | None, tolerance: float | None) -> Tensor:
        """R [S, q, t + 1], in mirrored pairs."""
        t, half = self.model.classes.shape[1], -(-samples // 2)
        most = max(1, ENTRIES // max(1, self.model.offset.numel() + self.model.size))
        counts = [min(most, half - start) for start in range(0, half, most)]
        deviations = torch.cat([self._deviations(count, generator, tolerance) for count in counts])
        out = mirrored(deviations.mul_(math.sqrt(self.temperature)), samples)
        out[..., :t] += self.right_basis @ self.model.matrix(self.mode.x)
        return out

    def _deviations(self, count: int, generator: torch.Generator | None, tolerance: float | None) -> Tensor:
        """R₀ + V_F (δ − V_Fᵀ R₀) [count, q, t + 1]."""
        model, basis = self.model, self.right_basis
        t = model.classes.shape[1]
        prior = normal((count, basis.shape[0], t + 1), model.offset, generator)
        white = (basis.T @ prior[..., :t]).flatten(-2)
        if tolerance is None and not self.direct and model.offset.numel() * basis.shape[1] >= DEAR:
            delta = white * self._deviation()
        else:
            tolerance = tolerance or TOLERANCE[model.offset.dtype]
            _, rhs = perturb(model, self.mode.sites, count, generator, white)
            delta, _ = solve(model, self.mode.sites, rhs, self.factor(), tolerance)
        prior[..., :t] += basis @ model.matrix(delta - white)
        return prior

    def _deviation(self) -> Tensor:
        """1/√h [D], kept."""
        if self._roots is None:
            self._roots = self.model.hessian_diagonal(self.mode.sites).rsqrt()
        return self._roots

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
        self, samples: int, generator: torch.Generator | None, tolerance: float | None
    ) -> FunctionSamples:
        """Functions from the posterior, in float32; S·q more numbers for each direction beyond the learnt ones."""
        wide = self.wide
        learnt = wide.coordinates(samples, generator, tolerance)
        beyond = wide.left_basis.shape[1] - learnt.shape[2]
        more = normal((-(-samples // 2), learnt.shape[1], beyond), learnt, generator)
        more = mirrored(more.mul_(wide.temperature**0.5), samples)
        return FunctionSamples.of(torch.cat((learnt, more), -1), wide.classes())

    def logit_covariance(self, right: Tensor) -> Tensor:
        """Covariance [B, C′, C′] of the logits of sampled functions at features right [B, q]."""
        return self.wide.logit_covariance(right)
