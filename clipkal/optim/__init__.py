"""Optimisers that take a batch in: Kalman filters, gradient-regularised natural gradients, baselines.

Usable on any `nn.Module`; this room knows nothing of CLIP, Hydra or W&B. Everything is a `BatchOptimizer`:
`step(inputs, targets) -> StepInfo`. The Bayesian ones are also posteriors: `logit_samples(inputs, n)`.
"""

from clipkal.optim.base import BatchOptimizer, FirstOrder, StepInfo
from clipkal.optim.jacobian import BilinearModel
from clipkal.optim.kalman import KalmanFilter

__all__ = ["BatchOptimizer", "BilinearModel", "FirstOrder", "KalmanFilter", "StepInfo"]
