"""clipkal: few-shot fine-tuning of CLIP with Bayesian Kalman natural gradients, and honest uncertainty about it."""

__version__ = "0.2.0"
