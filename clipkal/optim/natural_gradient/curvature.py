"""Running Kronecker factors of every layer, their damped inverses, and the natural direction δ that they give.

For a layer with gradient matrix G [p, q]:

    "cholesky", "newton":    δ = Γ̃⁻¹ G Λ̃⁻¹          Λ̃ = Λ + π √λ I          Γ̃ = Γ + (√λ / π) I
                             π² = (tr Λ / q) / (tr Γ / p)
    "eigen":                 δ = V [(Vᵀ G U) / (v uᵀ + λ)] Uᵀ          Λ = U diag(u) Uᵀ          Γ = V diag(v) Vᵀ
    in no layer:             δ = g / (h + λ),  h the running diagonal of the Fisher matrix

"eigen" is exactly (Λ ⊗ Γ + λ I)⁻¹ and lets λ change at every step; it takes two symmetric eigendecompositions a refresh.
The other two invert the same damped factors, with the λ of the last refresh: "cholesky" in n³ multiply-adds, "newton" by
products only (inverse.py). They damp more than F + λ I, never less:

    Λ̃ ⊗ Γ̃ = Λ ⊗ Γ + λ I + √λ (π I ⊗ Γ + Λ ⊗ I / π)

Papers: the split π and the running averages (weight of the newest estimate max(1/k, 1 − ema) at the k-th refresh) are
Martens & Grosse's, arXiv 1503.05671, §6.3 and §5. Newton's iteration is arXiv 2601.18420's, which writes the direction as
"Λ⁻¹ · E[e xᵀ] · Γ⁻¹": for G = e xᵀ only the order above multiplies. Ours: the split in that paper's methods, "cholesky"
as the default, and "eigen".

A refresh makes a new `Curvature` and leaves the old one as it was, so a refused step has nothing to undo.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkal.optim.model.layers import Layer
from clipkal.optim.natural_gradient.fisher import Factors
from clipkal.optim.natural_gradient.inverse import newton_inverse

NEWTON_BATCH = 2**22
"""Entries of the factors that are inverted together: bounds the iteration's memory to about 8 × 16 MiB."""

Solver = Literal["cholesky", "newton", "eigen"]
ByParameter = dict[nn.Parameter, Tensor]
Inverse = dict[str, Tensor]


@dataclass(frozen=True)
class LayerCurvature:
    """What is known of one layer.

    Attributes:
        factors: the running averages of Λ and Γ.
        seen: how many estimates they average.
        inverse: {"input": Λ̃⁻¹, "output": Γ̃⁻¹}, or for "eigen" {"u", "U", "v", "V"}; empty before the first refresh.
    """

    factors: Factors
    seen: int = 1
    inverse: Inverse = field(default_factory=dict)

    def averaged(self, new: Factors, ema: float, shared: dict[Any, Tensor]) -> "LayerCurvature":
        """The running averages with new factors in them; an old Γ in another basis is turned into the new one first.

        shared: the Λ already averaged in this refresh; layers that share theirs go on sharing it.
        """
        old, weight = self.factors, _weight(self.seen, ema)
        key = (id(old.input), id(new.input), weight)
        if key not in shared:
            shared[key] = old.input.lerp(new.input, weight)
        output = old.output
        if old.basis is not None and new.basis is not None and not torch.equal(old.basis, new.basis):
            turn = new.basis @ old.basis.mT
            output = turn @ output @ turn.mT
        factors = replace(new, input=shared[key], output=output.lerp(new.output, weight))
        return replace(self, factors=factors, seen=self.seen + 1)

    def direction(self, G: Tensor, damping: float) -> Tensor:
        """δ for G [p, q]: r q² + r² q products, twice that for "eigen"; 2 p q r more for a basis."""
        basis, s = self.factors.basis, self.inverse
        G = G.to(self.factors.input.dtype)
        inner = G if basis is None else basis @ G
        if "input" in s:
            inner = s["output"] @ inner @ s["input"]
        else:
            scaled = (s["V"].mT @ inner @ s["U"]) / (s["v"][:, None] * s["u"] + damping)
            inner = s["V"] @ scaled @ s["U"].mT
        return inner if basis is None else basis.mT @ inner


