"""What a filtered model knows: draws and covariances of its logits under θ ~ N(θ̄, P).

Of a linearised model an image's logits are N(z(x), T J(x) P J(x)ᵀ), and J costs a backward pass for each class. Of a bilinear
model J is there for nothing. For other models there are two ways to read it out (ours):

    exact   Σ(x) = T J(x) P J(x)ᵀ                         C backward passes an image
    shots   Σ    = T mean_i J(x_i) P J(x_i)ᵀ              of some shots x_i, once; then an image costs its logits

With "shots" all images have the covariance that images on average have: how sure the class is still depends on the image
by where its logits are, but not how far the posterior lets these logits move. docs/methods/loko.md says what that costs.
Beyond MOST_ROWS classes the mean is that of the deviations of drawn models, a pass forward for each.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.optim.draws import normal
from clipkal.optim.kalman.covariance.diagonal import Covariance
from clipkal.optim.kalman.update import psd_root
from clipkal.optim.model.jacobian import MOST_ROWS, JacobianRoute, ParameterVector
from clipkal.optim.posterior import Posterior

Readout = Literal["exact", "shots"]
ANCHORS, ANCHOR_ROWS, ANCHOR_DRAWS = 32, 512, 32
"""Shots that are kept for the read-out "shots" at most, backward passes it takes in all (four images at least), and drawn
models where there are too many classes for that."""


class LinearisedPosterior(Posterior):
    """The posterior half of `KalmanFilter`. In a data-parallel run every process answers for its own inputs.

    vector: θ̄, the parameters of plain_model.
    prior_variance: None until the first batch.
    temperature: T times P is what draws and covariances are of.
    memory: bytes that draws of θ may take.
    readout: how a model that is not bilinear is read; "exact" where no shots were kept (an older checkpoint).
    anchors: the shots that are kept for it [k, …].
    """

    plain_model: nn.Module
    vector: ParameterVector
    covariance: Covariance
    route: JacobianRoute
    memory: int
    prior_variance: float | None
    temperature: float
    readout: Readout
    anchors: Tensor | None = None
    # The first anchor's logits, by which classes and θ are known, and a root of Σ
    _shared: tuple[Tensor, Tensor] | None = None

    @property
    def posterior(self) -> Posterior:
        """Itself."""
        return self

    @torch.no_grad()
    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, B, C] of the logits under θ ~ N(θ̄, T P), joint over classes; images independently.

        They are drawn from their own Gaussian, with the model linearised at θ̄, as the filter saw it; see `readout`. Read out
        exactly beyond MOST_ROWS classes, θ is drawn and the model called n times: joint over images too.
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
        if self._by_shots():
            root = self._shared_root().to(logits.dtype)
            return logits + normal((n, len(logits), len(root)), root, generator) @ root
        if logits.shape[1] > MOST_ROWS:
            return torch.stack([self._logits_at(theta, inputs) for theta in self._samples(n, generator)])
        root = psd_root(self.logit_covariance(inputs)).to(self.vector.dtype)
        noise = normal((n, *logits.shape), root, generator)
        return logits + torch.einsum("bck,nbk->nbc", root, noise).to(logits.dtype)

    @torch.no_grad()
    def logit_covariance(self, inputs: Tensor) -> Tensor:
        """Linearised covariance of the logits of each image, [B, C, C] float64; RuntimeError before the first batch."""
        self._check_started()
        if self._by_shots():
            root = self._shared_root()
            return (root.mT @ root).expand(len(inputs), -1, -1)
        return self._exact_covariance(inputs)

    def _exact_covariance(self, inputs: Tensor) -> Tensor:
        parts = []
        for chunk in inputs.split(self._images_at_once(inputs)):
            jacobian = self.route.linearise(chunk)
            with torch.autocast(self.vector.device.type, enabled=False):
                parts.append(self.covariance.logit_covariance(jacobian))
        return torch.cat(parts).mul_(self.temperature)

    def likelihood_weight(self) -> float | None:
        return 1 / self.temperature if self.temperature > 0 else None

    def lacks_shots(self) -> bool:
        """Whether the read-out wants more shots to be kept."""
        kept = 0 if self.anchors is None else len(self.anchors)
        formed = self.route.images_that_fit(self.memory, 1) is not None
        return self.readout == "shots" and kept < ANCHORS and formed

    def keep(self, inputs: Tensor) -> None:
        """Keeps the first ANCHORS shots that are given [b, …]."""
        new = inputs.detach() if self.anchors is None else torch.cat((self.anchors, inputs.detach()))
        self.anchors = new[:ANCHORS].clone()

    def _by_shots(self) -> bool:
        return self.readout == "shots" and self.anchors is not None

    def _shared_root(self) -> Tensor:
        """A root of Σ [k, C], Σ = rootᵀ root, float64; for the classes that the model has now, and kept while it has them."""
        assert self.anchors is not None
        first = self.plain_model(self.anchors[:1])
        if self._shared is None or not torch.equal(self._shared[0], first):
            C = first.shape[1]
            anchors = self.anchors[: max(4, ANCHOR_ROWS // C)]
            if C <= MOST_ROWS:
                root = psd_root(self._exact_covariance(anchors).mean(0)).mT
            else:
                logits = self.plain_model(anchors)
                draws = self._samples(ANCHOR_DRAWS, torch.Generator().manual_seed(0))
                moved = torch.cat([self._logits_at(theta, anchors) - logits for theta in draws])
                root = moved.double() / len(moved) ** 0.5
            self._shared = first, root
        return self._shared[1]

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
