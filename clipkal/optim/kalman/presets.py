"""The Kalman family under the names of its papers: a `KalmanFilter` each, every setting of which may be overridden.

No preset claims to be a paper's code: none was found, and the papers' hyper-parameters could not be read.
What is the paper's and what is ours is said for each.
"""

from typing import Any

from torch import nn

from clipkal.optim.kalman.gates import MahalanobisSoft
from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.noise import ResidualNoise


class Kalman(KalmanFilter):
    """Our best sequential filter: categorical likelihood, iterated updates, a diagonal P in the basis of the data.

    Extended Kalman = online natural gradient on cross-entropy (Ollivier 2018, arXiv 1703.00209), iterated per block
    (Bell & Cathey 1993). Ours: the logit-space form, the subspace (models that are not bilinear: the plain diagonal,
    linearised once), unlikely classes merged, P₀ by the ratio rule, draws at unit temperature, tempering over epochs.
    """

    def __init__(self, model: nn.Module, **settings: Any):
        ours = {"observation": "categorical_merged", "covariance": "auto", "temperature": "unit"}
        super().__init__(model, **{**ours, **settings})


class RKalman(Kalman):
    """R-Kalman of Gradient Regularized Natural Gradients (arXiv 2601.18420): λ_k = ρ‖HᵀR⁻¹e‖² shrinks P first.

    The paper's equations could not be read: P̃ = (P⁻¹ + λ_k I)⁻¹ follows from its objective ℓ + ρ/2 ‖∇ℓ‖²,
    and equals a pseudo-observation θ_k = θ_{k−1} + N(0, I/λ_k). Ours: all of `Kalman`, ρ relative to the first
    batch, and λ_k used for the gain only (store_regularisation=True keeps it in P, which then loses plasticity for
    good).
    """

    def __init__(self, model: nn.Module, rho: float = 0.1, **settings: Any):
        ours = {"rho": rho, "rho_as": "relative", "store_regularisation": False}
        super().__init__(model, **{**ours, **settings})


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
