"""`FunctionSpaceFilter`: the exact full-covariance Kalman filter of a bilinear model, iterated to its MAP.

Prior W ~ N(0, p₀ I), categorical likelihood, logits affine in W: Gaussian-process classification with the Kronecker kernel
p₀ (right rightᵀ) ⊗ (left leftᵀ) and a Laplace posterior (GPML chapter 3). The covariance of W [pq × pq] is never formed
(reduced.py).
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.optim.base import BatchOptimizer, StepInfo, check_finite, check_finite_everywhere
from clipkal.optim.checks import check_classes
from clipkal.optim.deal import Deal
from clipkal.optim.distributed import Group, broadcast
from clipkal.optim.function_space.basis import reduce
from clipkal.optim.function_space.evidence import laplace_evidence
from clipkal.optim.function_space.hyper import fit
from clipkal.optim.function_space.posterior import Posterior
from clipkal.optim.function_space.sampling import FunctionDraws
from clipkal.optim.function_space.settings import Settings
from clipkal.optim.function_space.transfer import OtherClasses
from clipkal.optim.jacobian import is_bilinear

MOST_DRAWS = 2**28
"""Bytes of drawn functions that are kept, so that one set after another may be read with them."""


@dataclass(frozen=True)
class Seen:
    """Everything the filter was shown: features [N, q], zero-weight logits [N, C], labels [N]."""

    right: Tensor
    offset: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gathered(self, deal: Deal) -> "Seen":
        """What all processes were shown, in the order of distributed.py."""
        return Seen(*(deal.gather(getattr(self, f.name)) for f in fields(Seen)))

    def plus(self, other: "Seen") -> "Seen":
        return Seen(*(torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(Seen)))


class FunctionSpaceFilter(BatchOptimizer):
    """Gaussian-process classification for a bilinear model, as an optimiser of one step.

    Args:
        model: a bilinear model (optim/jacobian.py). Its `log_scale` at construction is the reference scale of the prior.
        prior: p₀, or how to choose it from the shots: "crossval", "evidence" or "ratio" (hyper.py).
        scale: "evidence": a multiplier κ ~ N(1, scale_sd²) of the zero-weight logits is part of the state: found with the MAP,
            integrated out of the evidence, and drawn with the samples; needs `model.log_scale`, which receives it. "frozen": κ = 1.
        temperature: T of the draws: T times the Laplace covariance around the MAP. 1 is the Laplace posterior, 0 the MAP;
            "unit": the T ≤ 1 for which the prior standard deviation of a draw's logit is draw_logit_sd; "crossval": the T that
            predicts held-out shots best ("unit" where nothing can be held out).
        solver: "direct" (Cholesky in D = r·t unknowns), "cg", or "auto": CG while searching, Cholesky afterwards if D ≤ max_direct.
        precision: of the solves: "float64", "float32", or "auto" (float32 from 2²² multiply-adds a product on, and in the
            cross-validation always: p₀ is then the same to about a thousandth on another device or for other orders of images).
        scale_sd: prior standard deviation of κ.
        ratio: data over prior curvature for prior="ratio".
        prior_logit_sd, prior_spread: the hyper-prior of p₀: log-normal around the p₀ that gives a class's logit this prior standard
            deviation, with this standard deviation of log p₀. Used as it stands where nothing can be held out (one shot).
        folds: of the cross-validation.
        draw_logit_sd: for temperature="unit".
        probes, seed: of the Lanczos log-determinant; the seed also of the cross-validation's draws. All are drawn on the CPU, in
            coordinates whose signs are the device's own eigensolver's: an estimate from probes is another one of the same
            accuracy on another device (evidence.py).
        max_direct: largest number of unknowns for a Cholesky factor (8·D² bytes).
        group: the processes that share each batch where `torch.distributed` is initialised; None: all. Every one gathers
            features and labels of all, exactly, and solves the whole problem: memory is shared by none.

    Every step solves for everything seen so far, so the order of batches does not matter; one step with all the shots is the usual
    use. Memory: N·(q + C) numbers kept, a few times N·C and r·t while solving. Cost: reduced.py, newton.py.
    """

    def __init__(
        self,
        model: nn.Module,
        prior: float | Literal["crossval", "evidence", "ratio"] = "crossval",
        scale: Literal["evidence", "frozen"] = "frozen",
        temperature: float | Literal["unit", "crossval"] = "unit",
        solver: Literal["auto", "direct", "cg"] = "auto",
        precision: Literal["auto", "float64", "float32"] = "auto",
        scale_sd: float = 1.0,
        ratio: float = 1.0,
        prior_logit_sd: float = 10.0,
        prior_spread: float = 0.5,
        folds: int = 4,
        draw_logit_sd: float = 1.0,
        probes: int = 8,
        seed: int = 0,
        max_direct: int = 1500,
        group: Group | None = None,
    ):
        self.settings = Settings(
            prior, scale, temperature, solver, precision, scale_sd, ratio, prior_logit_sd, prior_spread,
            folds, draw_logit_sd, probes, seed, max_direct,
        )  # fmt: skip
        self.settings.check()
        super().__init__(model)
        _check_model(model, scale)
        self.group = group
        broadcast(list(model.parameters()), group)
        log_scale = getattr(model, "log_scale", None)
        self.reference_scale = log_scale.detach().clone() if isinstance(log_scale, Tensor) else None
        self.left: Tensor | None = None
        self.seen: Seen | None = None
        self.posterior: Posterior | None = None
        self._reading: Posterior | OtherClasses | None = None  # over the model's present classes
        self._draws: dict[tuple[int, int], FunctionDraws] = {}

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        """Conditions on one more batch, writes the MAP into `model.weight` (and κ into `model.log_scale`).

        Returns the batch's loss before the step, the Laplace log evidence of everything seen (T = 1), and what was chosen. Raises
        FloatingPointError or ValueError before any state has changed.
        """
        left, batch, loss = self._linearise(inputs, targets)
        seen = batch if self.seen is None else self.seen.plus(batch)
        scale_sd = self.settings.scale_sd if self.settings.scale == "evidence" else 0.0
        model, right_basis, left_basis = reduce(
            left, seen.right, seen.offset, seen.labels, scale_sd, self.settings.precision
        )
        result = fit(model, self.settings)
        evidence = laplace_evidence(result.model, result.mode, self.settings.probe_vectors(result.model))
        self.left, self.seen = left, seen
        self._adopt(
            Posterior(
                result.model,
                result.mode,
                right_basis,
                left_basis,
                left,
                result.temperature,
                self.settings.exact(result.model.size),
            )
        )
        self._write()
        return StepInfo(loss, evidence, result.metrics)

    def _linearise(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Seen, float]:
        """Left factors, the batch as the filter keeps it, and its loss at the current weight; refuses what is not finite."""
        check_finite_everywhere(inputs, "inputs", self.group)
        if targets.ndim != 1 or len(targets) != len(inputs) or targets.is_floating_point() or not len(inputs):
            found = f"{tuple(targets.shape)} {targets.dtype}"
            raise ValueError(f"targets must be {len(inputs)} class indices, at least one; got {found}")
        logits = self.model(inputs)
        check_classes(logits)
        if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[-1]:
            raise ValueError(
                f"targets must lie in 0…{logits.shape[-1] - 1}, got {int(targets.min())}…{int(targets.max())}"
            )
        offset, left, right = self._affine(inputs)
        left = left if self.left is None else self.left
        named = ((logits, "logits"), (offset, "logits at weight 0"), (right, "features"), (left, "left"))
        for value, name in named:
            check_finite(value, name)
        labels = targets.to(offset.device, torch.long).clone()
        loss = nn.functional.cross_entropy(logits.double(), labels)
        deal = Deal.of(len(labels), labels.device, self.group)
        return left, Seen(right.clone(), offset.clone(), labels).gathered(deal), float(deal.mean(loss))

    def _affine(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at W = 0 [B, C], left [C, p] and right [B, q], all at the reference scale."""
        weight: Tensor = self.model.weight  # type: ignore[assignment]
        state = {"weight": torch.zeros_like(weight)}
        to_reference: float | Tensor = 1.0
        if self.reference_scale is not None:
            state["log_scale"] = self.reference_scale
            to_reference = (self.reference_scale - self.model.log_scale.detach()).exp()  # type: ignore[operator]
        offset = functional_call(self.model, state, (inputs,))
        left, right = self.model.jacobian_factors(inputs)  # type: ignore[operator]
        return offset.detach(), to_reference * left.detach(), right.detach()

    @torch.no_grad()
    def _write(self) -> None:
        assert self.posterior is not None
        self.model.weight.copy_(self.posterior.weight())  # type: ignore[operator]
        if self.reference_scale is not None:
            log_kappa = math.log(self.posterior.kappa)
            self.model.log_scale.copy_(self.reference_scale + log_kappa)  # type: ignore[operator]

    # -- the posterior -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logit_samples(
        self, inputs: Tensor, n: int, generator: torch.Generator | None = None, tolerance: float | None = None
    ) -> Tensor:
        """Logits [n, B, C] (float32) of n functions drawn from the posterior, joint over classes and images.

        A generator stands for a set of functions: its *initial seed* and n fix the draws, whatever else it was used for, and the
        last sets are kept. So a test set may come in any batches; the draws are made once. None: fresh draws from torch's own
        generator. The classes are those the model has now: the learnt ones, or others (transfer.py).
        """
        _, offset, right = self._read(inputs)
        draws = self.draw(n, generator, tolerance)
        return draws.logits(offset.to(draws.classes), right.to(draws.classes))

    @torch.no_grad()
    def draw(
        self, n: int, generator: torch.Generator | None = None, tolerance: float | None = None
    ) -> FunctionDraws:
        """n functions from the posterior, in float32; tolerance: of the CG residual (1e-8; 1e-2 for float32 solves)."""
        posterior = self._reading or self._require()
        if generator is None:
            return posterior.draw(n, None, tolerance)
        key = (n, generator.initial_seed())
        if key not in self._draws:
            drawn = posterior.draw(n, torch.Generator().manual_seed(key[1]), tolerance)
            if (len(self._draws) + 1) * drawn.coordinates.nbytes > MOST_DRAWS:
                self._draws.clear()
            self._draws[key] = drawn
        return self._draws[key]

    @torch.no_grad()
    def logit_covariance(self, inputs: Tensor) -> Tensor:
        """Exact covariance [B, C, C] of `logit_samples`; B·(t + 1) solves and B·C² memory."""
        posterior, offset, right = self._read(inputs)
        return posterior.logit_covariance(offset, right)

    def _read(self, inputs: Tensor) -> tuple[Posterior | OtherClasses, Tensor, Tensor]:
        """The posterior over the model's present classes, zero-weight logits [B, C] and features [B, q]."""
        learnt = self._require()
        offset, left, right = self._affine(inputs)
        if self._reading is None or not _same(left, self._reading.left):
            self._reading = learnt if _same(left, learnt.left) else OtherClasses.of(learnt, left)
            self._draws = {}  # they are of other classes
        return self._reading, offset, right

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Weights [n, p, q] and scales κ [n]: logits are κ z⁰ + left W right at the reference scale. n·p·q numbers."""
        return self._require().sample(n, generator)

    def _require(self) -> Posterior:
        if self.posterior is None:
            raise RuntimeError("nothing has been observed yet: call step(inputs, targets) first")
        return self.posterior

    def describe(self) -> dict[str, str]:
        said = {**super().describe(), "route": "bilinear", "covariance": "full, in function space"}
        if self.posterior is None:
            return {**said, "solver": self.settings.solver, "precision": self.settings.precision}
        dtype = str(self.posterior.model.offset.dtype).removeprefix("torch.")
        return {**said, "solver": "direct" if self.posterior.exact else "cg", "precision": dtype}

    # -- checkpoints ---------------------------------------------------------------------------------------------------------------

    def _adopt(self, posterior: Posterior | None) -> None:
        self.posterior = self._reading = posterior
        self._draws = {}

    def extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"reference_scale": self.reference_scale}
        if self.posterior is not None and self.seen is not None:
            state |= {"seen": dict(vars(self.seen)), "posterior": self.posterior.state()}
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.reference_scale = state.get("reference_scale")
        if "posterior" not in state:
            self.left = self.seen = None
            self._adopt(None)
            return
        self.seen = Seen(**state["seen"])
        self._adopt(Posterior.from_state(state["posterior"]))
        self.left = self._require().left


def _same(left: Tensor, other: Tensor) -> bool:
    """Whether two sets of left factors are of the same classes, up to the rounding of a scale."""
    return left.shape == other.shape and torch.allclose(left, other.to(left))


def _check_model(model: nn.Module, scale: str) -> None:
    if not is_bilinear(model):
        raise TypeError(
            "FunctionSpaceFilter needs a bilinear model: a `weight` and `jacobian_factors(inputs)`"
        )
    if scale == "evidence" and not isinstance(getattr(model, "log_scale", None), Tensor):
        raise TypeError("scale='evidence' needs a model with `log_scale`; use scale='frozen'")
