"""`kalman_clip`: Kalman fine-tuning of CLIP."""

from typing import Any

from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.gates import MahalanobisSoft
from clipkal.optim.kalman.noise import ResidualNoise


class KalmanCLIP(KalmanFilter):
    """Kalman fine-tuning of CLIP (arXiv 2511.01694): one similarity an image with target 1, adaptive R, Mahalanobis.

    The paper's: ŷ = diag(SC(I, T)), the batch as one joint observation, adaptive noise and
    Mahalanobis-distance-based regulation. Ours: `softmax` as the similarity (observation="cosine" is the literal text;
    it sees no negatives), diagonal P, scalar R by EMA of posterior residuals, a soft gate for each image at
    a χ² quantile, P₀ by the ratio rule.
    """

    def __init__(self, model: nn.Module, beta: float = 0.9995, quantile: float = 0.99, **settings: Any):
        noise, gate = ResidualNoise(beta=beta), MahalanobisSoft(quantile)
        ours = {"observation": "softmax", "noise": noise, "gate": gate, "covariance": "diagonal"}
        super().__init__(model, **{**ours, "block": None, "epochs_as": "optimiser", **settings})
