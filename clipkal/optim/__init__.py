"""Optimisers that take a batch in: Kalman filters, gradient-regularised natural gradients, baselines.

Usable on any `nn.Module`; this room knows nothing of CLIP, Hydra or W&B. Everything is a `BatchOptimizer`:
`step(inputs, targets) -> StepInfo`. The Bayesian ones are also posteriors: `logit_samples(inputs, n, generator)`.
`KalmanFilter` takes its parts by name (observation, noise, gate, covariance); `Kalman`, `RKalman`, `LoKO` and `KalmanCLIP`
are those choices of parts that have a name of their own (presets.py).
"""

from clipkal.optim.base import BatchOptimizer, FirstOrder, StepInfo
from clipkal.optim.function_space import FunctionSpaceFilter
from clipkal.optim.jacobian import BilinearModel
from clipkal.optim.kalman import KalmanFilter
from clipkal.optim.kfac import KFAC
from clipkal.optim.presets import Kalman, KalmanCLIP, LoKO, RKalman
from clipkal.optim.reng import RENG
from clipkal.optim.ring import RING

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
