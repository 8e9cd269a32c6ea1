"""Rows of predictions, written while they come in: to a file, whole or absent, or to the terminal."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from rich.table import Table
from rich.text import Text

from clipkal import files
from clipkal.commandline import console, say
from clipkal.errors import ConfigError
from clipkal.tracking.writing import printable, valid, writing

Columns = Mapping[str, list[Any]]
SHOWN = 40  # rows of the table on a terminal
ENDINGS = (".csv", ".jsonl", ".parquet")


class Writer(Protocol):
    """Takes portions of rows, all with the same columns; `begun`: whether there was one."""

    begun: bool

    def write(self, columns: Columns) -> None:
        """Adds rows."""
        ...

    def close(self) -> None:
        """Ends the table or file."""
        ...


@contextmanager
def writer(out: Path | None) -> Iterator[Writer]:
    """A file of predictions by its ending; without one a table on a terminal, else CSV on standard output.

    A file appears when all is written. Where the work is stopped (KeyboardInterrupt) it holds what was done by then.
    Raises ConfigError for another ending.
    """
    if out is None:
        terminal = console()
        with _ended(_Terminal(terminal) if terminal.is_terminal else _Csv(sys.stdout)) as found:
            yield found
        return
    check_ending(out)
    kinds: dict[str, Callable[[Path], Writer]] = {
        ".csv": _csv_file,
        ".jsonl": _JsonLines,
        ".parquet": _Parquet,
    }
    stopped: KeyboardInterrupt | None = None
    with writing(out, "write to another folder"), files.atomic_path(out) as temporary:
        made = kinds[out.suffix.lower()](temporary)
        try:
            with _ended(made):
                yield made
        except KeyboardInterrupt as error:
            if not made.begun:
                raise
            stopped = error
    if stopped is not None:
        raise stopped


@contextmanager
def _ended(made: Writer) -> Iterator[Writer]:
    """Closes the writer at the end of the block, also where that is stopped."""
    try:
        yield made
    except KeyboardInterrupt:
        made.close()
        raise
    made.close()


def check_ending(out: Path) -> None:
    """Raises ConfigError for a file of predictions of an unknown kind."""
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--out {out}: must end in {', '.join(ENDINGS)}")


class _Terminal:
    """The first rows as a table, and how many more there are."""

    def __init__(self, terminal: Any):
        self.terminal, self.count, self.begun = terminal, 0, False
        self.rows: list[tuple[Any, ...]] = []
        self.names: list[str] = []

    def write(self, columns: Columns) -> None:
        self.names, self.begun = list(columns), True
        rows = list(zip(*columns.values(), strict=True))
        self.rows += rows[: max(0, SHOWN - len(self.rows))]
        self.count += len(rows)

    def close(self) -> None:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in self.names:
            text = name == "image" or name.startswith(("class", "set"))
            how: dict[str, Any] = (
                {"overflow": "fold"} if text else {"justify": "right", "min_width": len("0.123")}
            )
            table.add_column(name, **how)
        for row in self.rows:
            style = "dim" if "accepted" in self.names and not row[self.names.index("accepted")] else ""
            table.add_row(*(Text(_cell(value), style) for value in row))
        least = sum(column.min_width or 8 for column in table.columns) + 2 * len(table.columns)
        self.terminal.print(table, width=max(self.terminal.width, least), crop=False)
        if self.count > len(self.rows):
            say(
                self.terminal,
                f"… and {self.count - len(self.rows):,} more; --out FILE.csv keeps them all",
                "dim",
            )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(printable, value))
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


class _Csv:
    def __init__(self, file: IO[str]):
        self.file, self.writer, self.begun = file, csv.writer(file, lineterminator="\n"), False

    def write(self, columns: Columns) -> None:
        if not self.begun:
            self.writer.writerow(columns)
            self.begun = True
        listed = [[_text(value) for value in column] for column in columns.values()]
        self.writer.writerows(zip(*listed, strict=True))

    def close(self) -> None:
        if self.file is not sys.stdout:
            self.file.close()
        else:
            self.file.flush()


def _csv_file(path: Path) -> _Csv:
    return _Csv(path.open("w", encoding="utf-8", newline=""))


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return "|".join(map(valid, value))
    return valid(value) if isinstance(value, str) else value


class _JsonLines:
    def __init__(self, path: Path):
        self.file, self.begun = path.open("w", encoding="utf-8"), False

    def write(self, columns: Columns) -> None:
        self.begun = True
        for row in zip(*columns.values(), strict=True):
            self.file.write(
                json.dumps(dict(zip(columns, map(_text_or_list, row), strict=True)), ensure_ascii=False)
                + "\n"
            )

    def close(self) -> None:
        self.file.close()


def _text_or_list(value: Any) -> Any:
    return [valid(one) for one in value] if isinstance(value, list) else _text(value)


class _Parquet:
    def __init__(self, path: Path):
        self.path, self.begun = path, False
        self.made: Any = None

    def write(self, columns: Columns) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.begun = True
        arrays = {
            name: pa.array(map(_text_or_list, column), pa.list_(pa.string()) if name == "set" else None)
            for name, column in columns.items()
        }
        table = pa.table(arrays)
        self.made = self.made or parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        self.made.write_table(table)

    def close(self) -> None:
        if self.made is not None:
            self.made.close()
