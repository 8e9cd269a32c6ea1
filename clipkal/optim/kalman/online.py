"""`kalman_online`: the extended Kalman filter on cross-entropy, one pass over the shots, a block of images at a time.

    papers                                                 computed by
    R = diag(π) − ππᵀ, H = R ∂logits/∂θ                    categorical.py `Categorical.measure`, model/bilinear.py
    S = H P Hᵀ + R, K = P Hᵀ S⁻¹ (for R = Q Qᵀ whitened)   categorical.py `condition_rows`
    θ_{i+1} = θ + K_i (y − π_i − H_i (θ − θ_i)), i = 1, …   categorical.py `Ascent`
    θ ← θ + K e;  P ← P − K H P                            covariance/subspace.py `Subspace`

Papers: with R of the categorical likelihood an extended Kalman step is an online natural-gradient step on cross-entropy
(Ollivier 2018, arXiv 1703.00209); iterating it is Gauss–Newton on the block (Bell & Cathey 1993). Ours: the logit-space form,
P diagonal in the basis of the data (models that are not bilinear: in the parameters' own axes, linearised once), unlikely
classes merged, P₀ by the ratio rule and draws at unit temperature (prior.py), tempering over epochs.
"""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from clipkal.optim.kalman.categorical import Categorical
from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.posterior import Readout
from clipkal.optim.parallel.shards import Group
from clipkal.settings import Count, Fraction, NonNegative, Share, Variance, checked


class OnlineKalman(KalmanFilter):
    """Our best sequential filter: categorical likelihood, iterated updates, a diagonal P in the basis of the data.

    Args:
        model: see `KalmanFilter`.
        merge: see `Categorical`; 0 keeps all classes apart.
        prior, ratio, process_noise, fading, epochs, epochs_as, block, posterior_temperature, readout, priors, group: see
            `KalmanFilter`.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        merge: Fraction = 0.1,
        prior: Variance | Literal["ratio"] = "ratio",
        ratio: Variance | None = None,
        process_noise: NonNegative = 0.0,
        fading: Share = 1.0,
        epochs: Count = 1,
        epochs_as: Literal["tempered", "optimiser"] = "tempered",
        block: Count | Literal["auto"] | None = "auto",
        posterior_temperature: NonNegative | Literal["unit"] = "unit",
        readout: Readout = "shots",
        priors: Mapping[str, float] | None = None,
        group: Group | None = None,
    ):
        super().__init__(
            model,
            observation=Categorical(merge),
            covariance="auto",
            prior=prior,
            ratio=ratio,
            process_noise=process_noise,
            fading=fading,
            epochs=epochs,
            epochs_as=epochs_as,
            block=block,
            posterior_temperature=posterior_temperature,
            readout=readout,
            priors=priors,
            group=group,
        )
