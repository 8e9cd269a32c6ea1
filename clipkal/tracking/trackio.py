"""trackio: W&B's calls, a local database, no account. Optional: pip install 'clipkal[trackio]'."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from clipkal.tracking.tracker import Lines, Opened, RunIdentity, Tracker, TrackingSettings


def open_trackio(cfg: TrackingSettings, mode: str, identity: RunIdentity) -> Opened:
    """A run in trackio's database ($TRACKIO_DIR). Every mode but disabled is offline."""
    return TrackioTracker(cfg, identity), "offline", ""


class TrackioTracker(Tracker):
    """A `Tracker` of a trackio run; what it draws over is a column of every row."""

    def __init__(self, cfg: TrackingSettings, identity: RunIdentity) -> None:
        import trackio

        self._trackio = trackio
        self.url, self.continues = None, False  # resume="allow" continues the run of this name
        self.later = f"trackio show --project {cfg.project}"
        self._axis = identity.axis
        self._last = 0
        with redirect_stdout(
            io.StringIO()
        ):  # it greets at length; nothing else of the run is at work meanwhile
            self._run = self._init(cfg, identity)

    def _init(self, cfg: TrackingSettings, identity: RunIdentity) -> Any:
        return self._trackio.init(
            project=cfg.project,
            name=f"{identity.name}-{identity.run_id}",
            group=cfg.group or identity.group or None,
            config=dict(identity.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float], axes: Mapping[str, float]) -> None:
        self._last = max(self._last, round(axes.get(self._axis, self._last)))
        places = {name: value for name, value in axes.items() if name != "step"}  # trackio's own word
        self._run.log({**values, **places}, step=self._last)

    def config(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(values)

    def summary(self, values: Mapping[str, Any]) -> None:
        """As a last row: trackio has no summary of its own."""
        numbers = {f"summary/{name}": value for name, value in values.items() if value is not None}
        self._run.log(numbers, step=self._last)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        from PIL.Image import Image

        cell = lambda value: self._trackio.Image(value) if isinstance(value, Image) else value
        data = [[cell(value) for value in row] for row in rows]
        self._run.log({name: self._trackio.Table(columns=list(columns), data=data)}, step=self._last)

    def lines(self, name: str, chart: Lines) -> None:
        """As a table with a row a point: trackio has no chart of several lines over an axis of its own."""
        data = [
            [label, x, y] for label, (xs, ys) in chart.series.items() for x, y in zip(xs, ys, strict=True)
        ]
        self.table(name, ["line", chart.x, chart.y], data)

    def image(self, name: str, path: Path) -> None:
        self._run.log({name: self._trackio.Image(str(path))}, step=self._last)

    def artifact(self, kind: str, paths: Sequence[Path]) -> None:
        """Nothing: the files lie in the run directory, and trackio is as local as they are."""

    def finish(self, exit_code: int) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()
