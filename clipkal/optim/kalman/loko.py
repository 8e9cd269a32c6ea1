"""`loko`: the low-rank Kalman optimiser (LoKO, arXiv 2410.11551), here for any trainable parameters.

    paper                                                  computed by
    P = diag(p), static parameters, no process noise       covariance/diagonal.py `Diagonal`
    ŷ_k = h(x_k, θ),  H_k = ∂h/∂θ                          observation.py `Probs.outputs`, model/layers.py `HookJacobian.pull`
    K_k = p ∘ H_kᵀ (H_k (p ∘ H_kᵀ) + R_k)⁻¹                update.py `Measurement.condition`
    θ ← θ + K_k (y_k − ŷ_k)                                model/jacobian.py `Jacobian.diagonal_update`, `move`
    p ← p ∘ (1 − diag(K_k H_k))                            the same, and covariance/diagonal.py `fall_`
    R_k = β R_{k−1} + (1 − β) R̂_k                          observation.py `ResidualNoise.update`
    one image at a time, one epoch                         filter.py `KalmanFilter.step` with block=1

Paper: the diagonal covariance, static parameters, an exponential moving average of R, batches of one image and one epoch;
it means the parameters of LoRA. Ours: class probabilities as the output h, R̂ = ε εᵀ + H P⁺ Hᵀ from posterior residuals ε
and full C × C, an R₀ that counts one more image (`Observation.first_variance`), P₀ by the ratio rule (prior.py).
"""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.observation import ResidualNoise
from clipkal.optim.kalman.posterior import Readout
from clipkal.optim.parallel.shards import Group
from clipkal.settings import Fraction, NonNegative, Variance, checked


class LoKO(KalmanFilter):
    """LoKO (arXiv 2410.11551): diagonal P in the gain form, R an exponential moving average, one image at a time.

    Args:
        model: see `KalmanFilter`.
        beta: forgetting factor of R an image.
        observation: "probs", the paper's class probabilities; "softmax", of the true class only: one number an image, for
            very many classes.
        prior, ratio, posterior_temperature, readout, priors, group: see `KalmanFilter`.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        beta: Fraction = 0.9995,
        observation: Literal["probs", "softmax"] = "probs",
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
            noise=ResidualNoise(beta=beta, shape="full"),
            covariance="diagonal",
            block=1,
            prior=prior,
            ratio=ratio,
            posterior_temperature=posterior_temperature,
            readout=readout,
            priors=priors,
            group=group,
        )
