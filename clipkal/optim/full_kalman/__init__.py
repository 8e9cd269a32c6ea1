"""The exact Kalman filter of a bilinear model, in function space: Gaussian-process classification with a Kronecker kernel.

filter.py       `Kalman`: batches in, MAP and posterior out
basis.py        the few coordinates the data can see            reduced.py   the linear model and its products there
likelihood.py   the softmax: value, curvature, square root      solve.py     Cholesky, conjugate gradients
descent.py      towards the MAP by nonlinear conjugate gradients    newton.py    to the MAP by Newton's method
hyper.py        p₀ and temperature: crossval.py (held-out shots), evidence.py (Laplace, Lanczos), search.py, settings.py
sampling.py     exact draws by Matheron's rule                  posterior.py draws, covariances, checkpoints
"""

from clipkal.optim.full_kalman.filter import Kalman

__all__ = ["Kalman"]
