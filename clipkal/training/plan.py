"""What training is asked for and what it gives, and what it needs of others: a task, a saver of checkpoints, listeners."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from clipkal.adapters import Adapter
from clipkal.data.sets import LabelledSet
from clipkal.optim.base import BatchOptimizer, StepInfo
from clipkal.optim.posterior import Posterior

Build = Callable[[Adapter, float | None], BatchOptimizer]
State = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long and in what portions to learn.

    rates: learning rates to try; [None] for an optimiser without one.
    epochs: passes over the shots; batch_size: images a step, 0 = all at once.
    schedule: cosine (to zero over the epochs) or constant.
    keep: best = the epoch with the lowest validation NLL, epoch 0 (zero-shot) included; last = the final one.
    members: of an ensemble, 1 for a single model.
    validate_every: passes from one look at the validation images to the next, at most 1. Looks within a pass are for the
        curves: what is kept is chosen after whole passes.
    """

    rates: tuple[float | None, ...] = (None,)
    epochs: int = 1
    batch_size: int = 0
    schedule: str = "constant"
    keep: str = "last"
    seed: int = 1
    members: int = 1
    validate_every: float = 1.0

    @property
    def trials(self) -> int:
        """How many there are: all rates of the first member, then of the next."""
        return self.members * len(self.rates)

    def member(self, trial: int) -> int:
        """Which member a trial belongs to."""
        return trial // len(self.rates)

    def rate(self, trial: int) -> float | None:
        """The learning rate of a trial."""
        return self.rates[trial % len(self.rates)]


@dataclass
class Trial:
    """One learning rate's outcome: the kept epoch, its validation NLL (None without validation images) and the curve.

    A point of the curve stands after an epoch, or after a part of one where `Plan.validate_every` asks for that: `epoch` is then
    no whole number, and the means are those of the images so far in the epoch.
    """

    rate: float | None
    epoch: int
    val_nll: float | None
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Training:
    """What training gives.

    trials: every learning rate's outcome, member by member; kept: the one whose parameters are in the adapter now (of an
        ensemble: that of the first member).
    optimizer: of the last trial.
    seconds: spent by this process.
    last_step: what the optimiser reported of its last step and of its conclusion (prior, evidence, …).
    """

    trials: list[Trial]
    kept: Trial
    optimizer: BatchOptimizer
    seconds: float
    last_step: dict[str, float] = field(default_factory=dict)

    @property
    def posterior(self) -> Posterior | None:
        """What the optimiser knows of the logits, where it is Bayesian."""
        return self.optimizer.posterior


class LearningTask(Protocol):
    """The part of a few-shot task, seen through a backbone, that training needs."""

    @property
    def shots(self) -> LabelledSet:
        """What is learnt from."""
        ...

    @property
    def val(self) -> LabelledSet | None:
        """What chooses among learning rates and epochs."""
        ...


class Saver(Protocol):
    """Decides after every step whether to write a checkpoint, and ends the run when a signal asked for it."""

    def restore(self) -> State | None:
        """What an interrupted run of the same settings saved last."""
        ...

    def after_step(self, state: Callable[[], State]) -> None:
        """Saves what `state` gives, if it is time to."""
        ...


class Report(Protocol):
    """Hears about every point of a trial's curve, `seconds` among its values: those that the trial has spent in steps so far.

    Of a finished epoch also the `curve_values` of its last step.
    """

    def __call__(self, trial: int, epoch: float, values: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Where a trial stands after a step: how many of its `steps` are done, and what it has seen in them.

    `batch`: images of that step; `images`: of all steps so far; `epoch`: passes over the shots so far. `optimizer`: as the
    step left it.
    """

    step: int
    steps: int
    epoch: float
    images: int
    batch: int
    optimizer: BatchOptimizer


Watch = Callable[[Progress, StepInfo], None]
"""Hears about every step."""
