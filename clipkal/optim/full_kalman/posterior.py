"""The solved problem: what the filter knows about W once it has seen the data, and how to read it."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from clipkal.optim.full_kalman.likelihood import Sites
from clipkal.optim.full_kalman.newton import Mode
from clipkal.optim.full_kalman.reduced import ReducedModel
from clipkal.optim.full_kalman.sampling import FunctionDraws, draw_posterior, solve
from clipkal.optim.full_kalman.solve import Direct
from clipkal.optim.linalg import normal


@dataclass
class Posterior:
    """The reduced model at its hyper-parameters, its mode, the bases V_F [q, r] and [V_T, u] [p, t + 1], left [C, p],
    temperature T.

    exact: solve by a Cholesky factor, made at first use and kept.
    """

    model: ReducedModel
    mode: Mode
    right_basis: Tensor
    left_basis: Tensor
    left: Tensor
    temperature: float
    exact: bool
    _factor: Direct | None = None

    @property
    def kappa(self) -> float:
        return self.model.scale(self.mode.x)

    def weight(self) -> Tensor:
        """The W [p, q] for which κ (z⁰ + left W right) are the MAP logits, up to a shift common to all classes."""
        matrix, _ = self.model.split(self.mode.x)
        basis = self.left_basis[:, : matrix.shape[1]]
        return (self.model.amplitude / self.kappa) * basis @ matrix.T @ self.right_basis.T

    def classes(self) -> Tensor:
        """A⁺ = √p₀ left [V_T, u] [C, t + 1]."""
        return self.model.amplitude * (self.left.to(self.left_basis) @ self.left_basis)

    def factor(self) -> Direct | None:
        if self._factor is None and self.exact:
            self._factor = Direct.at(self.model, self.mode.sites)
        return self._factor

    def draw(
        self, samples: int, generator: torch.Generator | None, tolerance: float | None = None
    ) -> FunctionDraws:
        """Functions from the posterior, in float32."""
        tolerance = tolerance or (1e-8 if self.model.offset.dtype == torch.float64 else 1e-2)
        coordinates, scales = draw_posterior(
            self.model, self.mode, self.right_basis, self.factor(), samples, self.temperature, generator, tolerance
        )  # fmt: skip
        return FunctionDraws(coordinates.float(), scales.float(), self.classes().float())

    def sample(self, samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """W [S, p, q] and κ [S]: the reduced coordinates, and the prior in every left direction the classes do not span."""
        coordinates, scales = draw_posterior(
            self.model, self.mode, self.right_basis, self.factor(), samples, self.temperature, generator, 1e-8
        )  # fmt: skip
        p, q = self.left_basis.shape[0], self.right_basis.shape[0]
        prior = normal((samples, p, q), coordinates, generator) * self.temperature**0.5
        basis = self.left_basis
        prior = prior - basis @ (basis.T @ prior) + basis @ coordinates.transpose(1, 2)
        return self.model.amplitude * prior, scales

    def logit_covariance(self, offset: Tensor, right: Tensor) -> Tensor:
        """T (Φ_f H⁻¹ Φ_fᵀ + p₀‖f_⊥‖² left V_T (left V_T)ᵀ + p₀‖f‖² left u (left u)ᵀ) [B, C, C], f_⊥ outside V_F."""
        offset, right = offset.to(self.model.offset), right.to(self.model.offset)
        plus, t = self.classes().to(self.model.offset), self.model.classes.shape[1]
        inside = right @ self.right_basis
        jacobian = torch.einsum("ba,ct->bcat", inside, plus[:, :t]).flatten(-2)
        if self.model.scale_sd > 0:
            jacobian = torch.cat((jacobian, self.model.scale_sd * offset[..., None]), -1)
        tolerance = 1e-12 if offset.dtype == torch.float64 else 1e-5
        flat = jacobian.flatten(0, 1)
        solved = solve(self.model, self.mode.sites, self.factor(), flat, tolerance).view_as(jacobian)
        total = right.square().sum(-1)
        outside = (total - inside.square().sum(-1)).clamp(min=0.0)
        covariance = jacobian @ solved.transpose(1, 2)
        covariance += outside[:, None, None] * (plus[:, :t] @ plus[:, :t].T)
        covariance += total[:, None, None] * (plus[:, t:] @ plus[:, t:].T)
        return 0.5 * self.temperature * (covariance + covariance.transpose(1, 2))

    def state(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        mode = {**vars(self.mode), "sites": dict(vars(self.mode.sites))}
        plain = ("right_basis", "left_basis", "left", "temperature", "exact")
        return {
            "model": {f.name: getattr(self.model, f.name) for f in fields(self.model)},
            "mode": mode,
            **{name: getattr(self, name) for name in plain},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Posterior":
        mode = Mode(**{**state["mode"], "sites": Sites(**state["mode"]["sites"])})
        rest = {key: value for key, value in state.items() if key not in ("model", "mode")}
        return cls(ReducedModel(**state["model"]), mode, **rest)
