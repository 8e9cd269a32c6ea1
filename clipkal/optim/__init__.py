"""Optimisers that take a batch in: Kalman filters, gradient-regularised natural gradients, baselines.

Usable on any `nn.Module`; this room knows nothing of CLIP, Hydra or W&B. Everything is a `BatchOptimizer`:
`step(inputs, targets) -> StepInfo`. The Bayesian ones are also posteriors: `logit_samples(inputs, n, generator)`.
`KalmanFilter` takes its parts by name (observation, noise, gate, covariance); `Kalman`, `RKalman`, `LoKO` and `KalmanCLIP`
are those choices of parts that have a name of their own (presets.py).
"""

from clipkal.optim.base import BatchOptimizer, FirstOrder, StepInfo
from clipkal.optim.full_kalman import FunctionSpaceFilter
from clipkal.optim.model.jacobian import BilinearModel
from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.natural_gradient.kfac import KFAC
from clipkal.optim.kalman.presets import Kalman, KalmanCLIP, LoKO, RKalman
from clipkal.optim.natural_gradient.reng import RENG
from clipkal.optim.natural_gradient.ring import RING

__all__ = [
    "KFAC",
    "RENG",
    "RING",
    "BatchOptimizer",
    "BilinearModel",
    "FirstOrder",
    "FunctionSpaceFilter",
    "Kalman",
    "KalmanCLIP",
    "KalmanFilter",
    "LoKO",
    "RKalman",
    "StepInfo",
]
