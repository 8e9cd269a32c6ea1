"""K-FAC: natural gradient descent with a Kronecker-factored Fisher matrix; RING and RENG are its step with one change.

Paper (Martens & Grosse 2015, arXiv 1503.05671), for a layer s = W x̄ with gradient matrix G, e = ∂(−log p)/∂s:

    F ≈ Λ ⊗ Γ,   Λ = E[x̄ x̄ᵀ],   Γ = E[e eᵀ]         fisher.py: `FisherEstimator.estimate`
    running averages of Λ and Γ                       curvature.py: `Curvature.averaged`
    Λ̃, Γ̃: damped by λ, Λ̃⁻¹, Γ̃⁻¹                      curvature.py: `damped`, `Curvature.inverted` (Newton: inverse.py)
    δ = Γ̃⁻¹ G Λ̃⁻¹                                     curvature.py: `LayerCurvature.direction`

It writes A for Λ and G for Γ. Λ, Γ and Newton's iteration for the inverse are arXiv 2601.18420's. Ba, Grosse & Martens
2017 (distributed K-FAC) add the trust region:

    ν = min(1, √(κ / Σ lr² ⟨δ, g⟩))                   `KFAC._trust`

⟨δ, g⟩ ≈ δᵀ F δ, so lr² ⟨δ, g⟩ is twice the Kullback-Leibler divergence that the step is predicted to cause; the step is
shortened until that is at most κ = `kl_clip`. It is the safeguard against a curvature that is out of date.

Ours: momentum and decoupled weight decay in the step,

    v ← m v + ν δ                                     `KFAC._move`
    θ ← θ − lr (v + weight_decay θ)

the unit of λ (`Strength`), and when the curvature is refreshed: every `update_interval` steps, and at steps 0, 1, 2, 4,
8, … of the first interval, for a few-shot fit is over before a slower start would have seen the data once.

The likelihood is categorical: the loss ℓ is the mean cross-entropy of the logits, g = ∇ℓ, and F is per image, so that
λ has the scale of the mean loss's curvature.

Cost: forward, backward and p q (p + q) flop a layer each step (for a bilinear model with C < p classes,
C q² + 2 p q C); at a refresh also the backward passes of `fisher` and the inverses (curvature.py). Memory: 2 (p² + q²)
floats a layer, three times that within a refresh. For low-rank factors of a wide layer this is what dominates: rank 4 on
a width of 768 has 6,144 parameters and 1.2 million entries in Λ and Γ.

Where several processes share a batch (parallel/shards.py) loss, gradient and estimate are reduced to those of the whole
batch before anything is made of them or refused; every process inverts all factors.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.base import (
    BatchOptimizer,
    StepInfo,
    check_classes,
    check_finite,
    check_finite_everywhere,
    trainable_parameters,
)
from clipkal.optim.model.layers import capture, find_layers
from clipkal.optim.natural_gradient.curvature import ByParameter, Curvature, Solver
from clipkal.optim.natural_gradient.fisher import Fisher, FisherEstimate, FisherEstimator
from clipkal.optim.parallel.shards import Group, Shards, broadcast
from clipkal.settings import Count, Fraction, NonNegative, Positive, checked

Units = Literal["relative", "absolute"]


class Strength:
    """How strong a regularisation is at step k: value · unit · min(1, k / warmup).

    No value of λ or ρ carries over between models: λ has the units of the curvature, ρ of its inverse, and a logit
    scale alone moves both by orders of magnitude. So (ours) a value is a pure number by default.

    Attributes:
        unit: 1 if "absolute"; if "relative", what the optimiser measures when it first needs it, None until then.
    """

    def __init__(self, value: float, units: Units, warmup: int = 0):
        self.value, self.warmup = value, warmup
        self.unit: float | None = 1.0 if units == "absolute" else None

    def in_units(self, step: int) -> float:
        """The strength in its unit; zero means that step k is not regularised."""
        return self.value * (min(1.0, step / self.warmup) if self.warmup else 1.0)

    def at(self, step: int, measure: Callable[[], float]) -> float:
        """The strength at step k; `measure` gives the unit if it is still unknown."""
        if self.in_units(step) == 0:
            return 0.0
        if self.unit is None:
            self.unit = measure()
        return self.in_units(step) * self.unit


@dataclass(frozen=True)
class BatchGradient:
    """One batch at the current parameters.

    Attributes:
        loss: ℓ.
        squared_norm: ‖∇ℓ‖².
        objective: the gradient to precondition.
        rank: the largest rank that the Fisher matrix of the batch can have, B (C − 1).
        fisher: the estimate from the batch; empty between refreshes.
    """

    loss: float
    squared_norm: float
    objective: ByParameter
    rank: int
    fisher: FisherEstimate


class KFAC(BatchOptimizer):
    """Natural gradient with F ≈ Λ ⊗ Γ per layer and a fixed damping.

    Args:
        model: any module that maps inputs to logits [B, C]; frozen parameters are left alone.
        lr: step along the natural gradient; 1 is a Gauss-Newton step, which the trust region shortens.
        damping: λ > 0.
        momentum: m in [0, 1).
        weight_decay: decoupled, as in AdamW.
        kl_clip: κ, the largest predicted squared step in the Fisher metric; None for no trust region.
        fisher: "true" | "ggn" | "empirical", see fisher.py.
        ema: weight of the past in the running factors, once 1 / (1 − ema) refreshes are over.
        update_interval: steps between refreshes of the factors and their inverses.
        solver: "cholesky" | "newton" | "eigen", see curvature.py.
        newton_steps: Newton steps at a refresh once ‖I − A X‖ ≤ ½; fewer once it is at newton_tolerance.
        newton_tolerance: of ‖I − A X‖.
        units: "relative" measures `damping` in the mean nonzero eigenvalue of F at the first step,
            tr F / min(n, B (C − 1)); "absolute" takes it as it stands in the equations.
        seed: of the labels sampled for the Fisher matrix; the generator's state is part of the state dict.
        group: the processes that share each batch where `torch.distributed` is initialised; None: all. They
            start from the first one's parameters, and need the same seed.

    Raises ValueError for a setting out of its range, or a model without trainable parameters.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 1.0,
        damping: Positive = 0.1,
        momentum: Fraction = 0.0,
        weight_decay: NonNegative = 0.0,
        kl_clip: Positive | None = 0.03,
        fisher: Fisher = "true",
        ema: Fraction = 0.95,
        update_interval: Count = 10,
        solver: Solver = "cholesky",
        newton_steps: Count = 3,
        newton_tolerance: Positive = 1e-3,
        units: Units = "relative",
        seed: int = 0,
        group: Group | None = None,
    ):
        super().__init__(model, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.damping, self.kl_clip, self.ema = Strength(damping, units), kl_clip, ema
        self.strengths = {"unit": self.damping}  # by the name of its unit in the state dict
        self.update_interval, self.group = update_interval, group
        self.solver, self.newton_steps, self.newton_tolerance = solver, newton_steps, newton_tolerance
        broadcast(trainable_parameters(model).values(), group)
        self.steps, self.curvature = 0, Curvature()
        self.layers = find_layers(model)
        self._names = {p: n.replace("_orig_mod.", "") for n, p in trainable_parameters(model).items()}
        self.fisher = FisherEstimator(model, self.layers, self._names, fisher, seed)

    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        check_finite_everywhere(inputs, "inputs", self.group)
        before = self.extra_state()
        try:
            return self._step(inputs, targets)
        except FloatingPointError:
            self.load_extra_state(before)
            raise

    def _step(self, inputs: Tensor, targets: Tensor) -> StepInfo:
        refresh = self._refresh_is_due()
        found = self._evaluate(inputs, targets, refresh)
        metrics = {"gradient_norm": found.squared_norm**0.5}
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            if refresh:
                self.curvature = self.curvature.averaged(*found.fisher, ema=self.ema)
            if refresh or self.solver == "eigen":
                self.curvature = replace(self.curvature, damping=self._damping(found))
            if refresh:
                settings = self.solver, self.newton_steps, self.newton_tolerance
                self.curvature, more = self.curvature.inverted(*settings)
                metrics |= more
            direction = self.curvature.precondition(found.objective, self.layers, self._names)
            scale = self._trust(direction, found.objective)
            self._move(direction, scale)
        self.steps += 1
        metrics |= {"damping": self.curvature.damping, "step_scale": scale}
        return StepInfo(found.loss, metrics=metrics)

    def _refresh_is_due(self) -> bool:
        k = self.steps
        return k % self.update_interval == 0 or (k < self.update_interval and k & (k - 1) == 0)

    def _damping(self, found: BatchGradient) -> float:
        """λ from this step on."""
        return self.damping.at(self.steps, lambda: max(self.curvature.mean_eigenvalue(found.rank), 1e-30))

    # -- one batch

    def _evaluate(self, inputs: Tensor, targets: Tensor, refresh: bool) -> BatchGradient:
        shards = Shards.of(len(inputs), inputs.device, self.group)
        with (
            torch.enable_grad(),
            self._forward_context(),
            capture(self.model, self.layers if refresh else []) as seen,
        ):
            logits = self.model(inputs)
            check_classes(logits)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide, targets)
        value = shards.mean(loss.detach())
        check_finite(value, "loss")
        fisher = FisherEstimate({}, {})
        if refresh:
            fisher = self.fisher.estimate(inputs, targets, logits, seen, shards)
        gradient, objective = self._gradients(loss, shards)
        for parameter, g in objective.items():
            check_finite(g, f"gradient of {self._names[parameter]}")
        rank = len(shards) * max(logits.shape[-1] - 1, 1)
        return BatchGradient(float(value), squared_norm(gradient.values()), objective, rank, fisher)

    def _forward_context(self) -> AbstractContextManager[None]:
        """What the forward pass runs in."""
        return nullcontext()

    def _gradients(self, loss: Tensor, shards: Shards) -> tuple[ByParameter, ByParameter]:
        """∇ℓ of the whole batch from this process's loss, and the gradient to precondition: here the same."""
        gradient = shards.means(differentiate(loss, list(self._names)))
        return gradient, gradient

    # -- the step

    def _trust(self, direction: ByParameter, gradient: ByParameter) -> float:
        """ν, and the check that the whole direction is finite."""
        squares = [
            group["lr"] ** 2
            * direction[p].flatten().dot(gradient[p].to(direction[p].dtype).flatten()).double()
            for group in self.param_groups
            for p in group["params"]
            if p in direction
        ]
        predicted = float(torch.stack(squares).sum()) if squares else 0.0
        if not predicted < float("inf"):
            raise FloatingPointError("the natural gradient is not finite; the step was refused")
        if self.kl_clip is None or predicted <= self.kl_clip:
            return 1.0
        return (self.kl_clip / predicted) ** 0.5

    def _move(self, direction: ByParameter, scale: float) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p not in direction:
                    continue
                v = direction[p].to(p.dtype) * scale
                if group["momentum"]:
                    v = torch.add(v, self.state[p].get("momentum", 0), alpha=group["momentum"])
                    self.state[p]["momentum"] = v
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(v, alpha=-group["lr"])

    # -- state

    def describe(self) -> dict[str, str]:
        held = {p for layer in self.layers for p in layer.parameters}
        kinds = {"hooks" if layer.modules else "bilinear": None for layer in self.layers}
        kinds |= {} if held >= self._names.keys() else {"diagonal": None}
        return {
            **super().describe(),
            "curvature": " and ".join(kinds),
            "fisher": self.fisher.fisher,
            "solver": self.solver,
        }

    def extra_state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "generator": self.fisher.generator.get_state(),
            "curvature": self.curvature.state(),
            **{name: strength.unit for name, strength in self.strengths.items()},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.fisher.generator.set_state(state["generator"].cpu())
        devices = {name: p.device for p, name in self._names.items()}
        self.curvature = Curvature.from_state(state["curvature"], devices)
        for name, strength in self.strengths.items():
            strength.unit = state[name]


def differentiate(loss: Tensor, parameters: list[nn.Parameter], create_graph: bool = False) -> ByParameter:
    """∇ℓ for the parameters the loss depends on; the others are left out, and with that are not moved."""
    with torch.autocast(loss.device.type, enabled=False):
        grads = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    return {p: g for p, g in zip(parameters, grads, strict=True) if g is not None}


def squared_norm(tensors: Iterable[Tensor]) -> float:
    """Σ ‖t‖² over all tensors, in float32 or wider."""
    norms = torch._foreach_norm([t if t.dtype == torch.float64 else t.float() for t in tensors])
    return float(torch.stack(norms).square().sum()) if norms else 0.0
