"""Images listed in a CSV file, as WILDS and many private collections have them.

The columns path, label, split and domain (or what `dataset.columns` calls them) are relative to the file's
folder; only path and label are needed. A path may be made of columns, such as "images/{name}.png", where {row}
is the number of the row from 0. Without a split column, test and val are held out as of a folder.

`dataset.splits` says which rows a set has, where it is not plainly the value of the split column: by a
condition on each column, which is a value, a list of values, or a range "low..high" from low to below high
(numbers as numbers, all else, such as ISO dates, as text; either end may be left out). Sets called train, val
and test are ID, every other one is OOD. Without it, ID is one domain, and every other domain is OOD.
"""

from __future__ import annotations

import csv
import logging
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipkal.data.names import choose, composed, is_text, refuse_missing, shortened, shown
from clipkal.data.rows import ROLES, Rows, class_keys, dataset_of
from clipkal.data.sets import Dataset
from clipkal.data.shifts import with_shifts
from clipkal.data.spec import DataSpec, Shift
from clipkal.data.splits import roles_of
from clipkal.data.tree import file_rows, listed_path
from clipkal.data.walk import refuse_same
from clipkal.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
COLUMNS = ("path", "label", "split", "domain")
Where = Mapping[str, Any]  # column -> condition


def load(spec: DataSpec) -> Dataset:
    """Reads the table at `spec.path`.

    Raises:
        DataError: the file or a column is missing, a path leads out of its folder, or an image is not there.
        ConfigError: `columns` or `splits` ask for what the table has not.
    """
    frame = read_csv(spec.path)
    columns = read_columns(spec, COLUMNS, list(frame.columns))
    chosen = {name: select(frame, where) for name, where in conditions(spec, frame, columns).items()}
    parts = {name: _rows(spec, frame, columns, rows, name) for name, rows in chosen.items()}
    own = dict.fromkeys(path for role in ROLES if role in parts for path in parts[role].ids)
    refuse_same(spec.path.parent, own, set())
    keys = class_keys(spec, (key for rows in parts.values() for key in rows.keys))
    return with_shifts(dataset_of(spec, keys, parts), spec, keys)


def shift_rows(name: str, shift: Shift) -> Rows:
    """The test rows (or val rows, or all without a split column) of an OOD set that is a table with the usual columns."""
    frame = read_csv(shift.path)
    spec = DataSpec(name, "table", shift.path, class_names=shift.class_map)
    columns = read_columns(spec, COLUMNS, list(frame.columns))
    where: dict[str, Any] = {} if shift.domain is None else {columns["domain"]: shift.domain}
    if columns["split"] in frame:
        roles = roles_of(shift.path, frame[columns["split"]].unique())
        where[columns["split"]] = roles.get("test") or roles.get("val") or []
    return _rows(spec, frame, columns, select(frame, where), name)


def read_csv(path: Path) -> pd.DataFrame:
    """A table whose cells are all text, without blanks around it.

    Strict, since a cell in the wrong column is a wrong label: every row has as many cells as the header names, but
    for empty ones at its end, and no two columns have one name.

    Raises:
        DataError: the file is missing, empty, no UTF-8 or no such table; the line is named.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError(f"{path}: no such file; dataset.path must be the .csv that lists the images")
    try:
        header, rows = _cells(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    return pd.DataFrame(rows, columns=header, dtype=str)


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and the rows; raises `ValueError` on what is no table."""
    header: list[str] = []
    rows: list[list[str]] = []
    blanks = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        try:
            for line in reader:
                cells = [cell.strip() for cell in line]
                if not any(cells):
                    continue
                if not header:
                    header = [name or f"Unnamed: {i}" for i, name in enumerate(cells)]
                if len(cells) < len(header) or any(cells[len(header) :]):
                    raise ValueError(f"{len(cells)} cells where the header names {len(header)}")
                if not is_text("".join(cells)):
                    raise ValueError("a NUL in a cell")
                blanks += cells != line
                rows.append(cells[: len(header)])
        except UnicodeDecodeError as error:
            raise ValueError("it is no UTF-8; save it as UTF-8") from error
        except (ValueError, csv.Error) as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    if not header:
        raise ValueError("it is empty")
    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"two columns are called {shown(twice[0])}")
    if blanks:
        log.warning("%s: %d lines have blanks at the end of a cell, which are no part of it", path, blanks)
    return header, rows[1:]


