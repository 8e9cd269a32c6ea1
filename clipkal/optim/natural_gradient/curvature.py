"""Running Kronecker factors of every layer, their damped inverses, and the natural direction they give.

    solver "cholesky":
       and "newton":   δ = Γ̃⁻¹ G Λ̃⁻¹,   Λ̃ = Λ + π √λ I,   Γ̃ = Γ + (√λ / π) I
    solver "eigen":    δ = V [(Vᵀ G U) / (v uᵀ + λ)] Uᵀ,   Λ = U diag(u) Uᵀ,   Γ = V diag(v) Vᵀ
    in no layer:       δ = g / (h + λ),   h the running diagonal of the Fisher matrix

for a layer with gradient matrix G [p, q], and π² = (tr Λ / q) / (tr Γ / p). "eigen" is exactly (Λ ⊗ Γ + λ I)⁻¹
and lets λ change at every step; it needs two symmetric eigendecompositions a refresh (with LAPACK on a CPU
cheaper than Newton's steps, on a GPU dearer). The other two invert the same damped factors of [n, n]: "cholesky"
(the default) in n³ multiply-adds, "newton" by products only, three warm-started steps of 2 n³ from the last inverses
(`optim/newton.py`), which is the paper's way and made for accelerators. Their λ is that of the last refresh, and since

    Λ̃ ⊗ Γ̃ = Λ ⊗ Γ + λ I + √λ (π I ⊗ Γ + Λ ⊗ I / π)

it damps more than F + λ I, never less. The split π and the running averages (weight of the newest statistics
max(1/k, 1 − ema) at the k-th refresh) are Martens & Grosse 2015, arXiv 1503.05671, §6.3 and §5. Newton's
iteration is arXiv 2601.18420's, which writes the direction as "Λ⁻¹ · E[e xᵀ] · Γ⁻¹": for G = e xᵀ only the
order above multiplies. How it damps the factors could not be read: split and solver are our choices.

A refresh builds a new `Curvature` and leaves the old one as it was, so a refused step has nothing to undo.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkal.optim.model.layers import Layer
from clipkal.optim.natural_gradient.factors import Factors, averaged
from clipkal.optim.natural_gradient.inverse import newton_inverse

NEWTON_BATCH = 2**22  # entries of one batch of factors: bounds the iteration's memory to about 8 × 16 MiB

Solver = Literal["cholesky", "newton", "eigen"]
Values = dict[nn.Parameter, Tensor]


@dataclass(frozen=True)
class Block:
    """One layer: its factors, how often it was seen, and what solves with them.

    solution: {"input": Λ̃⁻¹, "output": Γ̃⁻¹} ("newton"), or eigenvalues and eigenvectors {"u", "U", "v",
    "V"}.
    """

    factors: Factors
    seen: int = 1
    solution: dict[str, Tensor] = field(default_factory=dict)

    def direction(self, G: Tensor, damping: float) -> Tensor:
        """δ for G [p, q]: r q² + r² q products, twice that for "eigen"; 2 p q r more for a basis."""
        basis, s = self.factors.basis, self.solution
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
    """Blocks and diagonals (with their counts) by parameter name, and the damping λ in force."""

    blocks: dict[str, Block] = field(default_factory=dict)
    diagonals: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    damping: float = 0.0

    def observed(
        self, factors: Mapping[Layer, Factors], diagonals: Mapping[str, Tensor], ema: float
    ) -> "Curvature":
        """The running averages with this batch in them; the solutions are still the old ones."""
        blocks, diagonal, shared = dict(self.blocks), dict(self.diagonals), dict[Any, Tensor]()
        for layer, new in factors.items():
            old = blocks.get(layer.name)
            if old is None:
                blocks[layer.name] = Block(new)
                continue
            weight = max(1 / (old.seen + 1), 1 - ema)
            mean = averaged(old.factors, new, weight, shared)
            blocks[layer.name] = replace(old, factors=mean, seen=old.seen + 1)
        for name, h in diagonals.items():
            past, seen = diagonal.get(name, (h, 0))
            diagonal[name] = past.lerp(h, max(1 / (seen + 1), 1 - ema)), seen + 1
        return replace(self, blocks=blocks, diagonals=diagonal)

    def factorised(self) -> "Curvature":
        """Damped inverses by Cholesky factors. FloatingPointError where a damped factor is not positive definite."""
        blocks = {}
        for name, block in self.blocks.items():
            inverses = {side: _inverse(A) for side, A in damped(block.factors, self.damping).items()}
            blocks[name] = replace(block, solution=inverses)
        return replace(self, blocks=blocks)

    def inverted(self, steps: int, tolerance: float) -> tuple["Curvature", float]:
        """Damped inverses by Newton, and the largest residual ‖I − A X‖.

        Factors of equal size go together, as many as fit into `NEWTON_BATCH` entries.
        """
        jobs: dict[Any, list[tuple[str, str]]] = defaultdict(list)
        for name, block in self.blocks.items():
            for side, A in (("input", block.factors.input), ("output", block.factors.output)):
                jobs[A.shape, A.dtype, A.device, side in block.solution].append((name, side))
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        residual = 0.0
        for (shape, *_, warm), job in jobs.items():
            size = max(1, NEWTON_BATCH // shape.numel())
            for batch in (job[i : i + size] for i in range(0, len(job), size)):
                A = torch.stack(
                    [damped(self.blocks[name].factors, self.damping)[side] for name, side in batch]
                )
                X = torch.stack([self.blocks[name].solution[side] for name, side in batch]) if warm else None
                result = newton_inverse(A, X, steps, tolerance)
                residual = max(residual, result.residual)
                for (name, side), inverse in zip(batch, result.inverse, strict=True):
                    found[name][side] = inverse
        blocks = {name: replace(block, solution=found[name]) for name, block in self.blocks.items()}
        return replace(self, blocks=blocks), residual

    def decomposed(self) -> "Curvature":
        """Eigendecompositions of all factors; rounding below zero is cut off."""
        known: dict[int, tuple[Tensor, Tensor]] = {}

        def eigen(A: Tensor) -> tuple[Tensor, Tensor]:
            if id(A) not in known:
                values, vectors = torch.linalg.eigh(A)
                known[id(A)] = values.clamp(min=0), vectors
            return known[id(A)]

        blocks = {}
        for name, block in self.blocks.items():
            (u, U), (v, V) = eigen(block.factors.input), eigen(block.factors.output)
            blocks[name] = replace(block, solution={"u": u, "U": U, "v": v, "V": V})
        return replace(self, blocks=blocks)

    def precondition(self, gradient: Values, layers: list[Layer], names: dict[nn.Parameter, str]) -> Values:
        """The direction δ; a parameter without statistics so far keeps its plain gradient."""
        direction: Values = {}
        for layer in layers:
            if layer.name in self.blocks and all(p in gradient for p in layer.parameters):
                G = layer.matrix(gradient)
                direction |= layer.unpack(self.blocks[layer.name].direction(G, self.damping))
        for parameter, g in gradient.items():
            if parameter not in direction and names[parameter] in self.diagonals:
                direction[parameter] = g / (self.diagonals[names[parameter]][0] + self.damping)
        return {parameter: direction.get(parameter, g) for parameter, g in gradient.items()}

    def mean_eigenvalue(self, rank: int) -> float:
        """tr F over the number of eigenvalues that can be nonzero: `rank`, or fewer for few parameters."""
        trace, count = 0.0, 0
        for block in self.blocks.values():
            f = block.factors
            trace += float(f.input.trace() * f.output.trace())
            count += len(f.input) * f.rows
        for h, _ in self.diagonals.values():
            trace, count = trace + float(h.sum()), count + h.numel()
        return trace / max(min(count, rank), 1)

    def state(self) -> dict[str, Any]:
        """Plain dicts, numbers and tensors; `from_state` takes it back."""
        return {
            "blocks": {name: {**vars(b), "factors": vars(b.factors)} for name, b in self.blocks.items()},
            "diagonals": {name: list(value) for name, value in self.diagonals.items()},
            "damping": self.damping,
        }

    @staticmethod
    def from_state(state: dict[str, Any], devices: Mapping[str, torch.device]) -> "Curvature":
        """The curvature `state()` described, on the devices of the parameters it belongs to."""

        def moved(values: dict[str, Any], name: str) -> dict[str, Any]:
            return {k: v.to(devices[name]) if isinstance(v, Tensor) else v for k, v in values.items()}

        blocks = {
            name: Block(Factors(**moved(b["factors"], name)), b["seen"], moved(b["solution"], name))
            for name, b in state["blocks"].items()
        }
        diagonals = {name: (h.to(devices[name]), seen) for name, (h, seen) in state["diagonals"].items()}
        return Curvature(blocks, diagonals, state["damping"])


def _inverse(A: Tensor) -> Tensor:
    """A⁻¹ of a symmetric positive definite A, in float64 if float32 does not do."""
    L, info = torch.linalg.cholesky_ex(A)
    if int(info):
        L, info = torch.linalg.cholesky_ex(A.double())
    if int(info):
        raise FloatingPointError("a damped Kronecker factor is not positive definite: raise the damping")
    return torch.cholesky_inverse(L).to(A.dtype)


def damped(factors: Factors, damping: float) -> dict[str, Tensor]:
    """Λ̃ ("input") and Γ̃ ("output"): λ split over the factors so that each is damped in proportion to its own mean eigenvalue."""
    Lambda, Gamma = factors.input, factors.output
    tiny = torch.finfo(Lambda.dtype).tiny ** 0.5
    pi2 = (Lambda.trace() / len(Lambda) + tiny) / (Gamma.trace() / factors.rows + tiny)
    pi = pi2.sqrt().clamp(1e-6, 1e6)
    root = damping**0.5
    return {"input": _plus_identity(Lambda, pi * root), "output": _plus_identity(Gamma, root / pi)}


def _plus_identity(A: Tensor, value: Tensor) -> Tensor:
    return A + value.to(A) * torch.eye(len(A), dtype=A.dtype, device=A.device)
