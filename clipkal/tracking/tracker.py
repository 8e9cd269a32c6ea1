"""What a run may be mirrored to: one small interface, and a file for each of those who have it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from clipkal.errors import ConfigError

EXTRAS = {"tensorboard": "tensorboard", "trackio": "trackio"}
"""Trackers that are optional, and the package that each needs; the extra has the tracker's name."""
AXES = ("epoch", "images_seen", "step")
"""What a curve can be drawn over: passes over the shots, images shown, steps of the optimiser."""


class TrackingSettings(Protocol):
    """The keys of conf/tracking/ that are read here."""

    mode: str
    backend: str
    project: str
    entity: str | None
    group: str | None
    job_type: str | None
    tags: list[str]
    notes: str | None
    timeout: float


@dataclass
class RunIdentity:
    """What a run is filed under.

    Attributes:
        run: dataset, backbone, method, shots, seed; they become name, group and tags.
        config: the resolved configuration.
        axis: what the training curves are drawn over unless one asks for another of `AXES`.
        job_type: train, evaluate or report.
    """

    run_id: str
    directory: Path
    run: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    axis: str = "epoch"
    job_type: str = "train"

    @property
    def name(self) -> str:
        """`<dataset>-<backbone>-<method>-<shots>shot-seed<seed>`."""
        return "-".join(part for part in (self.group, self._seed) if part) or self.run_id

    @property
    def group(self) -> str:
        """The same without the seed, so that seeds fold into one line."""
        words = [str(self.run[key]) for key in ("dataset", "backbone", "method") if key in self.run]
        return "-".join([*words, *([self._shots] if self._shots else [])])

    @property
    def tags(self) -> list[str]:
        """Dataset, backbone, method, `16shot`, `seed1`."""
        words = [str(self.run[key]) for key in ("dataset", "backbone", "method") if key in self.run]
        return [*words, *(word for word in (self._shots, self._seed) if word)]

    @property
    def _shots(self) -> str:
        return f"{self.run['shots']}shot" if "shots" in self.run else ""

    @property
    def _seed(self) -> str:
        return f"seed{self.run['seed']}" if "seed" in self.run else ""


@dataclass(frozen=True)
class Lines:
    """Curves in one chart.

    Attributes:
        x, y: what the axes are called.
        series: label -> (x values, y values), of one length each.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


class Tracker(Protocol):
    """An open run of a dashboard. Every call may raise or hang: `Mirror` sees to that.

    `url` is where to look at it now, `later` the command that sends or shows it, "" where there is none. `continues`: an
    earlier record of the same run is not continued by this one, which therefore wants all of it.
    """

    url: str | None
    later: str
    continues: bool

    def log(self, values: Mapping[str, float], axes: Mapping[str, float]) -> None:
        """Numbers of one moment, and where that is on the `AXES`."""
        ...

    def config(self, values: Mapping[str, Any]) -> None:
        """Adds to the configuration."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's few headline figures, flat."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell is a number, a text, None or a PIL image."""
        ...

    def lines(self, name: str, chart: Lines) -> None:
        """A chart of the dashboard's own."""
        ...

    def image(self, name: str, path: Path) -> None:
        """A figure that was saved to `path`."""
        ...

    def artifact(self, kind: str, paths: Sequence[Path]) -> None:
        """Files as one versioned artifact of this kind; they are read where they lie."""
        ...

    def finish(self, exit_code: int) -> None:
        """Ends the run."""
        ...


Opened = tuple[Tracker, str, str]
"""A tracker, the mode it is in, and why that is not the wanted one ("" if it is)."""


def opener(backend: str) -> Callable[[TrackingSettings, str, RunIdentity], Opened]:
    """The function (settings, mode, identity) -> `Opened` of a backend; its package is only imported when it is called."""
    if backend == "tensorboard":
        from clipkal.tracking.tensorboard import open_tensorboard as found
    elif backend == "trackio":
        from clipkal.tracking.trackio import open_trackio as found
    else:
        from clipkal.tracking.wandb_tracker import open_wandb as found
    return found


def check_installed(backend: str) -> None:
    """Raises ConfigError, with what to type, where the package of an optional tracker is missing."""
    package = EXTRAS.get(backend)
    if package and find_spec(package) is None:
        raise ConfigError(
            f"tracking={backend} needs the package {package}: pip install 'clipkal[{backend}]', or type tracking=offline"
        )


def flat(values: Mapping[str, Any], prefix: str = "", joint: str = "/") -> dict[str, Any]:
    """Nested names on one level, joined by `joint`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{joint}{key}" if prefix else str(key)
        found |= flat(value, name, joint) if isinstance(value, Mapping) else {name: value}
    return found


def as_markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as Markdown, for dashboards that show text; numbers with four digits."""
    cell = lambda value: f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    lines = [
        columns,
        ["---"] * len(columns),
        *([cell(value).replace("|", "¦") for value in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
