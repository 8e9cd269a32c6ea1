"""Uncertainty: from logits, draws of them or a Gaussian over them to a `Prediction`.

A `Predictive` is how that is done (predictives/, one file each); `predict` streams whole sets through several of
them, of which a `Reader` knows the logits. `plugin`, `sampled`, `probit`, `laplace_bridge` and `monte_carlo` are the
same as functions of tensors. `fit_temperature` is the baseline all of them must beat. Everything is float64 and in nats.
"""

from clipkal.uncertainty.chunk import Chunk, View
from clipkal.uncertainty.gaussian import monte_carlo
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Accumulator, Predictive
from clipkal.uncertainty.predictives.laplace_bridge import LaplaceBridge, laplace_bridge
from clipkal.uncertainty.predictives.novelty import Novelty
from clipkal.uncertainty.predictives.plugin import Plugin, plugin
from clipkal.uncertainty.predictives.probit import Probit, probit
from clipkal.uncertainty.predictives.range_matched import RangeMatched
from clipkal.uncertainty.predictives.sampled import SampleAverage, Sampled, sampled
from clipkal.uncertainty.predictives.tempered import Tempered
from clipkal.uncertainty.reader import Reader
from clipkal.uncertainty.streaming import Images, predict
from clipkal.uncertainty.temperature import fit_temperature, minimise_nll

__all__ = [
    "Accumulator",
    "Chunk",
    "Images",
    "LaplaceBridge",
    "Novelty",
    "Plugin",
    "Prediction",
    "Predictive",
    "Probit",
    "RangeMatched",
    "Reader",
    "SampleAverage",
    "Sampled",
    "Tempered",
    "View",
    "fit_temperature",
    "laplace_bridge",
    "minimise_nll",
    "monte_carlo",
    "plugin",
    "predict",
    "probit",
    "sampled",
]
