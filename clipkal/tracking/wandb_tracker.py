"""One open W&B run as a tracker: which axis belongs to which numbers, what its summary holds, its charts and artifacts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkal.tracking import wandb_offline
from clipkal.tracking.tracker import AXES, Lines, Opened, RunIdentity, Tracker, TrackingSettings
from clipkal.tracking.wandb_session import open_run

CURVES = ("train/*", "val/*", "posterior/*")
"""Numbers of the learning, drawn over the run's own axis."""
FINAL = ("id/*", "ood/*", "cal/*", "transfer/*")
"""Numbers of the finished run."""
TRIALS = "trials/*"
"""Curves of every learning rate that was tried; they all start at epoch 0, so they overlay."""


def open_wandb(cfg: TrackingSettings, mode: str, identity: RunIdentity) -> Opened:
    """Raises whatever W&B raises when not even an offline run can be opened."""
    earlier = wandb_offline.records(identity.directory)
    run, mode, reason = open_run(cfg, mode, identity, earlier)
    define_metrics(run, identity.axis)
    if continues := mode == "offline" and bool(earlier):
        wandb_offline.set_aside(earlier)
    return WandbTracker(run, mode, identity, continues), mode, reason


def define_metrics(run: Any, axis: str) -> None:
    """Which axis belongs to which numbers. None of them goes to the summary by itself: `WandbTracker.summary` chooses."""
    for name in AXES:
        run.define_metric(name, hidden=True, summary="none")
    for names in CURVES:
        run.define_metric(names, step_metric=axis, summary="none")
    run.define_metric(TRIALS, step_metric="epoch", summary="none")
    for names in FINAL:
        run.define_metric(names, step_metric="step", summary="none")


class WandbTracker(Tracker):
    """A `Tracker` of an open W&B run."""

    def __init__(self, run: Any, mode: str, identity: RunIdentity, continues: bool = False) -> None:
        self._run, self._id = run, identity.run_id
        self.url = getattr(run, "url", None) if mode == "online" else None
        self.later = wandb_offline.sync_line(identity.directory, mode)
        self.continues = continues

    def log(self, values: Mapping[str, float], axes: Mapping[str, float]) -> None:
        self._run.log({**values, **axes})

    def config(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb
        from PIL.Image import Image

        cell = lambda value: wandb.Image(value) if isinstance(value, Image) else value
        self._run.log({name: wandb.Table(columns=list(columns), data=[list(map(cell, row)) for row in rows])})

    def lines(self, name: str, chart: Lines) -> None:
        """W&B's own preset for several lines; its table holds every point."""
        import wandb

        xs, ys = zip(*chart.series.values(), strict=True)
        keys = list(chart.series)
        plot = wandb.plot.line_series(list(map(list, xs)), list(map(list, ys)), keys, chart.title, chart.x)
        self._run.log({name: plot})

    def image(self, name: str, path: Path) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def artifact(self, kind: str, paths: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._id}", type=kind)
        for path in paths:
            artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)
