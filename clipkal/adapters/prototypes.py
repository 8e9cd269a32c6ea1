"""One prototype a class: the text features themselves are learnt, with the text as their prior mean."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clipkal.adapters.base import Adapter
from clipkal.errors import ConfigError


class PrototypeAdapter(Adapter):
    """logits[i, c] = exp(log_scale) · f_i · (t_c + w_c), with the prototypes' changes W = 0 at the start.

    With a Gaussian over W this is a distribution of class prototypes whose mean before any shot is the text, the idea of
    BayesAdapter (arXiv 2412.09718). Theirs is a Gaussian by variational inference; ours is whatever the optimiser has: with
    `kalman` the Laplace posterior with its full covariance, and one prior variance p₀ by the shots' cross-validation. With `adamw`
    it is a point, the residual of TaskRes (arXiv 2211.10277).

    The classes are learnt, so what is learnt says nothing of others. `LinearAdapter` in the coordinates "classes" spans the same
    functions with nearly the same prior where there are fewer classes than features, and does carry over.

    Args:
        text_features: unit rows T `[C, d]`, frozen.
        logit_scale: CLIP's temperature as a factor, > 0; kept as its logarithm in `log_scale`.

    It is a bilinear model: ∂logits[i, c] / ∂weight[a, b] = left[c, a] · right[i, b], left = exp(log_scale) · I [C, C], right = f.
    """

    prior: Tensor
    log_scale: Tensor

    def __init__(self, text_features: Tensor, logit_scale: float):
        super().__init__()
        text = text_features.detach()
        self.register_buffer("prior", text.clone())
        self.register_buffer("log_scale", text.new_tensor(math.log(logit_scale)))
        self.weight = nn.Parameter(torch.zeros_like(text))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.log_scale.exp() * (inputs @ (self.prior + self.weight).T)

    def zeroshot_logits(self, features: Tensor) -> Tensor:
        return self.log_scale.exp() * (features @ self.prior.T)

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """left `[C, C]` and right `[B, d]` of the Jacobian with respect to `weight`."""
        return self.log_scale.exp() * torch.eye(len(self.prior)).to(self.prior), inputs

    @contextmanager
    def classes(self, text: Tensor) -> Iterator[None]:
        """Raises ConfigError: no prototype was learnt for other classes."""
        raise ConfigError(
            "adapter=prototypes learns a prototype for each of its own classes, so nothing can be transferred to others "
            "(fewshot.transfer, fewshot.subset=base): type adapter=linear"
        )
        yield
