"""The Kalman filter over the parameters of a model: one loop for every observation, noise, gate and covariance.

    predict   P ← P/λ + q I                                   fading memory, process noise
    shrink    P ← (P⁻¹ + λ_k I)⁻¹, λ_k = ρ‖HᵀR⁻¹e‖²           R-Kalman (rkalman.py)
    update    S = H P Hᵀ + R;  K = P Hᵀ S⁻¹;  θ ← θ + K e;  P ← P − K H P

Static parameters (F = I), as in LoKO (arXiv 2410.11551). With a dense P this is Ollivier's online natural
gradient (arXiv 1703.00209): no Fisher matrix is inverted and there is no learning rate.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkal.optim.base import BatchOptimizer, StepInfo, check_finite, check_independent
from clipkal.optim.kalman.covariance.diagonal import Covariance
from clipkal.optim.kalman.observation import Gate, Noise
from clipkal.optim.kalman.parts import named
from clipkal.optim.kalman.posterior import LinearisedPosterior, Readout
from clipkal.optim.kalman.prior import NETWORK, is_network, p0_by_ratio, prior_variances, unit_temperature
from clipkal.optim.kalman.update import Innovation, Measurement, Observation, Weigher
from clipkal.optim.model import make_route
from clipkal.optim.model.jacobian import Jacobian, ParameterVector
from clipkal.optim.parallel.jacobian import DistributedRoute
from clipkal.optim.parallel.shards import Group, broadcast, world_size
from clipkal.settings import Count, NonNegative, Share, Steps, Variance, check, checked

LARGEST_SOLVE = 128
"""Outputs taken jointly by "auto": where the two costs of a block, its GEMMs and its passes over P, balance."""

FIRED = 0.5
"""A gate has fired where it leaves less than this share of an image's weight."""

HALVINGS = 10
"""How often the step of a block is halved in a network before the parameters stay where they were."""


