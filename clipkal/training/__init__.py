"""Learning from the shots: `train` runs the trials of a `Plan` and leaves the best model in the adapter."""

from clipkal.training.loop import train
from clipkal.training.plan import Build, Plan, Progress, State, Training
from clipkal.training.scores import validation_scores

__all__ = ["Build", "Plan", "Progress", "State", "Training", "train", "validation_scores"]
