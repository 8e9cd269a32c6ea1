"""`loko`: low-rank Kalman optimiser."""

from typing import Any

from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.noise import ResidualNoise


class LoKO(KalmanFilter):
    """LoKO (arXiv 2410.11551): diagonal P in the gain form, R an exponential moving average, one image at a time.

    The paper's: diagonal covariance, static parameters, EMA of R, batch 1 and one epoch (meant for LoRA
    parameters).
    Ours: class probabilities as the output, R̂ from posterior residuals and full C × C, P₀ by the ratio rule.
    """

    def __init__(self, model: nn.Module, beta: float = 0.9995, **settings: Any):
        noise = ResidualNoise(beta=beta, shape="full")
        ours = {"observation": "probs", "noise": noise, "covariance": "diagonal", "block": 1}
        super().__init__(model, **{**ours, "epochs_as": "optimiser", **settings})
