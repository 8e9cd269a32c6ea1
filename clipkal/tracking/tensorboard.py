"""TensorBoard: event files in the run directory's folder `tensorboard`. Optional: pip install 'clipkal[tensorboard]'."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkal.tracking.tracker import Lines, Opened, RunIdentity, Tracker, TrackingSettings, as_markdown

MOST_ROWS = 200
"""Rows of a table that are shown as text."""


def open_tensorboard(cfg: TrackingSettings, mode: str, identity: RunIdentity) -> Opened:
    """A writer of event files. There is no server: every mode but disabled is offline."""
    return TensorBoardTracker(identity), "offline", ""


class TensorBoardTracker(Tracker):
    """A `Tracker` that writes event files; curves are drawn over the run's own axis."""

    def __init__(self, identity: RunIdentity) -> None:
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        folder = identity.directory / "tensorboard"
        self.url, self.continues = None, False  # a later event file of the same folder continues the curves
        self.later = f"tensorboard --logdir {shlex.quote(str(folder))}"
        self._axis = identity.axis
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", _indented(identity.config))

    def log(self, values: Mapping[str, float], axes: Mapping[str, float]) -> None:
        place = axes.get(self._axis, 0)
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=round(place))

    def config(self, values: Mapping[str, Any]) -> None:
        self._writer.add_text("about", _indented(values))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._writer.add_text("summary", as_markdown(["figure", "value"], values.items()))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """As text; images of the rows are shown beside it, one after the other."""
        from PIL.Image import Image

        words = [[None if isinstance(cell, Image) else cell for cell in row] for row in rows[:MOST_ROWS]]
        self._writer.add_text(name, as_markdown(columns, words))
        for place, image in enumerate(cell for row in rows for cell in row if isinstance(cell, Image)):
            self._add_image(f"{name}/image", image, place)

    def lines(self, name: str, chart: Lines) -> None:
        """One curve a label, over a thousandth of x: TensorBoard's steps are whole numbers."""
        for label, (xs, ys) in chart.series.items():
            for x, y in zip(xs, ys, strict=True):
                self._writer.add_scalar(f"{name}/{label}", y, global_step=round(1000 * x))

    def image(self, name: str, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as figure:
            self._add_image(name, figure, 0)

    def _add_image(self, name: str, image: Any, place: int) -> None:
        import numpy as np

        self._writer.add_image(name, np.asarray(image.convert("RGB")), global_step=place, dataformats="HWC")

    def artifact(self, kind: str, paths: Sequence[Path]) -> None:
        """Nothing: the files lie in the run directory, as the event files do."""

    def finish(self, exit_code: int) -> None:
        self._writer.close()


def _indented(values: Mapping[str, Any]) -> str:
    import json

    return "    " + json.dumps(values, indent=2, default=str).replace("\n", "\n    ")
