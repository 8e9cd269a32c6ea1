"""The exact Kalman filter of a bilinear model, in function space."""

from clipkal.optim.function_space.filter import FunctionSpaceFilter

__all__ = ["FunctionSpaceFilter"]
