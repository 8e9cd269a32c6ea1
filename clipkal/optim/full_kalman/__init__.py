"""The full-covariance Kalman filter of a bilinear model, in function space: Gaussian-process classification.

filter.py            `Kalman`: its equations; batches in, MAP and posterior out
problem.py           softmax and linear model in the few coordinates the data can see
mode.py              the MAP: Newton's method, nonlinear and linear conjugate gradients
evidence.py          the Laplace evidence; log-determinants by Cholesky or Lanczos
hyperparameters.py   p₀ and temperature: cross-validation, evidence, ratio
posterior.py         samples, covariances, checkpoints, other classes
"""

from clipkal.optim.full_kalman.filter import Kalman

__all__ = ["Kalman"]