def read_columns(spec: DataSpec, roles: tuple[str, ...], found: list[str]) -> dict[str, str]:
    """Role -> name of its column, in the words of `dataset.columns`.

    Raises:
        ConfigError: `dataset.columns` has a key that is no role, or names a column that is not there.
        DataError: a needed column, the first two roles, is not there.
    """
    for role, column in spec.columns.items():
        choose("dataset.columns:", role, roles, ConfigError)
        for name in _fields(column):
            choose(f"dataset.columns.{role}:", name, [*found, "row"], ConfigError)
    columns = {role: spec.columns.get(role, role) for role in roles}
    for role in roles[:2]:
        if role not in spec.columns and role not in found:
            way_out = f"set dataset.columns.{role}"
            if len(found) == 1 and any(mark in found[0] for mark in ";\t|"):
                way_out = "separate its columns with commas"
            raise DataError(f"{spec.place}: has no column {role!r} (it has {shortened(found)}); {way_out}")
    return columns


def conditions(spec: DataSpec, frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Where]:
    """Which rows each set has: as `dataset.splits` says, else by split and domain."""
    split, domain = columns["split"], columns["domain"]
    if frame.empty:
        raise DataError(f"{spec.place}: has no training images, nor any others: it lists nothing")
    if spec.splits:
        wheres = {
            name: where if isinstance(where, Mapping) else {split: where}
            for name, where in spec.splits.items()
        }
        return {name: where for name, where in wheres.items() if _wanted(name, spec)}
    found: list[str] = list(frame[split].unique()) if split in frame else []
    words = roles_of(spec.place, found, f"words in the column {split!r}")
    roles: dict[str, Where] = {role: {split: of} for role, of in words.items()} or {"train": {}}
    if domain not in frame:
        return roles
    refuse_missing(spec.place, "domain", frame[domain], range(len(frame)))
    domains = list(frame[domain].unique())
    own = choose("dataset.id_domain", spec.id_domain or domains[0], domains)
    others = [name for name in domains if name != own]
    wanted = others if spec.domains is None else spec.domains
    tested = roles.get("test") or roles.get("val") or {}
    return {role: {**where, domain: own} for role, where in roles.items()} | {
        choose("dataset.ood: domain", name, others): {**tested, domain: name} for name in wanted
    }


def _wanted(name: str, spec: DataSpec) -> bool:
    if spec.domains is not None:
        for domain in spec.domains:
            choose("dataset.ood:", domain, list(spec.splits))
    return name in ROLES or spec.domains is None or name in spec.domains


def select(frame: pd.DataFrame, where: Where) -> list[int]:
    """The numbers of the rows that meet every condition, in the table's order.

    Raises:
        ConfigError: a column is not there, or a range of numbers has other ends.
    """
    kept = np.ones(len(frame), dtype=bool)
    for column, condition in where.items():
        choose("dataset.splits: column", column, list(frame.columns), ConfigError)
        kept &= _meets(frame[column], condition)
    return np.flatnonzero(kept).tolist()


def _meets(values: pd.Series, condition: Any) -> np.ndarray:
    if isinstance(condition, str) and ".." in condition:
        import pandas as pd

        low, high = condition.split("..", 1)
        numbers = pd.to_numeric(values, errors="coerce")
        by_number = bool(numbers.notna().all())
        compared = numbers if by_number else values
        met = np.ones(len(values), dtype=bool)
        try:
            if low:
                met &= (compared >= (float(low) if by_number else low)).to_numpy()
            if high:
                met &= (compared < (float(high) if by_number else high)).to_numpy()
        except ValueError as error:
            raise ConfigError(f"dataset.splits: {condition!r} is no range of numbers ({error})") from error
        return met
    wanted = condition if isinstance(condition, list) else [condition]
    return values.isin([str(value) for value in wanted]).to_numpy()


def _rows(
    spec: DataSpec, frame: pd.DataFrame, columns: Mapping[str, str], rows: list[int], name: str
) -> Rows:
    paths = [listed_path(spec.path, one) for one in _paths(frame, columns["path"], rows)]
    keys = [composed(key) for key in frame[columns["label"]].iloc[rows]]
    named = spec.class_names if isinstance(spec.class_names, Mapping) else {}
    where = [f"row {row} ({path})" for row, path in zip(rows, paths, strict=True)]
    refuse_missing(spec.path, "label", ["named" if key in named else key for key in keys], where)
    return file_rows(spec.path.parent, paths, paths, keys, name)


def _paths(frame: pd.DataFrame, pattern: str, rows: list[int]) -> list[str]:
    if "{" not in pattern:
        return frame[pattern].iloc[rows].tolist()
    cells = {field: frame[field].tolist() for field in _fields(pattern) if field != "row"}
    try:
        return [
            pattern.format(**{name: column[row] for name, column in cells.items()}, row=row) for row in rows
        ]
    except (ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"dataset.columns.path={pattern}: is no pattern of columns ({error})") from error


def _fields(pattern: str) -> list[str]:
    """The columns that a column name or a pattern of them stands for."""
    if "{" not in pattern:
        return [pattern]
    try:
        return [field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None]
    except ValueError as error:
        raise ConfigError(f"dataset.columns: {pattern} is no pattern of columns ({error})") from error
