"""Last-layer Laplace on AdamW: laplace-torch's Kronecker-factored posterior around the linear adapter that AdamW has learnt.

Daxberger et al. (2021), "Laplace Redux", arXiv 2106.14806, with Kronecker factors as Ritter et al. (2018). Theirs is the
posterior of W at the kept W*, of which the frozen towers know nothing:

    P⁻¹ = B ⊗ A + δ I        A = Σ_i f_i f_iᵀ [q, q],   B = mean_i leftᵀ (diag π_i − π_i π_iᵀ) left [p, p]

with δ the prior precision that maximises the Laplace marginal likelihood, found by gradient steps. laplace-torch computes A, B
(through curvlinops) and δ. Ours is only how the logits are read, which are linear in W: with B = U diag(b) Uᵀ, A = V diag(a) Vᵀ,

    W = W* + U (E ∘ S) Vᵀ,   S[k, l] = (b_k a_l + δ)^−½,   E ~ N(0, 1) [p, q]
    Cov[z(x)] = (left U) diag_k(Σ_l S[k, l]² (Vᵀ f)_l²) (left U)ᵀ

so that neither the Jacobian nor P [pq, pq] is formed. W* is AdamW's: early stopping by validation images and weight decay
made it, not the prior with precision δ. That is how the method is used after the fact, and `Kalman` differs in it.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.optim.draws import normal
from clipkal.optim.first_order import AdamW
from clipkal.optim.model.bilinear import is_bilinear
from clipkal.optim.posterior import Posterior
from clipkal.settings import Positive, checked

STEPS = 300
"""Of laplace-torch's search for δ: each moves log δ by about 0.1 at most."""


@dataclass(frozen=True)
class Spread:
    """The covariance of W around W*, in the eigenbases of the two Kronecker factors.

    Attributes:
        left: U [p, p].
        right: V [q, q].
        deviation: S [p, q].
    """

    left: Tensor
    right: Tensor
    deviation: Tensor


class LaplaceAdamW(AdamW, Posterior):
    """`AdamW`, and around the parameters that were kept a Kronecker-factored Laplace posterior.

    Args:
        model: a bilinear model (optim/model/bilinear.py), such as the linear adapter.
        prior_precision: δ, or "marglik": the one with the largest marginal likelihood.
        adamw: the settings of `AdamW`.

    Cost beside AdamW's: C backward passes over the shots, p³ + q³ once; a draw of B images p q + C p q + C q B.

    Raises TypeError for a model that is not bilinear, ImportError where laplace-torch is not installed.
    """

    @checked
    def __init__(
        self, model: nn.Module, prior_precision: Positive | Literal["marglik"] = "marglik", **adamw: Any
    ):
        super().__init__(model, **adamw)
        if not is_bilinear(model):
            raise TypeError("the last layer that Laplace is for is a bilinear model: type adapter=linear")
        _library()  # told now, not after the learning
        self.prior_precision = prior_precision
        self.spread: Spread | None = None

    def conclude(
        self, shots: Iterable[tuple[Tensor, Tensor]], kept: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """Fits the posterior to the shots; reports δ and the log marginal likelihood."""
        inputs, targets = (torch.cat(part) for part in zip(*shots, strict=True))
        laplace = fitted(self.model, inputs, targets, self.prior_precision)
        precision = laplace.posterior_precision
        (left, right), (b, a) = precision.eigenvectors[0], precision.eigenvalues[0]
        deviation = (torch.outer(b.clamp(min=0), a.clamp(min=0)) + precision.deltas[0]).rsqrt()
        self.spread = Spread(left.detach(), right.detach(), deviation.detach())
        return {
            "prior_precision": float(laplace.prior_precision),
            "log_marginal_likelihood": float(laplace.log_marginal_likelihood()),
        }

    @property
    def posterior(self) -> Posterior | None:
        """Itself, once it has been told what was kept."""
        return None if self.spread is None else self

    @torch.no_grad()
    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Logits [n, B, C] of n draws of W, by which all images are seen."""
        left, right, spread = self._turned(inputs)
        noise = normal((n, *spread.deviation.shape), spread.deviation, generator)
        moves = torch.einsum("cp,npq->ncq", left, noise * spread.deviation)
        return self.model(inputs) + torch.einsum("bq,ncq->nbc", right, moves).to(inputs.dtype)

    @torch.no_grad()
    def logit_covariance(self, inputs: Tensor) -> Tensor:
        """Covariance [B, C, C] of the logits, in closed form."""
        left, right, spread = self._turned(inputs)
        variance = right.square() @ spread.deviation.square().T
        return torch.einsum("cp,bp,dp->bcd", left, variance, left)

    def _turned(self, inputs: Tensor) -> tuple[Tensor, Tensor, Spread]:
        """left U [C, p], f V [B, q], and the spread."""
        if self.spread is None:
            raise RuntimeError("nothing has been learnt yet: call conclude(shots, kept) first")
        left, right = self.model.jacobian_factors(inputs)  # type: ignore[operator]
        return (
            left.to(self.spread.left) @ self.spread.left,
            right.to(self.spread.right) @ self.spread.right,
            self.spread,
        )

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "covariance": "Kronecker-factored, laplace-torch"}

    def extra_state(self) -> dict[str, Any]:
        return {} if self.spread is None else dict(vars(self.spread))

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.spread = Spread(**state) if state else None


def fitted(model: nn.Module, inputs: Tensor, targets: Tensor, prior_precision: float | str) -> Any:
    """laplace-torch's `KronLaplace` of a bilinear model at its present weight, in float64."""
    from torch.utils.data import DataLoader, TensorDataset

    weight: Tensor = model.weight.detach()  # type: ignore[operator]
    with torch.no_grad():
        offset = functional_call(model, {"weight": torch.zeros_like(weight)}, (inputs,))
        left, right = model.jacobian_factors(inputs)  # type: ignore[operator]
    net = _Linearised(weight.double(), left.detach().double())
    data = TensorDataset(torch.cat((right, offset), 1).double(), targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = 1.0 if isinstance(prior_precision, str) else prior_precision
        laplace = _library()(net, "classification", prior_precision=known)
        laplace.fit(DataLoader(data, batch_size=len(data)))
        if isinstance(prior_precision, str):
            laplace.optimize_prior_precision(method="marglik", n_steps=STEPS)
    return laplace


class _Linearised(nn.Module):
    """(features, offset) [B, q + C] to logits [B, C], with W as a linear layer, whose Kronecker factors the library knows."""

    left: Tensor

    def __init__(self, weight: Tensor, left: Tensor):
        super().__init__()
        p, q = weight.shape
        self.linear = nn.Linear(q, p, bias=False, dtype=weight.dtype, device=weight.device)
        self.linear.weight.data.copy_(weight)
        self.register_buffer("left", left)

    def forward(self, both: Tensor) -> Tensor:
        width = self.linear.in_features
        return both[:, width:] + self.linear(both[:, :width]) @ self.left.T


def _library() -> Any:
    """laplace-torch's Kronecker-factored posterior."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from laplace import KronLaplace
    except ImportError as error:
        raise ImportError(
            "Laplace needs the package laplace-torch: pip install 'clipkal[laplace]'"
        ) from error
    return KronLaplace
