"""The training loop: trials over learning rates, epochs over shots, checkpoints, and the best model by few-shot validation.

A run is a list of *trials* (one per learning rate; a Kalman filter has no learning rate and so one trial).
Each trial starts from the zero-shot adapter, sees the same batches and is judged by the negative
log-likelihood of the validation images after every epoch; looks at them within an epoch are for the curves alone.
Everything random is a pure function of (seed, epoch), so a run that is killed and resumed gives the same numbers.

An ensemble has several *members*, each with all trials of its own. Member m is what the run's seed + m would have learnt
from the same shots: it sees them in another order. Users who run several seeds draw other validation images as well; here
all but the first member are judged by validation images that are drawn again from the few there are, with replacement (ours).
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.adapters import Adapter
from clipkal.data.sets import LabelledSet
from clipkal.optim.base import BatchOptimizer, StepInfo
from clipkal.training.plan import (
    Build,
    LearningTask,
    Plan,
    Progress,
    Report,
    Saver,
    State,
    Training,
    Trial,
    Watch,
)
from clipkal.training.scores import curve_values, step_figures, validation_scores


def train(
    adapter: Adapter,
    build: Build,
    task: LearningTask,
    plan: Plan,
    saver: Saver | None = None,
    report: Report | None = None,
    watch: Watch | None = None,
) -> Training:
    """Runs every trial of the plan, leaves the best parameters in `adapter` and lets the optimiser conclude.

    Without validation images there must be one rate, and the last epoch is kept. Raises FloatingPointError
    if the kept trial met a loss that is not finite; a diverging trial among several is recorded with an
    infinite NLL and loses.
    """
    started = time.perf_counter()
    start = copy.deepcopy(adapter.state_dict())
    loop = _Loop(adapter, build, task, plan, saver, report, watch)
    state = saver.restore() if saver else None
    first = loop.resume(state) if state else 0
    for index in range(first, plan.trials):
        if not (state and index == first):
            adapter.load_state_dict(start)
            loop.begin(index)
        loop.run(index)
    if len(loop.best) < plan.members:
        raise FloatingPointError(f"every learning rate of {list(plan.rates)} met a loss that is not finite")
    kept = loop.trials[loop.best[0]["trial"]]
    concluded = loop.conclude()
    seconds = time.perf_counter() - started
    return Training(loop.trials, kept, loop.optimizer, seconds, {**loop.last_step, **concluded})


class _Loop:
    """The mutable heart of `train`: everything a checkpoint has to hold."""

    def __init__(
        self,
        adapter: Adapter,
        build: Build,
        task: LearningTask,
        plan: Plan,
        saver: Saver | None,
        report: Report | None,
        watch: Watch | None,
    ):
        self.adapter, self.build, self.task, self.plan = adapter, build, task, plan
        self.saver, self.report, self.watch = saver, report, watch
        self.shots = task.shots
        self.device = next(adapter.parameters()).device
        self.trials: list[Trial] = []
        self.best: dict[int, State] = {}  # of every member so far
        self.epoch = self.position = 0
        self.sums: dict[str, float] = {}  # over the images of this epoch so far
        self.seconds = 0.0  # spent in the steps of this trial
        self.last_step: dict[str, float] = {}

    def begin(self, index: int) -> None:
        """Starts trial `index` from the parameters now in the adapter."""
        rate = self.plan.rate(index)
        self.optimizer = self._built(rate)
        self.trials.append(Trial(rate, 0, None))
        self.epoch, self.position, self.sums, self.last_step, self.seconds = 0, 0, {}, {}, 0.0
        self._judge(index, {})

    def _built(self, rate: float | None) -> BatchOptimizer:
        """The optimiser of a trial, which has been shown the validation set where that is features: no image is read for it."""
        optimizer, val = self.build(self.adapter, rate), self.task.val
        if val is not None and len(val.labels) and isinstance(val.inputs, Tensor):
            optimizer.hold_out(val.inputs.to(self.device), val.labels.to(self.device))
        return optimizer

    def run(self, index: int) -> None:
        """Takes trial `index` from where it stands to its last epoch."""
        try:
            while self.epoch < self.plan.epochs:
                self._pass(index)
        except FloatingPointError:
            if len(self.plan.rates) == 1:
                raise
            self.trials[index].curve.append({"epoch": self.epoch + 1, "train_loss": math.inf})

    def _pass(self, index: int) -> None:
        """Goes once over the shots, from where the pass stands, and judges the parameters after it."""
        seed = self.plan.seed + self.plan.member(index)
        batches = list(self._batches(seed))
        for position in range(self.position, len(batches)):
            self._set_rate(index, (self.epoch + position / len(batches)) / self.plan.epochs)
            chosen = batches[position]
            _seed(_mix(seed, self.epoch * len(batches) + position), self.device)
            inputs, labels = self.shots.inputs[chosen], self.shots.labels[chosen]
            started = time.perf_counter()
            info = self.optimizer.step(inputs.to(self.device), labels.to(self.device))
            self.seconds += time.perf_counter() - started
            self._add(info, len(chosen))
            self.last_step = step_figures(info)
            self.position = position + 1
            if self.watch:
                self.watch(self._progress(len(batches), len(chosen)), info)
            if self._looks(len(chosen)):
                self._point(index, self.epoch + self._seen / len(self.shots.labels), self._means(), {})
            if self.saver:
                self.saver.after_step(lambda: self.state(index))
        means = self._means()
        self.epoch, self.position, self.sums = self.epoch + 1, 0, {}
        self._judge(index, means)

    @property
    def _seen(self) -> int:
        """Images of this epoch so far."""
        count = len(self.shots.labels)
        return min(count, self.position * (self.plan.batch_size or count))

    def _means(self) -> dict[str, float]:
        """Over the images of this epoch so far."""
        return {name: total / self._seen for name, total in self.sums.items()}

    def _looks(self, batch: int) -> bool:
        """Whether the batch that ended now reached the place of a look within the epoch."""
        count = len(self.shots.labels)
        every = max(1, round(self.plan.validate_every * count))
        return self._seen < count and self._seen // every > (self._seen - batch) // every

    def _progress(self, batches: int, batch: int) -> Progress:
        count = len(self.shots.labels)
        done, images = self.epoch * batches + self.position, self.epoch * count + self._seen
        steps = self.plan.epochs * batches
        return Progress(done, steps, images / count, images, batch, self.optimizer)

    def _add(self, info: StepInfo, images: int) -> None:
        """An epoch reports, an image, the loss of every batch before its step and, where there is one, the log evidence."""
        values = {"train_loss": info.loss * images}
        values |= {} if info.log_evidence is None else {"log_evidence": info.log_evidence}
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}

    def _batches(self, seed: int) -> Iterator[Tensor]:
        count = len(self.shots.labels)
        generator = torch.Generator().manual_seed(_mix(seed, self.epoch))
        order = torch.randperm(count, generator=generator)
        yield from order.split(self.plan.batch_size or count)

    def _set_rate(self, index: int, progress: float) -> None:
        rate = self.plan.rate(index)
        if rate is None:
            return
        factor = 0.5 * (1 + math.cos(math.pi * progress)) if self.plan.schedule == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = rate * factor

    def _point(
        self, index: int, epoch: float, means: dict[str, float], step: dict[str, float]
    ) -> float | None:
        """Adds a point to the trial's curve and reports it; returns the validation NLL.

        step: what to report beside it of the last step.
        """
        scores = validation_scores(self.adapter, self.task.val, self.plan.member(index))
        values = {"epoch": float(epoch), **means, **scores}
        self.trials[index].curve.append(values)
        if self.report:
            self.report(index, epoch, {**values, "seconds": self.seconds, **step})
        return scores.get("val_nll")

    def _judge(self, index: int, means: dict[str, float]) -> None:
        """Scores the parameters after an epoch, which had these means, and remembers them if they are to be kept so far."""
        epoch, trial = self.epoch, self.trials[index]
        val_nll = self._point(index, epoch, means, curve_values(self.optimizer, self.last_step))
        if val_nll is None or self.plan.keep == "last":
            kept = epoch == self.plan.epochs
        else:
            kept = trial.val_nll is None or val_nll < trial.val_nll
        if kept:
            trial.epoch, trial.val_nll = epoch, val_nll
            self._remember(index, val_nll)

    def _remember(self, index: int, val_nll: float | None) -> None:
        score = math.inf if val_nll is None else val_nll
        member = self.plan.member(index)
        if member not in self.best or score < self.best[member]["score"]:
            weights = {name: value.clone() for name, value in self.adapter.state_dict().items()}
            self.best[member] = {"score": score, "trial": index, "adapter": weights}

    def conclude(self) -> dict[str, float]:
        """Loads what was kept of the first member, and tells the optimiser what was kept of all."""
        self.adapter.load_state_dict(self.best[0]["adapter"])
        names = [name for name, one in self.adapter.named_parameters() if one.requires_grad]
        kept = [{name: self.best[m]["adapter"][name] for name in names} for m in range(self.plan.members)]
        size = self.plan.batch_size or len(self.shots.labels)
        return self.optimizer.conclude(_Batches(self.shots, size, self.device), kept)

    def state(self, index: int) -> State:
        """Everything that `resume` needs, as plain containers of tensors and numbers."""
        return {
            "trial": index,
            "epoch": self.epoch,
            "position": self.position,
            "images": self._seen,
            "sums": self.sums,
            "seconds": self.seconds,
            "last_step": self.last_step,
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "trials": [vars(trial) for trial in self.trials],
        }

    def resume(self, state: State) -> int:
        """Takes a checkpoint back; returns the trial it stands in."""
        index = int(state["trial"])
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer = self._built(self.plan.rate(index))
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.position = state["epoch"], state["position"]
        best = state["best"]
        self.best = {0: best} if "score" in best else best  # a state from before there were members
        self.sums, self.last_step = state["sums"], state["last_step"]
        self.seconds = state.get("seconds", 0.0)  # absent from a state of before it was counted
        self.trials = [Trial(**trial) for trial in state["trials"]]
        return index


@dataclass(frozen=True)
class _Batches:
    """The shots in their own order, batch by batch, as often as one likes."""

    shots: LabelledSet
    size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.arange(len(self.shots.labels)).split(self.size):
            yield self.shots.inputs[rows].to(self.device), self.shots.labels[rows].to(self.device)


def _seed(seed: int, device: torch.device) -> None:
    """torch.manual_seed for the CPU and the device; for others it would keep a stack trace of every call."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def _mix(seed: int, epoch: int) -> int:
    """A 63-bit seed for the order of one epoch, the same on every machine."""
    return (seed * 1_000_003 + epoch * 7_919 + 12_345) % (2**63 - 1)
