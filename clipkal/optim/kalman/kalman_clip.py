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

from typing import Any

from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.observation import MahalanobisSoft, ResidualNoise


class KalmanCLIP(KalmanFilter):
    """Kalman fine-tuning of CLIP (arXiv 2511.01694): one similarity an image with target 1, adaptive R, Mahalanobis.

    Args:
        model: see `KalmanFilter`.
        beta: forgetting factor of R an image.
        quantile: of the χ² distribution, above which an image's noise is inflated.
        settings: any other of `KalmanFilter`, which override the paper's.
    """

    def __init__(self, model: nn.Module, beta: float = 0.9995, quantile: float = 0.99, **settings: Any):
        noise, gate = ResidualNoise(beta=beta), MahalanobisSoft(quantile)
        ours = {"observation": "softmax", "noise": noise, "gate": gate, "covariance": "diagonal"}
        super().__init__(model, **{**ours, "block": None, "epochs_as": "optimiser", **settings})
