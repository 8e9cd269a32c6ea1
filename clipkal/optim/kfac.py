"""K-FAC: natural gradient with Kronecker-factored curvature, and the step RING and RENG share with it.

    δ = F̃⁻¹ g                               damped Kronecker factors, `optim/curvature.py`
    ν = min(1, √(κ / Σ lr² ⟨δ, g⟩))          trust region
    v ← m v + ν δ                            momentum
    θ ← θ − lr (v + weight_decay θ)

Source: Martens & Grosse 2015, arXiv 1503.05671; the layer-wise form F ≈ Λ ⊗ Γ and "Newton's iteration to
avoid direct FIM inversion" are arXiv 2601.18420's (read in summaries only: no algorithm box or setting of
that paper was at hand, so damping, averaging, refresh schedule and trust region are our choices). Trust
region: ⟨δ, g⟩ ≈ δᵀ F δ, so lr² ⟨δ, g⟩ is twice the Kullback-Leibler divergence the step is predicted to
cause; the step is shortened until that is at most κ = `kl_clip` (Ba, Grosse & Martens 2017, distributed
K-FAC). It is the safeguard against a curvature that is out of date.

The likelihood is categorical: loss = mean cross-entropy of the logits, and F is per image, so that
`damping` has the scale of the mean loss's curvature. The curvature is refreshed every `update_interval`
steps, and at steps 0, 1, 2, 4, 8, … of the first interval: a few-shot fit is over before a slower start
would have seen the data once.

Cost: forward, backward and p q (p + q) flop a layer each step (for a bilinear model with C < p classes,
C q² + 2 p q C); at a refresh also the backward passes of `fisher` and 4 (p³ + q³) flop a Newton step. Memory:
2 (p² + q²) floats a layer, three times that within a refresh. For low-rank factors of a wide layer this is
what dominates: rank 4 on a width of 768 has 6,144 parameters and 1.2 million entries in Λ and Γ.

Where several processes share a batch (distributed.py) loss, gradient and statistics are reduced to those of
the whole batch before anything is made of them or refused; every process solves with all factors.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.base import (
    BatchOptimizer,
    StepInfo,
    check_finite,
    check_finite_everywhere,
    trainable_parameters,
)
from clipkal.optim.checks import check_classes
from clipkal.optim.curvature import Curvature, Solver, Values
from clipkal.optim.deal import Deal
from clipkal.optim.distributed import Group, broadcast
from clipkal.optim.fisher_statistics import FisherStatistics, Statistics
from clipkal.optim.grad_norm import Units, squared_norm
from clipkal.optim.kronecker_factors import Fisher
from clipkal.optim.layers import capture, find_layers


@dataclass(frozen=True)
class Evaluation:
    """One batch at the current parameters.

    squared_norm: ‖∇ℓ‖².
    objective: the gradient to precondition.
    rank: the largest rank the Fisher matrix of the batch can have, B (C − 1).
    statistics: of the batch; empty between refreshes.
    """

    loss: float
    squared_norm: float
    objective: Values
    rank: int
    statistics: Statistics


class KFAC(BatchOptimizer):
    """Natural gradient with F ≈ Λ ⊗ Γ per layer and a fixed damping.

    Args:
        model: any module that maps inputs to logits [B, C]; frozen parameters are left alone.
        lr: step along the natural gradient; 1 is a Gauss-Newton step, which the trust region shortens.
        damping: λ > 0.
        momentum: m in [0, 1).
        weight_decay: decoupled, as in AdamW.
        kl_clip: κ, the largest predicted squared step in the Fisher metric; None for no trust region.
        fisher: "true" | "ggn" | "empirical", see `optim/kronecker_factors.py`.
        ema: weight of the past in the running factors, once 1 / (1 − ema) refreshes are over.
        update_interval: steps between refreshes of the factors and their inverses.
        solver: "cholesky" | "newton" | "eigen", see `optim/curvature.py`.
        newton_steps: Newton steps at a refresh once ‖I − A X‖ ≤ ½; fewer once it is at newton_tolerance.
        units: "relative" measures `damping` in the mean nonzero eigenvalue of F at the first step,
            tr F / min(n, B (C − 1)), so that one value does for models and logit scales far apart (our
            choice); "absolute" takes it as it stands in the equations.
        seed: of the labels drawn for the Fisher matrix; the generator's state is part of the state dict.
        group: the processes that share each batch where `torch.distributed` is initialised; None: all. They
            start from the first one's parameters, and need the same seed.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        damping: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        kl_clip: float | None = 0.03,
        fisher: Fisher = "true",
        ema: float = 0.95,
        update_interval: int = 10,
        solver: Solver = "cholesky",
        newton_steps: int = 3,
        newton_tolerance: float = 1e-3,
        units: Units = "relative",
        seed: int = 0,
        group: Group | None = None,
    ):
        _check(0 <= lr < math.inf, f"lr must be at least 0, not {lr}")
        _check(0 < damping < math.inf, f"damping must be positive, not {damping}")
        _check(0 <= momentum < 1, f"momentum must be in [0, 1), not {momentum}")
        _check(0 <= weight_decay < math.inf, f"weight_decay must be at least 0, not {weight_decay}")
        _check(kl_clip is None or kl_clip > 0, f"kl_clip must be positive or None, not {kl_clip}")
        _check(fisher in get_args(Fisher), f"fisher must be one of {get_args(Fisher)}, not {fisher!r}")
        _check(0 <= ema < 1, f"ema must be in [0, 1), not {ema}")
        _check(update_interval >= 1, f"update_interval must be at least 1, not {update_interval}")
        _check(solver in get_args(Solver), f"solver must be one of {get_args(Solver)}, not {solver!r}")
        _check(units in get_args(Units), f"units must be one of {get_args(Units)}, not {units!r}")
        _check(newton_steps >= 1, f"newton_steps must be at least 1, not {newton_steps}")
        super().__init__(model, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.damping, self.kl_clip, self.ema, self.group = damping, kl_clip, ema, group
        broadcast(trainable_parameters(model).values(), group)
        self.update_interval, self.solver = update_interval, solver
        self.newton_steps, self.newton_tolerance = newton_steps, newton_tolerance
        self.unit = None if units == "relative" else 1.0
        self.steps, self.curvature = 0, Curvature()
        self.layers = find_layers(model)
        self._names = {p: n.replace("_orig_mod.", "") for n, p in trainable_parameters(model).items()}
        self.fisher = FisherStatistics(model, self.layers, self._names, fisher, seed)

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
                self.curvature = self.curvature.observed(*found.statistics, ema=self.ema)
            if refresh or self.solver == "eigen":
                self.curvature = replace(self.curvature, damping=self._damping(found))
            if refresh:
                metrics |= self._solve()
            direction = self.curvature.precondition(found.objective, self.layers, self._names)
            scale = self._trust(direction, found.objective)
            self._move(direction, scale)
        self.steps += 1
        return StepInfo(
            found.loss, metrics=metrics | {"damping": self.curvature.damping, "step_scale": scale}
        )

    def _refresh_is_due(self) -> bool:
        k = self.steps
        return k % self.update_interval == 0 or (k < self.update_interval and k & (k - 1) == 0)

    def _damping(self, found: Evaluation) -> float:
        """λ from this step on."""
        return self.damping * self._unit(found)

    def _unit(self, found: Evaluation) -> float:
        """What `damping` is measured in; fixed at the first step."""
        if self.unit is None:
            self.unit = max(self.curvature.mean_eigenvalue(found.rank), 1e-30)
        return self.unit

    def _solve(self) -> dict[str, float]:
        """Makes the running factors ready to be solved with; returns what is worth logging."""
        if self.solver == "eigen":
            self.curvature = self.curvature.decomposed()
            return {}
        if self.solver == "cholesky":
            self.curvature = self.curvature.factorised()
            return {}
        self.curvature, residual = self.curvature.inverted(self.newton_steps, self.newton_tolerance)
        return {"newton_residual": residual}

    # -- one batch

    def _evaluate(self, inputs: Tensor, targets: Tensor, refresh: bool) -> Evaluation:
        deal = Deal.of(len(inputs), inputs.device, self.group)
        with (
            torch.enable_grad(),
            self._forward_guard(),
            capture(self.model, self.layers if refresh else []) as seen,
        ):
            logits, loss, value = self._loss(inputs, targets, deal)
        statistics = Statistics({}, {})
        if refresh:
            statistics = self.fisher.of(inputs, targets, logits, seen, deal)
        gradient, objective = self._gradients(loss, deal, lambda: self._loss(inputs, targets, deal)[1])
        for parameter, g in objective.items():
            check_finite(g, f"gradient of {self._names[parameter]}")
        rank = len(deal) * max(logits.shape[-1] - 1, 1)
        return Evaluation(value, squared_norm(gradient.values()), objective, rank, statistics)

    def _loss(self, inputs: Tensor, targets: Tensor, deal: Deal) -> tuple[Tensor, Tensor, float]:
        """This process's logits and mean cross-entropy, in float32 or wider; and that of the whole batch."""
        logits = self.model(inputs)
        check_classes(logits)
        loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)
        value = deal.mean(loss.detach())
        check_finite(value, "loss")
        return logits, loss, float(value)

    def _forward_guard(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _gradients(self, loss: Tensor, deal: Deal, again: Callable[[], Tensor]) -> tuple[Values, Values]:
        """∇ℓ of the whole batch, and the gradient to precondition: here the same.

        loss: this process's own; `again` evaluates it once more.
        """
        gradient = deal.means(differentiate(loss, list(self._names)))
        return gradient, gradient

    # -- the step

    def _trust(self, direction: Values, gradient: Values) -> float:
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

    def _move(self, direction: Values, scale: float) -> None:
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
            "unit": self.unit,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.unit = state["steps"], state["unit"]
        self.fisher.generator.set_state(state["generator"].cpu())
        devices = {name: p.device for p, name in self._names.items()}
        self.curvature = Curvature.from_state(state["curvature"], devices)


def differentiate(loss: Tensor, parameters: list[nn.Parameter], create_graph: bool = False) -> Values:
    """∇ℓ for the parameters the loss depends on; the others are left out, and with that are not moved."""
    with torch.autocast(loss.device.type, enabled=False):
        grads = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    return {p: g for p, g in zip(parameters, grads, strict=True) if g is not None}


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
