"""What a filtered model knows: draws and covariances of its logits under θ ~ N(θ̄, P)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.optim.kalman.covariance.diagonal import Covariance
from clipkal.optim.kalman.update import psd_root
from clipkal.optim.linalg import normal
from clipkal.optim.model.jacobian import MOST_ROWS, JacobianRoute, ParameterVector
from clipkal.optim.posterior import Posterior


class LinearisedPosterior(Posterior):
    """The posterior half of `KalmanFilter`. In a data-parallel run every process answers for its own inputs.

    vector: θ̄, the parameters of plain_model.
    prior_variance: None until the first batch.
    temperature: T times P is what draws and covariances are of.
    memory: bytes that draws of θ may take.
    """

    plain_model: nn.Module
    vector: ParameterVector
    covariance: Covariance
    route: JacobianRoute
    memory: int
    prior_variance: float | None
    temperature: float

    @property
    def posterior(self) -> Posterior:
        """Itself."""
        return self

    @torch.no_grad()
    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, B, C] of the logits under θ ~ N(θ̄, T P), joint over classes; images independently.

        They are drawn from their own Gaussian, with the model linearised at θ̄, as the filter saw it: C backward passes, or
        none for a bilinear model. Beyond MOST_ROWS classes θ is drawn and the model called n times: joint over images too.
        Raises RuntimeError before the first batch.
        """
        self._check_started()
        if self.route.images_that_fit(self.memory, 1) is None:
            jacobian = self.route.linearise(inputs)
            with torch.autocast(self.vector.device.type, enabled=False):
                noise = self.covariance.logit_noise(jacobian, n, generator)
            if noise is not None:
                return jacobian.logits + noise.mul_(math.sqrt(self.temperature))
        logits = self.plain_model(inputs)
        if logits.shape[1] > MOST_ROWS:
            return torch.stack([self._logits_at(theta, inputs) for theta in self._samples(n, generator)])
        root = psd_root(self.logit_covariance(inputs)).to(self.vector.dtype)
        noise = normal((n, *logits.shape), root, generator)
        return logits + torch.einsum("bck,nbk->nbc", root, noise).to(logits.dtype)

    @torch.no_grad()
    def logit_covariance(self, inputs: Tensor) -> Tensor:
        """Linearised covariance of the logits T J P Jᵀ of each image, [B, C, C] float64; RuntimeError before the first batch."""
        self._check_started()
        parts = []
        for chunk in inputs.split(self._images_at_once(inputs)):
            jacobian = self.route.linearise(chunk)
            with torch.autocast(self.vector.device.type, enabled=False):
                parts.append(self.covariance.logit_covariance(jacobian))
        return torch.cat(parts).mul_(self.temperature)

    def likelihood_weight(self) -> float | None:
        return 1 / self.temperature if self.temperature > 0 else None

    def joint_over_images(self) -> bool:
        """No: every image is drawn from the Gaussian of its own logits."""
        return False

    def _images_at_once(self, inputs: Tensor) -> int:
        """How many images' Jacobians fit into `memory`; all of them where they need not be formed."""
        rows = self.route.images_that_fit(self.memory, 1)
        return len(inputs) if rows is None else max(1, rows // self.plain_model(inputs[:1]).shape[1])

    def _samples(self, n: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """n draws of θ [n]."""
        mean = self.vector.gather()
        chunk = max(1, self.memory // (mean.element_size() * self.vector.size))
        for start in range(0, n, chunk):
            for deviation in self.covariance.sample(min(chunk, n - start), generator):
                yield torch.add(mean, deviation.to(mean.dtype), alpha=math.sqrt(self.temperature))

    def _logits_at(self, theta: Tensor, inputs: Tensor) -> Tensor:
        return functional_call(self.plain_model, self.vector.unflatten(theta), (inputs,))

    def _check_started(self) -> None:
        if self.prior_variance is None:
            raise RuntimeError("the filter has seen no batch yet, so it has no posterior")
