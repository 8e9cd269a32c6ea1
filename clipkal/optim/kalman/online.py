"""`kalman_online`: the extended Kalman filter on cross-entropy, one pass over the shots, a block of images at a time."""

from typing import Any

from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter


class OnlineKalman(KalmanFilter):
    """Our best sequential filter: categorical likelihood, iterated updates, a diagonal P in the basis of the data.

    Extended Kalman = online natural gradient on cross-entropy (Ollivier 2018, arXiv 1703.00209), iterated per block
    (Bell & Cathey 1993). Ours: the logit-space form, the subspace (models that are not bilinear: the plain diagonal,
    linearised once), unlikely classes merged, P₀ by the ratio rule, draws at unit temperature, tempering over epochs.
    """

    def __init__(self, model: nn.Module, **settings: Any):
        ours = {"observation": "categorical_merged", "covariance": "auto", "temperature": "unit"}
        super().__init__(model, **{**ours, **settings})
