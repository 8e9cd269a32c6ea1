"""`Kalman`: the extended Kalman filter with its full covariance, iterated to the MAP, of a model that is linear in W.

Paper (Ollivier 2018, arXiv 1703.00209), static parameters θ and categorical outputs with mean π and R = diag(π) − π πᵀ:

    P⁺⁻¹ = P⁻¹ + Jᵀ R J                   `ReducedModel.hessian` (problem.py)
    θ⁺ = θ + P⁺ Jᵀ (y − π)                `solve` (mode.py)

J is the Jacobian of the logits, R = M their curvature, and P⁺⁻¹ the Fisher matrix: a step is a natural-gradient step.
Paper (Bell & Cathey 1993): relinearise at θ⁺ and repeat. That is Gauss–Newton, for these logits Newton's method, and its
fixed point is the maximum of the posterior:

    θ* = argmax log p(y | θ) − ½ (θ − θ₀)ᵀ P⁻¹ (θ − θ₀)      `find_mode`, `approach` (mode.py)
    θ | y ≈ N(θ*, P*),   P*⁻¹ = P⁻¹ + Jᵀ M* J                 `LaplacePosterior` (posterior.py)
    log p(y) ≈ log p(y, θ*) − ½ log det(P P*⁻¹)               `laplace_evidence` (evidence.py)

Ours:

* Function space, `reduce` (problem.py). With θ = W [p, q] and P = p₀ I this is Gaussian-process classification with the
  Kronecker kernel p₀ (right rightᵀ) ⊗ (left leftᵀ) and the Laplace posterior at the MAP (GPML chapter 3). The filter
  works on the r·t coordinates that the images and the classes span, H = I + ΦᵀMΦ there; P [pq × pq] is never formed.
* Class coordinates, `reduce`: the left factors are centred over the classes, and the bases of both spans are turned to the
  eigenvectors of the two Kronecker factors of H, so that conjugate gradients need few products.
* p₀ by the shots' own cross-validation and the temperature T of the samples, `fit` (hyperparameters.py).

The algebra of the covariance is exact. The posterior is not: it is Laplace's Gaussian approximation.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.optim.base import BatchOptimizer, StepInfo, check_classes, check_finite, check_finite_everywhere
from clipkal.optim.full_kalman.evidence import laplace_evidence
from clipkal.optim.full_kalman.hyperparameters import Settings, fit
from clipkal.optim.full_kalman.posterior import FunctionSamples, LaplacePosterior, OtherClasses
from clipkal.optim.full_kalman.problem import Precision, full_weight, reduce
from clipkal.optim.model.bilinear import is_bilinear
from clipkal.optim.parallel.shards import Group, Shards, broadcast
from clipkal.optim.posterior import Posterior
from clipkal.settings import Count, NonNegative, Several, Variance, checked

MOST_SAMPLES = 2**28
"""Bytes of sampled functions that are kept, so that one set after another may be read with them."""


@dataclass(frozen=True)
class Seen:
    """Everything the filter was given.

    Attributes:
        right: features [N, q].
        offset: logits at W = 0 [N, C].
        labels: [N].
    """

    right: Tensor
    offset: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gathered(self, shards: Shards) -> "Seen":
        """What all processes were given, in the order of parallel/shards.py."""
        return Seen(*(shards.gather(getattr(self, f.name)) for f in fields(Seen)))

    def plus(self, other: "Seen") -> "Seen":
        """This, then the other."""
        return Seen(*(torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(Seen)))


class Kalman(Posterior, BatchOptimizer):
    """Gaussian-process classification for a bilinear model, as an optimiser of one step.

    Args:
        model: a bilinear model (optim/model/bilinear.py). If it has a `log_scale`, its value at construction is the
            reference scale of the prior, which every step writes back.
        prior: p₀, or how to choose it from the shots: "crossval", "evidence" or "ratio" (hyperparameters.py).
        posterior_temperature: T of the samples: T times the Laplace covariance around the MAP. 1 is the Laplace posterior,
            0 the MAP; "unit": the T ≤ 1 for which the prior standard deviation of a sample's logit is draw_logit_sd;
            "crossval": the T that predicts held-out shots best ("unit" where nothing can be held out).
        solver: "direct" (Cholesky in D = r·t unknowns), "cg", or "auto": CG while searching unless D is small, Cholesky
            afterwards if D ≤ max_direct.
        precision: float type of the algebra: "float64", "float32", or "auto" (float32 from 2²² multiply-adds a product on,
            and in the cross-validation always: p₀ is then the same to about a thousandth on another device).
        ratio: data over prior curvature for prior="ratio".
        prior_logit_sd: centre of the hyper-prior of p₀, which is log-normal: the prior standard deviation of a class's
            logit. Used as it stands where nothing is held out (one shot, no validation images).
        prior_spread: standard deviation of log p₀ under the hyper-prior.
        folds: of the cross-validation.
        draw_logit_sd: for posterior_temperature="unit".
        probes: random sign vectors of the Lanczos log-determinant.
        seed: of the probes and of the cross-validation's samples. All are drawn on the CPU, in coordinates whose signs are
            those of the device's own eigensolver: on another device an estimate from probes is another one of the same
            accuracy (evidence.py).
        max_direct: largest number of unknowns for a Cholesky factor (8·D² bytes); 100 draws cost far less so than by CG.
        group: the processes that share each batch where `torch.distributed` is initialised; None: all. Every one gathers
            features and labels of all, exactly, and solves the whole problem: memory is shared by none.

    Every step solves for everything seen so far, so the order of batches does not matter; one step with all the shots is the
    usual use. Memory: N·(q + C) numbers kept, a few times N·C and r·t while solving. Cost: problem.py, mode.py.

    Raises TypeError for a model that is not bilinear, ValueError for settings out of range.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        prior: Variance | Literal["crossval", "evidence", "ratio"] = "crossval",
        posterior_temperature: NonNegative | Literal["unit", "crossval"] = "unit",
        solver: Literal["auto", "direct", "cg"] = "auto",
        precision: Precision = "auto",
        ratio: Variance = 1.0,
        prior_logit_sd: Variance = 8.0,
        prior_spread: Variance = 2.0,
        folds: Several = 4,
        draw_logit_sd: Variance = 1.0,
        probes: Count = 8,
        seed: int = 0,
        max_direct: int = 4096,
        group: Group | None = None,
    ):
        super().__init__(model)
        if not is_bilinear(model):
            raise TypeError("Kalman needs a bilinear model: a `weight` and `jacobian_factors(inputs)`")
        self.settings = Settings(
            prior, posterior_temperature, solver, precision, ratio, prior_logit_sd, prior_spread, folds, draw_logit_sd,
            probes, seed, max_direct,
        )  # fmt: skip
        self.group = group
        broadcast(self.model.parameters(), group)
        log_scale = getattr(model, "log_scale", None)
        self.reference_scale = log_scale.detach().clone() if isinstance(log_scale, Tensor) else None
        self.left: Tensor | None = None
        self.seen: Seen | None = None
        self.laplace: LaplacePosterior | None = None
        self._reading: LaplacePosterior | OtherClasses | None = None  # over the model's present classes
        self._samples: dict[tuple[int, int], FunctionSamples] = {}
        self._held_out: Seen | None = None

    @torch.no_grad()
    def hold_out(self, inputs: Tensor, targets: Tensor) -> None:
        """Images by which p₀ is judged, beside the shots' own cross-validation, at the next step; they replace earlier ones.

        Raises FloatingPointError or ValueError as `step` does.
        """
        _, self._held_out, _ = self._linearise(inputs, targets)

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        """Conditions on one more batch and writes the MAP into `model.weight`.

        Returns the batch's loss before the step, the Laplace log evidence of everything seen (T = 1), and what was chosen.
        Raises FloatingPointError or ValueError before any state has changed.
        """
        left, batch, loss = self._linearise(inputs, targets)
        seen = batch if self.seen is None else self.seen.plus(batch)
        model, v_f, v_t = reduce(left, seen.right, seen.offset, seen.labels, self.settings.precision)
        held = self._held_out
        others = None if held is None else model.others(held.right, held.offset, held.labels, v_f)
        result = fit(model, self.settings, others)
        model, mode = result.model, result.mode
        evidence = laplace_evidence(model, mode, self.settings.probe_vectors(model))
        direct = self.settings.direct(model.size)
        self.left, self.seen = left, seen
        self._adopt(LaplacePosterior(model, mode, v_f, v_t, left, result.temperature, direct))
        self.model.weight.copy_(full_weight(model, mode.x, v_f, v_t))  # type: ignore[operator]
        if self.reference_scale is not None:
            self.model.log_scale.copy_(self.reference_scale)  # type: ignore[operator]
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
        shards = Shards.of(len(labels), labels.device, self.group)
        return left, Seen(right.clone(), offset.clone(), labels).gathered(shards), float(shards.mean(loss))

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

    @property
    def posterior(self) -> Posterior:
        """Itself."""
        return self

    @torch.no_grad()
    def logit_samples(
        self, inputs: Tensor, n: int, generator: torch.Generator | None = None, tolerance: float | None = None
    ) -> Tensor:
        """Logits [n, B, C] (float32) of n functions from the posterior, joint over classes and images.

        A generator stands for a set of functions: its *initial seed* and n fix the set, whatever else it was used for, and
        the last sets are kept. So a test set may come in any batches. None: a fresh set from torch's own generator. The
        classes are those the model has now: the learnt ones, or others (posterior.py). tolerance: of the CG residual, 1e-8
        by default or 1e-2 for float32 solves; given, samples are exact at any size
        (posterior.py).
        """
        _, offset, right = self._read(inputs)
        functions = self._sample_functions(n, generator, tolerance)
        return functions.logits(offset.to(functions.weights), right.to(functions.weights))

    def _sample_functions(
        self, n: int, generator: torch.Generator | None, tolerance: float | None
    ) -> FunctionSamples:
        posterior = self._reading or self._require()
        if generator is None:
            return posterior.sample_functions(n, None, tolerance)
        key = (n, generator.initial_seed())
        if key not in self._samples:
            sampled = posterior.sample_functions(n, torch.Generator().manual_seed(key[1]), tolerance)
            if (len(self._samples) + 1) * sampled.weights.nbytes > MOST_SAMPLES:
                self._samples.clear()
            self._samples[key] = sampled
        return self._samples[key]

    @torch.no_grad()
    def logit_covariance(self, inputs: Tensor) -> Tensor:
        """Covariance [B, C, C] of `logit_samples`, in closed form; B·C solves and B·C² memory."""
        posterior, _, right = self._read(inputs)
        return posterior.logit_covariance(right)

    def likelihood_weight(self) -> float | None:
        temperature = self._require().temperature
        return 1 / temperature if temperature > 0 else None

    def _read(self, inputs: Tensor) -> tuple[LaplacePosterior | OtherClasses, Tensor, Tensor]:
        """The posterior over the model's present classes, zero-weight logits [B, C] and features [B, q]."""
        learnt = self._require()
        offset, left, right = self._affine(inputs)
        if self._reading is None or not _same(left, self._reading.left):
            self._reading = learnt if _same(left, learnt.left) else OtherClasses.of(learnt, left)
            self._samples = {}  # they are of other classes
        return self._reading, offset, right

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Weights W [n, p, q] from the posterior: logits are z⁰ + left W right at the reference scale."""
        return self._require().sample_weights(n, generator)

    def _require(self) -> LaplacePosterior:
        if self.laplace is None:
            raise RuntimeError("nothing has been observed yet: call step(inputs, targets) first")
        return self.laplace

    def describe(self) -> dict[str, str]:
        words = {**super().describe(), "route": "bilinear", "covariance": "full, in function space"}
        if self.laplace is None:
            return {**words, "solver": self.settings.solver, "precision": self.settings.precision}
        dtype = str(self.laplace.model.offset.dtype).removeprefix("torch.")
        return {**words, "solver": "direct" if self.laplace.direct else "cg", "precision": dtype}

    def _adopt(self, posterior: LaplacePosterior | None) -> None:
        self.laplace = self._reading = posterior
        self._samples = {}

    def extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"reference_scale": self.reference_scale}
        if self.laplace is not None and self.seen is not None:
            state |= {"seen": dict(vars(self.seen)), "posterior": self.laplace.state()}
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        posterior = LaplacePosterior.from_state(state["posterior"]) if "posterior" in state else None
        self.reference_scale = state.get("reference_scale")
        self.seen = Seen(**state["seen"]) if posterior else None
        self.left = posterior.left if posterior else None
        self._adopt(posterior)


def _same(left: Tensor, other: Tensor) -> bool:
    """Whether two sets of left factors are of the same classes, up to the rounding of a scale."""
    return left.shape == other.shape and torch.allclose(left, other.to(left))
