"""Uncertainty: from logits, logit samples or a Gaussian over logits to a `Prediction`.

`plugin` is the softmax of one logit vector; `sampled` averages the softmax over posterior draws and splits
the entropy into an aleatoric and an epistemic part; `probit` and `monte_carlo` do the same from a logit
mean and covariance. `fit_temperature` is the baseline all of them must beat. Everything is float64 and in
nats.
"""

from clipkal.uncertainty.gaussian import monte_carlo, probit
from clipkal.uncertainty.prediction import Prediction, plugin
from clipkal.uncertainty.sampled import SampleAverage, sampled
from clipkal.uncertainty.temperature import fit_temperature, minimise_nll

PREDICTIVES = ("plugin", "sampled", "probit")
"""Names of the predictives, as in the configuration and in results.json."""

__all__ = [
    "PREDICTIVES",
    "Prediction",
    "SampleAverage",
    "fit_temperature",
    "minimise_nll",
    "monte_carlo",
    "plugin",
    "probit",
    "sampled",
]
