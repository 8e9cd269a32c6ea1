"""The Kalman family under the names of its papers: plain constructors, every setting of KalmanFilter may be overridden.

No preset claims to be a paper's code: none was found, and the papers' hyper-parameters could not be read.
What is the paper's and what is ours is said for each.
"""

from typing import Any, Literal

from torch import nn

from clipkal.optim.covariance import Covariance
from clipkal.optim.gates import MahalanobisSoft
from clipkal.optim.jacobian import BilinearRoute
from clipkal.optim.kalman import KalmanFilter
from clipkal.optim.noise import ResidualNoise
from clipkal.optim.observation import Categorical, Observation
from clipkal.optim.vector import ParameterVector

# The ratio rule for iterated updates: chosen by the one-pass log-likelihood of each batch before it is taken in, on real
# features (8 to 53 classes, 4 and 16 shots: best at 10 to 20, flat from 6 to 40).
ITERATED_RATIO = 10.0


def kalman(
    model: nn.Module,
    covariance: str | Covariance | None = None,
    observation: str | Observation = "categorical",
    **settings: Any,
) -> KalmanFilter:
    """Our best sequential filter: categorical likelihood, iterated updates, a diagonal P in the basis of the data.

    Extended Kalman = online natural gradient on cross-entropy (Ollivier 2018, arXiv 1703.00209), iterated per block
    (Bell & Cathey 1993). Ours: the logit-space form, the subspace, unlikely classes merged (merge = 0.1), P₀ by the
    ratio rule, draws at unit temperature, tempering over epochs.

    covariance: None: "subspace" for bilinear models, otherwise "diagonal" with one linearisation and its own ratio.
    """
    if covariance is None:
        plain = getattr(model, "_orig_mod", model)
        covariance = "subspace" if BilinearRoute.fits(plain, ParameterVector(plain)) else "diagonal"
    if observation == "categorical":
        observation = Categorical(merge=0.1)
        if covariance == "subspace" and settings.get("ratio") is None:
            settings["ratio"] = ITERATED_RATIO
    settings.setdefault("temperature", "unit")
    return KalmanFilter(model, observation, covariance=covariance, **settings)


def rkalman(model: nn.Module, rho: float = 0.1, **settings: Any) -> KalmanFilter:
    """R-Kalman of Gradient Regularized Natural Gradients (arXiv 2601.18420): λ_k = ρ‖HᵀR⁻¹e‖² shrinks P first.

    The paper's equations could not be read: P̃ = (P⁻¹ + λ_k I)⁻¹ follows from its objective ℓ + ρ/2 ‖∇ℓ‖²,
    and equals a pseudo-observation θ_k = θ_{k−1} + N(0, I/λ_k). Ours: ρ relative to the first batch, and
    λ_k used for the gain only (store_regularisation=True keeps it in P, which then loses plasticity for
    good).
    """
    settings = {"rho_as": "relative", "store_regularisation": False, **settings}
    return kalman(model, rho=rho, **settings)


def loko(model: nn.Module, beta: float = 0.95, **settings: Any) -> KalmanFilter:
    """LoKO (arXiv 2410.11551): diagonal P in the gain form, R an exponential moving average, one image at a time.

    The paper's: diagonal covariance, static parameters, EMA of R, batch 1 and one epoch (meant for LoRA
    parameters).
    Ours: class probabilities as the output, R̂ from posterior residuals and full C × C, P₀ by the ratio rule.
    """
    noise = ResidualNoise(beta=beta, shape="full")
    ours = {"observation": "probs", "noise": noise, "block": 1, "epochs_as": "optimiser"}
    return KalmanFilter(model, **{**ours, **settings})


def kalman_clip(
    model: nn.Module,
    observation: Literal["softmax", "cosine"] = "softmax",
    beta: float = 0.95,
    quantile: float = 0.99,
    **settings: Any,
) -> KalmanFilter:
    """Kalman fine-tuning of CLIP (arXiv 2511.01694): one similarity an image with target 1, adaptive R, Mahalanobis.

    The paper's: ŷ = diag(SC(I, T)), the batch as one joint observation, adaptive noise and
    Mahalanobis-distance-based regulation. Ours: `softmax` as the similarity (`cosine` is the literal text;
    it sees no negatives), diagonal P, scalar R by EMA of posterior residuals, a soft gate for each image at
    a χ² quantile, P₀ by the ratio rule.
    """
    noise, gate = ResidualNoise(beta=beta), MahalanobisSoft(quantile)
    ours = {"observation": observation, "noise": noise, "gate": gate, "block": None, "epochs_as": "optimiser"}
    return KalmanFilter(model, **{**ours, **settings})