class KalmanFilter(LinearisedPosterior, BatchOptimizer):
    """An extended Kalman filter whose state is the model's trainable parameters.

    Args:
        model: any module that maps inputs [B, …] to logits [B, C], images independently. Bilinear models
            (model/bilinear.py) take the analytic route.
        observation: categorical | categorical_merged | softmax | cosine | probs | gaussian, or an Observation.
        noise: model | fixed | residual | residual_full, or a Noise; None: the observation's.
        covariance: diagonal | subspace | lowrank | dense, or a Covariance; "auto": subspace, whose updates are
            iterated, for a bilinear model, and diagonal for others.
        gate: none | mahalanobis_hard | mahalanobis_soft | imq, or a Gate.
        prior: the variance p₀ of P₀ = p₀ I, or "ratio": p₀ such that on the first batch the mean over images and
            outputs of diag(H P₀ Hᵀ)/R₀ is `ratio`. For the categorical observation that is the mean prior variance of
            the centred logits (Categorical.reference says why). A first batch with zero Jacobian is skipped.
        ratio: of prior="ratio"; None: the observation's default, or a tenth of it for a network whose layers move
            together, whose logits are linear in a short range only. There a block's step is halved, too, until the
            block is no less likely than before; covariance="lowrank" learns best.
        priors: variances of single parameters by name, which override `prior`.
        process_noise, fading: q ≥ 0 and λ ≤ 1, once a step.
        rho: ρ of R-Kalman; 0 is the plain filter.
        warmup: steps over which ρ grows linearly from 0.
        rho_as: "absolute", or "relative" to the first batch: λ_k = (ρ/p₀) ‖g_k‖²/‖g_1‖², free of scale.
        store_regularisation: keep λ_k in P (the literal reconstruction), or use it for the gain only.
        epochs, epochs_as: passing over the data E times counts every image E times. "tempered" raises the
            likelihood to the power 1/E (on linear models E passes then equal one), so P stays a posterior;
            "optimiser" keeps the full likelihood: it fits further, and P is too small to be a posterior.
        block: how many images are taken jointly. 1: one after the other, each linearised at the newest θ; None:
            the whole batch in one joint update; "auto": as many as keep a block cheap, at most 8 (64 for one
            scalar an image off the analytic route). Only the joint form is invariant to the batch's order.
        posterior_temperature: T of the draws, from N(θ̄, T P); "unit": the T ≤ 1 at which the prior's draws of the logits have
            unit variance on the first batch (prior.py says why).
        readout: of a model that is not bilinear: "exact" takes C backward passes an image, "shots" the mean covariance of the
            logits of at most 32 shots, which are kept (posterior.py).
        route: auto | bilinear | hooks | func.
        memory: bytes that Jacobian rows may take.
        group: the processes that share each batch where `torch.distributed` is initialised (parallel/);
            None: all of them. They start from the first one's parameters.

    Raises ValueError for settings that cannot be. A step is refused (FloatingPointError) and all is put back if anything
    is not finite.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        observation: str | Observation = "categorical",
        noise: str | Noise | None = None,
        covariance: str | Covariance = "diagonal",
        gate: str | Gate = "none",
        prior: Variance | Literal["ratio"] = "ratio",
        ratio: Variance | None = None,
        priors: Mapping[str, float] | None = None,
        process_noise: NonNegative = 0.0,
        fading: Share = 1.0,
        rho: NonNegative = 0.0,
        rho_as: Literal["absolute", "relative"] = "absolute",
        warmup: Steps = 0,
        store_regularisation: bool = True,
        epochs: Count = 1,
        epochs_as: Literal["tempered", "optimiser"] = "tempered",
        block: Count | Literal["auto"] | None = "auto",
        posterior_temperature: NonNegative | Literal["unit"] = 1.0,
        readout: Readout = "exact",
        route: str = "auto",
        memory: Count = 1 << 28,
        group: Group | None = None,
    ):
        super().__init__(model)
        for name, variance in (priors or {}).items():
            check(f"the prior of {name}", variance, Variance)
        self.plain_model = getattr(model, "_orig_mod", model)  # without torch.compile's wrapper
        self.vector = ParameterVector(self.plain_model)
        self.observation: Observation = named("observation", observation)
        self.observation.attach(self.plain_model)
        self.noise: Noise = named("noise", self.observation.default_noise if noise is None else noise)
        self.observation.check_noise(self.noise)
        self.route = make_route(model, self.vector, route, memory)
        covariance = self.route.covariance if covariance == "auto" else covariance
        self.covariance: Covariance = named("covariance", covariance)
        self.distributed = DistributedRoute(self.route, group) if world_size(group) > 1 else None
        broadcast(self.vector.parameters.values(), group)
        power = 1 / epochs if epochs_as == "tempered" else 1.0
        self.weigher = Weigher(named("gate", gate), power, self.noise.adaptive)
        self.prior, self.priors = prior, dict(priors or {})
        iterated = self.covariance.iterations > 1
        default_ratio = self.observation.iterated_ratio if iterated else self.observation.ratio
        self.network = is_network(self.vector, self.priors)
        self.ratio = ratio or default_ratio * (NETWORK if self.network else 1.0)
        self.process_noise, self.fading = process_noise, fading
        self.regularise(rho, rho_as, warmup, store_regularisation)
        self.block, self.memory, self.readout = block, memory, readout
        self.unit_draws = posterior_temperature == "unit"
        self.temperature = 1.0 if posterior_temperature == "unit" else float(posterior_temperature)
        self.steps = 0
        self.prior_variance: float | None = None

    def regularise(
        self, rho: float, rho_as: Literal["absolute", "relative"], warmup: int, store_regularisation: bool
    ) -> None:
        """R-Kalman's shrinkage from now on; the arguments are the constructor's."""
        self.rho, self.warmup, self.store_regularisation = rho, warmup, store_regularisation
        self.rho_scale = 1.0 if rho_as == "absolute" else 0.0  # 0: to be set by the first batch

    # The filter

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        """Conditions on a batch; see the class. log_evidence sums the blocks', each given those before it."""
        check_independent(self.plain_model)
        if self.distributed is None:
            check_finite(inputs, "inputs")
            jacobian = self.route.linearise(inputs)
        else:
            targets = self.distributed.receive(inputs, targets)
            jacobian = self.distributed.linearise(inputs)
        check_finite(jacobian.logits, "logits")
        self.observation.check_targets(jacobian.logits, targets)
        with self._exact():
            first = self.prior_variance is None
            if first and not self._initialise(jacobian, targets):
                measurement = self._measure(jacobian.logits, targets)
                return StepInfo(self._loss(jacobian.logits, targets, measurement), None, {"skipped": 1.0})
            try:
                info = self._condition(targets, jacobian)
                self._shared = None
                if self.lacks_shots():
                    self.keep(inputs if self.distributed is None else self.distributed.shards.gather(inputs))
                return info
            except Exception:
                if first:
                    self.prior_variance = None
                    self.noise.load_state_dict({})
                raise

    def _condition(self, targets: Tensor, jacobian: Jacobian) -> StepInfo:
        """Time update and measurement updates, block by block; all of them, or none."""
        measurement = self._measure(jacobian.logits, targets)
        loss = self._loss(jacobian.logits, targets, measurement)
        images, m = measurement.residual.shape
        slices = joint_slices(images, m, self.block, self.route.images_that_fit(self.memory, m))
        several = len(slices) > 1
        moves_p_first = self.rho > 0 or self.process_noise > 0 or self.fading < 1
        noise = self.noise.state_dict() if self.noise.adaptive else {}
        rho_scale = self.rho_scale
        innovations = []
        try:
            atomic = several or moves_p_first or self.noise.adaptive
            with self.covariance.transaction(jacobian, atomic) as now:
                shrinkage = self._predict(jacobian, measurement)
                whole = now
                for part in slices:
                    if several:
                        now = self._relinearise(whole, part)
                        check_finite(now.logits, "logits")
                        measurement = self._measure(now.logits, targets[part])
                    again = partial(self._relinearise, whole, part)
                    innovations.append(self._update(now, measurement, again, targets[part]))
                    if innovations[-1].moment is not None:
                        self.noise.update(innovations[-1].moment, innovations[-1].seen)
                if shrinkage and not self.store_regularisation:
                    self.covariance.unshrink(shrinkage)
        except Exception as error:
            self.noise.load_state_dict(noise)
            self.rho_scale = rho_scale
            if self.network and isinstance(error, FloatingPointError):
                hint = f"a smaller prior than p₀ = {self.prior_variance:.2g}, or covariance='lowrank', keeps to the range"
                raise FloatingPointError(f"{error}: {hint} in which a network is linear") from error
            raise
        self.steps += 1
        return self._info(loss, innovations, shrinkage)

    def _update(
        self, jacobian: Jacobian, measurement: Measurement, again: Callable[[], Jacobian], targets: Tensor
    ) -> Innovation:
        """Takes one block in. In a network its step is halved until the block is no less likely than before.

        again: linearises the block's images at the θ of now.
        """
        if not self.network:
            return self.covariance.update(jacobian, measurement, self.weigher)
        before = self.vector.gather()
        innovation = self.covariance.update(jacobian, measurement, self.weigher)
        step, weights = self.vector.gather() - before, innovation.weights
        least = weights.dot(measurement.log_likelihood)
        for halvings in range(1, HALVINGS + 1):
            if weights.dot(self._measure(again().logits, targets).log_likelihood) >= least:
                return innovation
            self.vector.assign_(before + step * 0.5**halvings)
        self.vector.assign_(before)
        return innovation

    def _predict(self, jacobian: Jacobian, measurement: Measurement) -> float:
        """Time update, and the shrinkage λ_k = ρ‖HᵀR⁻¹e‖² of this batch (tempered gradient; gates ignored)."""
        if self.fading < 1 or self.process_noise > 0:
            self.covariance.predict(self.fading, self.process_noise)
        if not self.rho:
            return 0.0
        gradient = float(jacobian.gradient_norm2(measurement.score() * self.weigher.power))
        if not self.rho_scale and gradient and self.prior_variance:
            self.rho_scale = 1 / (self.prior_variance * gradient)
        warm = min(1.0, self.steps / self.warmup) if self.warmup else 1.0
        shrinkage = self.rho * warm * self.rho_scale * gradient
        if not math.isfinite(shrinkage):
            raise FloatingPointError("the gradient norm is not finite; step refused")
        if shrinkage:
            self.covariance.shrink(shrinkage)
        return shrinkage

    def _initialise(self, jacobian: Jacobian, targets: Tensor) -> bool:
        """R₀ and P₀ from the first batch; False if its Jacobian is zero and "ratio" has nothing to go by."""
        logits = jacobian.logits
        if self.noise.adaptive:
            outputs = 1 if self.observation.scalar else logits.shape[1]
            self.noise.initialise(self.observation.first_variance(logits.double(), targets), outputs)
        if self.prior == "ratio":
            reference = self.observation.reference(logits, targets, self.noise)
            p0 = p0_by_ratio(jacobian, reference, self.ratio, self.observation.of_softmax, self.priors.keys())
        else:
            p0 = float(self.prior)
        if not 0 < p0 < torch.finfo(self.vector.dtype).max:
            return False
        self.covariance.allocate(self.vector, prior_variances(self.vector, p0, self.priors))
        self.prior_variance = p0
        if self.unit_draws:
            self.temperature = unit_temperature(jacobian, p0, self.priors.keys())
        return True

    # Pieces

    def _relinearise(self, whole: Jacobian, images: slice) -> Jacobian:
        with torch.autocast(self.vector.device.type, enabled=self._autocast):
            return whole.relinearised(images)

    def _exact(self) -> AbstractContextManager[object]:
        """No autocast for the filter's own algebra; the model's forward passes keep the caller's."""
        kind = self.vector.device.type
        self._autocast = torch.is_autocast_enabled(kind)
        return torch.autocast(kind, enabled=False) if self._autocast else nullcontext()

    def _measure(self, logits: Tensor, targets: Tensor) -> Measurement:
        return self.observation.measure(logits, targets, self.noise)

    def _loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> float:
        loss = float(self.observation.loss(logits, targets, measurement))
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss: {loss}; step refused")
        return loss

    def _info(self, loss: float, innovations: list[Innovation], shrinkage: float) -> StepInfo:
        evidence = float(torch.stack([i.log_evidence for i in innovations]).sum())
        metrics = {"mahalanobis": float(torch.cat([i.mahalanobis for i in innovations]).mean())}
        if self.weigher.gate.active:
            weights = torch.cat([i.weights for i in innovations]) / self.weigher.power
            metrics["gate_weight"] = float(weights.mean())
            metrics["gate_fired"] = float((weights < FIRED).double().mean())
        if self.noise.level is not None:
            metrics["noise"] = self.noise.level
        if self.rho:
            metrics["regularisation"] = shrinkage
        if self.steps == 1 and self.prior_variance is not None:
            metrics["prior_variance"] = self.prior_variance
        return StepInfo(loss, evidence, metrics)

    def monitor(self) -> dict[str, float]:
        """tr P, and how many parameters the images determine so far: Σ_i 1 − P_ii/p₀ (MacKay 1992), of n.

        The latter where P only ever shrinks from p₀ I: no time update, no variances of single parameters.
        """
        trace = None if self.prior_variance is None else self.covariance.trace()
        if trace is None or self.prior_variance is None:
            return {}
        if self.priors or self.process_noise or self.fading < 1:
            return {"trace": trace}
        return {"trace": trace, "effective_parameters": self.vector.size - trace / self.prior_variance}

    def describe(self) -> dict[str, str]:
        parts = {"covariance": self.covariance, "observation": self.observation}
        parts |= {"noise": self.noise, "gate": self.weigher.gate}
        names = {kind: type(part).__name__ for kind, part in parts.items()}
        return {**super().describe(), "route": self.route.name, **names}

    # State

    def extra_state(self) -> dict[str, Any]:
        started = self.prior_variance is not None
        return {
            "steps": self.steps,
            "network": self.network,
            "prior_variance": self.prior_variance,
            "temperature": self.temperature,
            "rho_scale": self.rho_scale,
            "covariance": self.covariance.state_dict() if started else {},
            "noise": self.noise.state_dict(),
            "anchors": self.anchors,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.prior_variance = state["steps"], state["prior_variance"]
        self.rho_scale, self.temperature = state["rho_scale"], state["temperature"]
        self.network = state.get("network", False)
        self.anchors, self._shared = state.get("anchors"), None
        self.noise.load_state_dict(state["noise"])
        if self.prior_variance is not None:
            self.covariance.load_state_dict(state["covariance"], self.vector)


def joint_slices(images: int, m: int, block: int | Literal["auto"] | None, most: int | None) -> list[slice]:
    """The slices of a batch that are taken one after the other.

    m: outputs an image.
    block: images a slice, None for all of them, or "auto": as many as keep a slice cheap.
    most: images whose Jacobian rows fit into memory, for "auto"; None where rows are not formed.
    """
    if block == "auto":
        few = max(1, min(8, LARGEST_SOLVE // m))
        cheap = few if most is None else min(max(1, most), 64 if m == 1 else few)
        block = min(images, cheap)
    size = block or images
    return [slice(start, min(start + size, images)) for start in range(0, images, size)]
