"""What an optimiser knows after learning, where it is Bayesian: a distribution of the logits."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Posterior(ABC):
    """The logits of a model with parameters θ ~ posterior, for the classes that the model has when asked."""

    @abstractmethod
    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the logits, joint over the classes of an image.

        Args:
            inputs: a batch [B, …] as the model takes it.
            n: how many draws.
            generator: a CPU generator, which alone decides which draws; None: torch's own.

        Returns:
            [n, B, C].

        Raises:
            RuntimeError: nothing has been observed yet.
        """

    def logit_covariance(self, inputs: Tensor) -> Tensor:
        """Covariance of the logits of each image, [B, C, C], for inputs [B, …].

        Raises:
            NotImplementedError: this posterior can only be sampled.
            RuntimeError: nothing has been observed yet.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no logit covariance")

    def joint_over_images(self) -> bool:
        """Whether one draw is one function, by which all images are seen; else images are drawn independently."""
        return True

    def likelihood_weight(self) -> float | None:
        """The weight of one image's likelihood in `logit_covariance`: 1, or 1/T for a posterior at temperature T.

        None where there is no covariance, or it is 0.
        """
        return None if type(self).logit_covariance is Posterior.logit_covariance else 1.0
