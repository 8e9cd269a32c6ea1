"""The Kalman filter over the parameters of a model: one loop for every observation, noise, gate and covariance.

    predict   P ← P/λ + q I                                   fading memory, process noise
    shrink    P ← (P⁻¹ + λ_k I)⁻¹, λ_k = ρ‖HᵀR⁻¹e‖²           R-Kalman (arXiv 2601.18420, our reconstruction)
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

from clipkal.optim.base import BatchOptimizer, StepInfo, check_finite, check_finite_everywhere
from clipkal.optim.blocking import Block, joint_slices
from clipkal.optim.checks import check_batch, check_independent, check_settings
from clipkal.optim.covariance import Covariance, make_covariance
from clipkal.optim.distributed import Group, broadcast, world_size
from clipkal.optim.gates import Gate, make_gate
from clipkal.optim.gathering import DistributedRoute
from clipkal.optim.innovation import Innovation, Weigher, summarise
from clipkal.optim.jacobian import BilinearRoute, Jacobian
from clipkal.optim.measurement import Measurement
from clipkal.optim.noise import Noise, make_noise
from clipkal.optim.observation import Gaussian, Observation, make_observation
from clipkal.optim.posterior import LinearisedPosterior
from clipkal.optim.prior import NETWORK, PRIORS, is_network, prior_variances, ratio_prior, unit_temperature
from clipkal.optim.routes import make_route
from clipkal.optim.vector import ParameterVector

# How often the step of a block is halved in a network before the parameters stay where they were.
HALVINGS = 10


class KalmanFilter(LinearisedPosterior, BatchOptimizer):
    """An extended Kalman filter whose state is the model's trainable parameters.

    Args:
        model: any module that maps inputs [B, …] to logits [B, C], images independently. Bilinear models
            (jacobian.py) take the analytic route.
        observation: categorical | categorical_merged | softmax | cosine | logits | probs | gaussian, or an Observation.
        noise: model | fixed | residual | residual_diagonal | residual_full, or a Noise; None: the observation's.
        covariance: diagonal | subspace | lowrank | kronecker | dense, or a Covariance; "auto": subspace, whose updates are
            iterated, for a bilinear model, and diagonal for others.
        gate: none | mahalanobis_hard | mahalanobis_soft | imq, or a Gate.
        prior: the variance p₀ of P₀ = p₀ I, or "ratio": p₀ such that on the first batch the mean over images and
            outputs of diag(H P₀ Hᵀ)/R₀ is `ratio` (None: the observation's default, of a network whose layers move
            together a tenth of it, and there a block's step is halved until the block is no less likely than before:
            the logits are linear in a short range only; with covariance="lowrank" such networks learn best). For the categorical
            observation that is the mean prior variance of the centred logits (Categorical.reference says why).
            A first batch with zero Jacobian is skipped.
        priors: variances of single parameters by name, which override `prior`; log_scale has 0.25.
        process_noise, fading: q ≥ 0 and λ ≤ 1, once a step.
        rho: ρ of R-Kalman; 0 is the plain filter. warmup: steps over which ρ grows linearly from 0.
        rho_as: "absolute", or "relative" to the first batch: λ_k = (ρ/p₀) ‖g_k‖²/‖g_1‖², free of scale.
        store_regularisation: keep λ_k in P (the literal reconstruction), or use it for the gain only.
        epochs, epochs_as: passing over the data E times counts every image E times. "tempered" raises the
            likelihood to the power 1/E (on linear models E passes then equal one), so P stays a posterior;
            "optimiser" keeps the full likelihood: it fits further, and P is too small to be a posterior.
        block: how many images are taken jointly. 1: one after the other, each linearised at the newest θ; None:
            the whole batch in one joint update; "auto": as many as keep a block cheap, at most 8 (64 for one
            scalar an image off the analytic route). Only the joint form is invariant to the batch's order.
        temperature: T of the draws, from N(θ̄, T P); "unit": the T ≤ 1 at which the prior's draws of the logits have
            unit variance on the first batch (prior.py says why).
        route: auto | bilinear | hooks | func. memory: bytes that Jacobian rows may take.
        group: the processes that share each batch where `torch.distributed` is initialised (distributed.py);
            None: all of them. They start from the first one's parameters.

    The step is refused (FloatingPointError) and all is put back if anything is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        observation: str | Observation = "categorical",
        noise: str | Noise | None = None,
        covariance: str | Covariance = "diagonal",
        gate: str | Gate = "none",
        prior: float | Literal["ratio"] = "ratio",
        ratio: float | None = None,
        priors: Mapping[str, float] | None = None,
        process_noise: float = 0.0,
        fading: float = 1.0,
        rho: float = 0.0,
        rho_as: Literal["absolute", "relative"] = "absolute",
        warmup: int = 0,
        store_regularisation: bool = True,
        epochs: int = 1,
        epochs_as: Literal["tempered", "optimiser"] = "tempered",
        block: Block = "auto",
        temperature: float | Literal["unit"] = 1.0,
        route: str = "auto",
        memory: int = 1 << 28,
        group: Group | None = None,
    ):
        check_settings(
            prior, ratio, priors, process_noise, fading, rho, warmup, epochs, epochs_as, block, temperature
        )
        super().__init__(model)
        self.plain_model = getattr(model, "_orig_mod", model)  # without torch.compile's wrapper
        self.vector = ParameterVector(self.plain_model)
        self.observation = make_observation(observation)
        self.noise = self.observation.default_noise() if noise is None else make_noise(noise)
        self.observation.check(self.noise, "log_scale" in self.vector.names)
        self.route = self.batches = make_route(model, self.vector, route, memory)
        if covariance == "auto":
            covariance = "subspace" if isinstance(self.route, BilinearRoute) else "diagonal"
        self.covariance = make_covariance(covariance)
        self.group = group
        if world_size(group) > 1:
            broadcast(self.vector.parameters.values(), group)
            self.batches = DistributedRoute(self.route, self.vector, group)
        power = 1 / epochs if epochs_as == "tempered" else 1.0
        self.weigher = Weigher(make_gate(gate), power, self.noise.adaptive)
        self.prior, self.priors = prior, {**PRIORS, **(priors or {})}
        iterated = self.covariance.iterations > 1
        default_ratio = self.observation.iterated_ratio if iterated else self.observation.ratio
        self.network = not isinstance(self.route, BilinearRoute) and is_network(self.vector, self.priors)
        self.ratio = ratio or default_ratio * (NETWORK if self.network else 1.0)
        self.process_noise, self.fading = process_noise, fading
        self.rho, self.warmup, self.store_regularisation = rho, warmup, store_regularisation
        self.rho_scale = 1.0 if rho_as == "absolute" else 0.0  # 0: to be set by the first batch
        self.block, self.memory = block, memory
        self.unit_draws = temperature == "unit"
        self.temperature = 1.0 if temperature == "unit" else float(temperature)
        self.steps = 0
        self.prior_variance: float | None = None

    # The filter

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        """Conditions on a batch; see the class. log_evidence sums the blocks', each given those before it."""
        check_finite_everywhere(inputs, "inputs", self.group)
        check_independent(self.plain_model)
        if isinstance(self.batches, DistributedRoute):
            targets = self.batches.deal(inputs, targets)
        jacobian = self.batches.linearise(inputs)
        check_batch(jacobian.logits, targets, isinstance(self.observation, Gaussian))
        with self._exact():
            first = self.prior_variance is None
            if first and not self._initialise(jacobian, targets):
                measurement = self._measure(jacobian.logits, targets)
                return StepInfo(self._loss(jacobian.logits, targets, measurement), None, {"skipped": 1.0})
            try:
                return self._condition(inputs, targets, jacobian)
            except FloatingPointError:
                if first:
                    self.prior_variance = None
                    self.noise.load_state_dict({})
                raise

    def _condition(self, inputs: Tensor, targets: Tensor, jacobian: Jacobian) -> StepInfo:
        measurement = self._measure(jacobian.logits, targets)
        loss = self._loss(jacobian.logits, targets, measurement)
        images, m = measurement.residual.shape
        slices = joint_slices(images, m, self.block, self._images_that_fit(m))
        several = len(slices) > 1
        moves_first = self._moves_p_first or self.covariance.grows
        undo = self._undo() if several or moves_first or self.noise.adaptive else None
        try:
            prepared = self.covariance.prepare(jacobian)
            shrinkage = self._predict(jacobian, measurement)
            innovations = []
            for part in slices:
                now = prepared
                if several:
                    now = self._relinearise(jacobian, prepared, inputs, part)
                    measurement = self._measure(now.logits, targets[part])
                again = partial(self._linearise, jacobian, inputs, part)
                innovations.append(self._update(now, measurement, again, targets[part]))
                if innovations[-1].moment is not None:
                    self.noise.update(innovations[-1].moment, innovations[-1].seen)
            self.covariance.settle()
            if shrinkage and not self.store_regularisation:
                self.covariance.unshrink(shrinkage)
        except FloatingPointError as error:
            if undo is not None:
                undo()
            if self.network:
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

    @property
    def _moves_p_first(self) -> bool:
        return self.rho > 0 or self.process_noise > 0 or self.fading < 1

    def _undo(self) -> Callable[[], None]:
        """Remembers the state; what it returns puts it back. An update by itself is atomic and needs none of this."""
        mean = self.vector.gather() if self.covariance.moves_mean else None
        covariance, rho_scale = self.covariance.snapshot(), self.rho_scale
        noise = self.noise.state_dict()

        def put_back() -> None:
            if mean is not None:
                self.vector.assign_(mean)
            self.covariance.restore(covariance)
            self.noise.load_state_dict(noise)
            self.rho_scale = rho_scale

        return put_back

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
            self.noise.initialise(
                self.observation.first_variance(logits.double(), targets, self._scale()),
                1 if self.observation.scalar else logits.shape[1],
            )
        if self.prior == "ratio":
            reference = self.observation.reference(logits, targets, self.noise, self._scale())
            of_softmax = self.observation.of_softmax
            p0 = ratio_prior(jacobian, reference, self.ratio, of_softmax, frozenset(self.priors))
        else:
            p0 = float(self.prior)
        if not 0 < p0 < torch.finfo(self.vector.dtype).max:
            return False
        self.covariance.allocate(self.vector, prior_variances(self.vector, p0, self.priors))
        self.prior_variance = p0
        if self.unit_draws:
            self.temperature = unit_temperature(jacobian, p0, frozenset(self.priors))
        return True

    # Pieces

    def _relinearise(self, whole: Jacobian, prepared: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        known = self.covariance.relinearise(prepared, images)
        if known is None:
            known = self.covariance.prepare(self._linearise(whole, inputs, images))
        check_finite(known.logits, "logits")
        return known

    def _linearise(self, whole: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        with torch.autocast(self.vector.device.type, enabled=self._autocast):
            return self.batches.relinearise(whole, inputs, images)

    def _exact(self) -> AbstractContextManager[object]:
        """No autocast for the filter's own algebra; the model's forward passes keep the caller's."""
        kind = self.vector.device.type
        self._autocast = torch.is_autocast_enabled(kind)
        return torch.autocast(kind, enabled=False) if self._autocast else nullcontext()

    def _measure(self, logits: Tensor, targets: Tensor) -> Measurement:
        return self.observation.measure(logits, targets, self.noise, self._scale())

    def _scale(self) -> float:
        log_scale = getattr(self.model, "log_scale", None)
        return 1.0 if log_scale is None else math.exp(float(log_scale.detach()))

    def _loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> float:
        loss = float(self.observation.loss(logits, targets, measurement))
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss: {loss}; step refused")
        return loss

    def _images_that_fit(self, m: int) -> int | None:
        """Images whose m whitened rows fit into memory; None where rows are not formed."""
        if isinstance(self.route, BilinearRoute):
            return None
        return self.memory // (m * self.vector.size * self.vector.dtype.itemsize)

    def _info(self, loss: float, innovations: list[Innovation], shrinkage: float) -> StepInfo:
        evidence, metrics = summarise(innovations, self.weigher)
        level = self.noise.level()
        if level is not None:
            metrics["noise"] = level
        if self.rho:
            metrics["regularisation"] = shrinkage
        if self.steps == 1 and self.prior_variance is not None:
            metrics["prior_variance"] = self.prior_variance
        return StepInfo(loss, evidence, metrics)

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
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.prior_variance = state["steps"], state["prior_variance"]
        self.rho_scale, self.temperature = state["rho_scale"], state["temperature"]
        self.network = state.get("network", False)
        self.noise.load_state_dict(state["noise"])
        if self.prior_variance is not None:
            self.covariance.load_state_dict(state["covariance"], self.vector)