@dataclass(frozen=True)
class Curvature:
    """The running Fisher matrix of a model.

    Attributes:
        layers: by the name of the weight.
        diagonals: h and how many estimates it averages, by parameter name.
        damping: the λ in force.
    """

    layers: dict[str, LayerCurvature] = field(default_factory=dict)
    diagonals: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    damping: float = 0.0

    def averaged(
        self, factors: Mapping[Layer, Factors], diagonals: Mapping[str, Tensor], ema: float
    ) -> "Curvature":
        """The running averages with a batch's estimate in them; the inverses are still the old ones."""
        layers, averages, shared = dict(self.layers), dict(self.diagonals), dict[Any, Tensor]()
        for layer, new in factors.items():
            old = layers.get(layer.name)
            layers[layer.name] = LayerCurvature(new) if old is None else old.averaged(new, ema, shared)
        for name, h in diagonals.items():
            past, seen = averages.get(name, (h, 0))
            averages[name] = past.lerp(h, _weight(seen, ema)), seen + 1
        return replace(self, layers=layers, diagonals=averages)

    def inverted(
        self, solver: Solver, newton_steps: int, newton_tolerance: float
    ) -> tuple["Curvature", dict[str, float]]:
        """The same with new inverses, and what is worth logging: Newton's largest residual ‖I − A X‖.

        Raises FloatingPointError where a damped factor cannot be inverted.
        """
        metrics = {}
        if solver == "newton":
            inverses, metrics["newton_residual"] = self._newton(newton_steps, newton_tolerance)
        else:
            inverses = self._eigen() if solver == "eigen" else self._cholesky()
        layers = {name: replace(layer, inverse=inverses[name]) for name, layer in self.layers.items()}
        return replace(self, layers=layers), metrics

    def _cholesky(self) -> dict[str, Inverse]:
        return {
            name: {side: _inverse(A) for side, A in damped(layer.factors, self.damping).items()}
            for name, layer in self.layers.items()
        }

    def _newton(self, steps: int, tolerance: float) -> tuple[dict[str, Inverse], float]:
        """Factors of equal size go together, as many as fit into `NEWTON_BATCH` entries."""
        equal: dict[Any, list[tuple[str, str]]] = defaultdict(list)
        for name, layer in self.layers.items():
            for side, A in (("input", layer.factors.input), ("output", layer.factors.output)):
                equal[A.shape, A.dtype, A.device, side in layer.inverse].append((name, side))
        inverses: dict[str, Inverse] = defaultdict(dict)
        residual = 0.0
        for (shape, *_, warm), factors in equal.items():
            size = max(1, NEWTON_BATCH // shape.numel())
            for batch in (factors[i : i + size] for i in range(0, len(factors), size)):
                A = torch.stack([damped(self.layers[n].factors, self.damping)[side] for n, side in batch])
                X = torch.stack([self.layers[n].inverse[side] for n, side in batch]) if warm else None
                found = newton_inverse(A, X, steps, tolerance)
                residual = max(residual, found.residual)
                for (name, side), inverse in zip(batch, found.inverse, strict=True):
                    inverses[name][side] = inverse
        return inverses, residual

    def _eigen(self) -> dict[str, Inverse]:
        """Rounding below zero is cut off; a Λ that layers share is decomposed once."""
        known: dict[int, tuple[Tensor, Tensor]] = {}

        def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
            if id(A) not in known:
                values, vectors = torch.linalg.eigh(A)
                known[id(A)] = values.clamp(min=0), vectors
            return known[id(A)]

        inverses = {}
        for name, layer in self.layers.items():
            (u, U), (v, V) = eigh(layer.factors.input), eigh(layer.factors.output)
            inverses[name] = {"u": u, "U": U, "v": v, "V": V}
        return inverses

    def precondition(
        self, gradient: ByParameter, layers: list[Layer], names: dict[nn.Parameter, str]
    ) -> ByParameter:
        """The direction δ; a parameter without an estimate so far keeps its plain gradient."""
        direction: ByParameter = {}
        for layer in layers:
            if layer.name in self.layers and all(p in gradient for p in layer.parameters):
                G = layer.matrix(gradient)
                direction |= layer.unpack(self.layers[layer.name].direction(G, self.damping))
        for parameter, g in gradient.items():
            if parameter not in direction and names[parameter] in self.diagonals:
                direction[parameter] = g / (self.diagonals[names[parameter]][0] + self.damping)
        return {parameter: direction.get(parameter, g) for parameter, g in gradient.items()}

    def mean_eigenvalue(self, rank: int) -> float:
        """tr F over the number of eigenvalues that can be nonzero: `rank`, or fewer for few parameters."""
        trace, count = 0.0, 0
        for layer in self.layers.values():
            f = layer.factors
            trace += float(f.input.trace() * f.output.trace())
            count += len(f.input) * f.rows
        for h, _ in self.diagonals.values():
            trace, count = trace + float(h.sum()), count + h.numel()
        return trace / max(min(count, rank), 1)

    def state(self) -> dict[str, Any]:
        """Plain dicts, numbers and tensors; `from_state` takes it back."""
        blocks = {
            name: {"factors": vars(layer.factors), "seen": layer.seen, "solution": layer.inverse}
            for name, layer in self.layers.items()
        }
        diagonals = {name: list(value) for name, value in self.diagonals.items()}
        return {"blocks": blocks, "diagonals": diagonals, "damping": self.damping}

    @staticmethod
    def from_state(state: dict[str, Any], devices: Mapping[str, torch.device]) -> "Curvature":
        """The curvature that `state()` described, on the devices of the parameters it belongs to."""

        def moved(values: dict[str, Any], name: str) -> dict[str, Any]:
            return {k: v.to(devices[name]) if isinstance(v, Tensor) else v for k, v in values.items()}

        layers = {
            name: LayerCurvature(Factors(**moved(b["factors"], name)), b["seen"], moved(b["solution"], name))
            for name, b in state["blocks"].items()
        }
        diagonals = {name: (h.to(devices[name]), seen) for name, (h, seen) in state["diagonals"].items()}
        return Curvature(layers, diagonals, state["damping"])


def _weight(seen: int, ema: float) -> float:
    """Of the newest estimate after `seen` others: a plain mean at first, then an exponential moving average."""
    return max(1 / (seen + 1), 1 - ema)


def _inverse(A: Tensor) -> Tensor:
    """A⁻¹ of a symmetric positive definite A, in float64 if float32 does not do."""
    L, info = torch.linalg.cholesky_ex(A)
    if int(info):
        L, info = torch.linalg.cholesky_ex(A.double())
    if int(info):
        raise FloatingPointError("a damped Kronecker factor is not positive definite: raise the damping")
    return torch.cholesky_inverse(L).to(A.dtype)


def damped(factors: Factors, damping: float) -> dict[str, Tensor]:
    """Λ̃ ("input") and Γ̃ ("output"): each is damped in proportion to its own mean eigenvalue."""
    Lambda, Gamma = factors.input, factors.output
    tiny = torch.finfo(Lambda.dtype).tiny ** 0.5
    pi2 = (Lambda.trace() / len(Lambda) + tiny) / (Gamma.trace() / factors.rows + tiny)
    pi = pi2.sqrt().clamp(1e-6, 1e6)
    root = damping**0.5
    return {"input": _plus_identity(Lambda, pi * root), "output": _plus_identity(Gamma, root / pi)}


def _plus_identity(A: Tensor, value: Tensor) -> Tensor:
    return A + value.to(A) * torch.eye(len(A), dtype=A.dtype, device=A.device)
