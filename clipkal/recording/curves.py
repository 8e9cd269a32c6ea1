"""The curves of the learning on a dashboard: named and placed so that those of many runs overlay."""

from collections.abc import Mapping, Sequence

from clipkal.optim.base import StepInfo
from clipkal.tracking import Mirror
from clipkal.training import Progress, Training
from clipkal.training.scores import curve_values, step_figures

NAMES = {
    "train_loss": "train/loss",
    "val_nll": "val/nll",
    "val_accuracy": "val/accuracy",
    "log_evidence": "posterior/log_evidence",
    "seconds": "train/step_seconds",
}
"""What the means of an epoch are called; log_evidence is an image's. And the seconds that the trial has spent in steps so far."""


class Curves:
    """Gives a mirror the curves of one run, over epochs, images seen and steps.

    A run with one trial has `train/*`, `val/*` and `posterior/*`: a point an epoch, or more of them where `validate_every` asks
    for looks at the validation images within epochs, and as many of the steps
    as make at most `points` of the whole run. One that tries several learning rates has `trials/lr-<rate>/*` while it
    goes, and at its end `train/*` and `val/*` of the trial that was kept.

    Set before the training: `images`, how many shots there are, and `rates`, what is tried.
    """

    def __init__(self, mirror: Mirror, points: int) -> None:
        self.mirror, self.points = mirror, points
        self.images = 0
        self.rates: Sequence[float | None] = ()
        self.steps = 0
        self.last_epoch = 0.0

    def epoch(self, trial: int, epoch: float, values: Mapping[str, float]) -> None:
        """The means of an epoch, or of a part of one, named as in metrics.csv."""
        self.last_epoch = epoch
        named = {NAMES.get(name, name): value for name, value in values.items()}
        if len(self.rates) > 1:
            member, place = divmod(trial, len(self.rates))
            rate = f"trials/lr-{self.rates[place]:g}" + (f"-member-{member + 1}" if member else "")
            named = {f"{rate}/{name.replace('/', '_')}": value for name, value in named.items()}
        self._log(named, epoch)

    def step(self, progress: Progress, info: StepInfo) -> None:
        """What a step reported, if it is one of those to be shown. The last of an epoch is a part of the epoch's point."""
        self.steps = progress.step
        every = -(-progress.steps // self.points) if self.points and self.mirror.mode != "disabled" else 0
        if len(self.rates) > 1 or not every or progress.step % every or progress.epoch.is_integer():
            return
        evidence = info.log_evidence
        values = {} if evidence is None else {"posterior/log_evidence": evidence / progress.batch}
        values |= {"train/batch_loss": info.loss, **curve_values(progress.optimizer, step_figures(info))}
        self.mirror.log(values, epoch=progress.epoch, images_seen=progress.images, step=progress.step)

    def kept(self, training: Training | None) -> None:
        """The curve of the kept learning rate, where several were tried."""
        if training is None or len(self.rates) < 2:
            return
        for point in training.kept.curve:
            values = {name: value for name, value in point.items() if name != "epoch"}
            self._log({NAMES.get(name, name): value for name, value in values.items()}, point["epoch"])

    def _log(self, values: Mapping[str, float], epoch: float) -> None:
        self.mirror.log(values, epoch=epoch, images_seen=round(epoch * self.images), step=self.steps)
