"""`kalman_clip`: Bayesian natural-gradient fine-tuning of CLIP models by a Kalman filter (arXiv 2511.01694).

    paper                                                  computed by
    p(θ_k | B_{1:k}) ∝ p(y_k | B_k, θ) p(θ | B_{1:k−1})    filter.py `KalmanFilter.step`
    ŷ_k = h(B_k, θ) = diag(SC(I, T)),  y_k = 1             observation.py `Softmax.outputs`; `Cosine.outputs`
    p(y_k | B_k, θ) = N(ŷ_k, R_k),  R_k adaptive           observation.py `ResidualNoise`
    S_k = H_k Σ H_kᵀ + R_k;  K_k = Σ H_kᵀ S_k⁻¹            update.py `Measurement.condition`
    μ ← μ + K_k (y_k − ŷ_k);  Σ ← Σ − K_k H_k Σ            covariance/diagonal.py `Diagonal.update`
    regulation by the Mahalanobis distance                 observation.py `MahalanobisSoft.weights`

Paper: one similarity an image with target 1, the batch as one joint observation, adaptive noise, regulation by the
Mahalanobis distance. Ours: the scaled class softmax as the similarity (observation="cosine" is the literal text; it sees no
negatives), a diagonal Σ, a scalar R by a moving average of posterior residuals, a soft gate of each image at a χ² quantile,
d_i² = e_i² / S_ii with R_ii ← R_ii max(1, d_i²/c), and P₀ by the ratio rule (prior.py).
"""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.observation import MahalanobisSoft, Quantile, ResidualNoise
from clipkal.optim.kalman.posterior import Readout
from clipkal.optim.parallel.shards import Group
from clipkal.settings import Count, Fraction, NonNegative, Variance, checked


class KalmanCLIP(KalmanFilter):
    """Kalman fine-tuning of CLIP (arXiv 2511.01694): one similarity an image with target 1, adaptive R, Mahalanobis.

    Args:
        model: see `KalmanFilter`.
        beta: forgetting factor of R an image.
        quantile: of the χ² distribution, above which an image's noise is inflated.
        observation: the similarity: "softmax" over the classes, or "cosine", the literal text.
        block: None, the paper's joint observation of the batch; or as in `KalmanFilter`.
        prior, ratio, posterior_temperature, readout, priors, group: see `KalmanFilter`.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        beta: Fraction = 0.9995,
        quantile: Quantile = 0.99,
        observation: Literal["softmax", "cosine"] = "softmax",
        block: Count | Literal["auto"] | None = None,
        prior: Variance | Literal["ratio"] = "ratio",
        ratio: Variance | None = None,
        posterior_temperature: NonNegative | Literal["unit"] = 1.0,
        readout: Readout = "shots",
        priors: Mapping[str, float] | None = None,
        group: Group | None = None,
    ):
        super().__init__(
            model,
            observation=observation,
            noise=ResidualNoise(beta=beta),
            gate=MahalanobisSoft(quantile),
            covariance="diagonal",
            block=block,
            prior=prior,
            ratio=ratio,
            posterior_temperature=posterior_temperature,
            readout=readout,
            priors=priors,
            group=group,
        )
