"""Optimisers that take a batch in: Kalman filters, gradient-regularised natural gradients, baselines.

Usable on any `nn.Module`; this package knows nothing of CLIP, Hydra or W&B. Everything is a `BatchOptimizer`:
`step(inputs, targets) -> StepInfo`. The Bayesian ones have a `Posterior`: `logit_samples(inputs, n, generator)`.
`KalmanFilter` takes its parts by name (observation, noise, gate, covariance); `OnlineKalman`, `RKalman`, `LoKO` and `KalmanCLIP`
are those choices of parts that have a name of their own (kalman/, one file each).
"""

from clipkal.optim.base import BatchOptimizer, StepInfo
from clipkal.optim.first_order import SAM, SGD, Adagrad, AdamW, FirstOrder, Sophia
from clipkal.optim.full_kalman import Kalman
from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.kalman_clip import KalmanCLIP
from clipkal.optim.kalman.loko import LoKO
from clipkal.optim.kalman.online import OnlineKalman
from clipkal.optim.kalman.rkalman import RKalman
from clipkal.optim.model.bilinear import BilinearModel
from clipkal.optim.natural_gradient.kfac import KFAC
from clipkal.optim.natural_gradient.reng import RENG
from clipkal.optim.natural_gradient.ring import RING
from clipkal.optim.posterior import Posterior
from clipkal.optim.references import TFB, Ensemble, LaplaceAdamW

__all__ = [
    "KFAC",
    "RENG",
    "RING",
    "SAM",
    "SGD",
    "TFB",
    "Adagrad",
    "AdamW",
    "BatchOptimizer",
    "BilinearModel",
    "Ensemble",
    "FirstOrder",
    "Kalman",
    "KalmanCLIP",
    "KalmanFilter",
    "LaplaceAdamW",
    "LoKO",
    "OnlineKalman",
    "Posterior",
    "RKalman",
    "Sophia",
    "StepInfo",
]
