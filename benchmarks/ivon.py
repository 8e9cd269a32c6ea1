"""IVON as a reference of the benchmarks; clipkal itself never imports it, for its licence is the GPL-3.

Shen et al. (2024), "Variational learning is effective for large deep networks", arXiv 2402.17641, by the authors' package
(pip install ivon-opt): a Gaussian with a diagonal covariance, learnt by Adam-like steps at drawn parameters.

Ours, since the defaults are for thousands of steps from scratch: the initial Hessian gives a logit the deviation 1 (a diagonal
start that suits any logit scale), and its running mean forgets in a hundred steps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim import BatchOptimizer, Posterior, StepInfo
from clipkal.optim.base import check_finite

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
FORGETTING = 0.99


class Ivon(Posterior, BatchOptimizer):
    """The package's optimiser, as clipkal's training loop and its predictives want one.

    Args:
        model: a bilinear model. images: N, how many are learnt from. lr: the step.
    """

    def __init__(self, model: nn.Module, images: int, lr: float):
        super().__init__(model, {"lr": lr})
        from ivon import IVON

        left, _ = model.jacobian_factors(torch.zeros(1, model.weight.shape[1]))  # type: ignore[operator]
        curvature = float(left.square().sum(1).mean()) / images
        self.inner: Any = IVON([model.weight], lr=lr, ess=images, hess_init=curvature, beta2=FORGETTING)

    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        loss = F.cross_entropy(self.model(inputs), targets)
        check_finite(loss.detach(), "loss")
        self.inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        with self.inner.sampled_params(train=True):
            self.inner.zero_grad()
            F.cross_entropy(self.model(inputs), targets).backward()
        self.inner.step()
        return StepInfo(float(loss.detach()))

    @property
    def posterior(self) -> Posterior:
        return self

    @torch.no_grad()
    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Logits [n, B, C] of n draws of W; IVON draws from torch's global generator."""
        draws = []
        with torch.random.fork_rng():
            torch.manual_seed(0 if generator is None else generator.initial_seed())
            for _ in range(n):
                with self.inner.sampled_params():
                    draws.append(self.model(inputs))
        return torch.stack(draws)
