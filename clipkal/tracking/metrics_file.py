"""metrics.csv: step, split, dataset, metric, value; a long table that survives a crash at any byte.

The step is a number that grows; within a pass over the shots it is no whole one.
"""

import csv
import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

from clipkal import files
from clipkal.errors import ClipkalError
from clipkal.tracking.writing import writing

log = logging.getLogger(__name__)

COLUMNS = ("step", "split", "dataset", "metric", "value")
LINE_BREAKS = re.compile(r"[\r\n]+")
Row = tuple[float, str, str, str, float]


class MetricsFile:
    """Appends rows with one unbuffered write each; a write that fails half-way is taken back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows at the end; the values are written so that they read back exactly."""
        data = _lines([(_number(s), *map(str, words), repr(float(v))) for s, *words, v in rows])
        with writing(self.path):
            file = self._open()
            start = file.seek(0, io.SEEK_END)
            try:
                _write_all(file, data)
            except BaseException:
                file.truncate(start)
                raise

    def _open(self) -> FileIO:
        if self._file is None:
            if not self.path.exists():
                files.write_text(self.path, _lines([COLUMNS]).decode())
            self._file = self.path.open("ab", buffering=0)
        return self._file

    def close(self) -> None:
        """Closes the file; the next append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def rows(self) -> list[Row]:
        """Every whole row."""
        if not self.path.exists():
            return []
        return [(_step(row[0]), row[1], row[2], row[3], float(row[4])) for row in self._read()[0]]

    def repair(self) -> None:
        """Drops what a crash left half-written."""
        self._keep(lambda _: True)

    def trim(self, step: float) -> None:
        """Drops rows at or after `step`."""
        self._keep(lambda row: _step(row[0]) < step)

    def _keep(self, wanted: Callable[[list[str]], bool]) -> None:
        if not self.path.exists():
            return
        self.close()
        rows, broken = self._read()
        kept = [row for row in rows if wanted(row)]
        if broken or len(kept) < len(rows):
            with writing(self.path):
                files.write_text(self.path, _lines([COLUMNS, *kept]).decode())

    def _read(self) -> tuple[list[list[str]], int]:
        """The whole rows, and how many broken lines there were (the tail of a crashed run, mostly)."""
        with writing(self.path):
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        *lines, tail = text.split("\n")
        if lines and lines[0] != ",".join(COLUMNS):
            raise ClipkalError(
                f"{self.path} is not a metrics file of clipkal; move it away or set output_dir=…"
            )
        parsed = [_parse(line) for line in lines[1:]]
        rows = [row for row in parsed if row is not None]
        broken = len(parsed) - len(rows) + (tail != "" or not lines)
        if broken:
            log.warning("%s: dropped %d half-written line(s) of a crashed run", self.path, broken)
        return rows, broken


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(
        [LINE_BREAKS.sub(" ", cell) for cell in row] for row in rows
    )
    return buffer.getvalue().encode(errors="backslashreplace")


def _number(step: float) -> str:
    return str(int(step)) if step == int(step) else repr(float(step))


def _step(text: str) -> float:
    """Whole numbers as such; ValueError for what is no number, or not a finite one."""
    step = float(text)
    if not math.isfinite(step):
        raise ValueError(text)
    return int(step) if step.is_integer() else step


def _parse(line: str) -> list[str] | None:
    try:
        (row,) = csv.reader([line], strict=True)
        _step(row[0]), float(row[4])
    except (csv.Error, ValueError, IndexError):
        return None
    return row if len(row) == len(COLUMNS) else None


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
