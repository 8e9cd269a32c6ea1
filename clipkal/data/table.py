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

import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipkal.data.names import choose
from clipkal.data.rows import ROLES, Rows, dataset_of, in_order
from clipkal.data.sets import Dataset
from clipkal.data.shifts import with_shifts
from clipkal.data.spec import DataSpec, Shift
from clipkal.data.tree import SPLITS, file_rows, refuse_escape
from clipkal.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

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
    parts = {name: _rows(spec.path, frame, columns, rows, name) for name, rows in chosen.items()}
    keys = in_order(key for rows in parts.values() for key in rows.keys)
    return with_shifts(dataset_of(spec, keys, parts), spec, keys)


def shift_rows(name: str, shift: Shift) -> Rows:
    """The test rows (or all, without a split column) of an OOD set that is a table with the usual columns."""
    frame = read_csv(shift.path)
    columns = read_columns(DataSpec(name, "table", shift.path), COLUMNS, list(frame.columns))
    where: dict[str, Any] = {} if shift.domain is None else {columns["domain"]: shift.domain}
    if columns["split"] in frame:
        where[columns["split"]] = [word for word, split in SPLITS.items() if split == "test"]
    return _rows(shift.path, frame, columns, select(frame, where), name)


def read_csv(path: Path) -> pd.DataFrame:
    """A table whose cells are all text.

    Raises:
        DataError: the file is missing, empty or no table.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; dataset.path must be the .csv that lists the images"
        ) from error
    except (OSError, ValueError) as error:  # pandas' own errors and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error


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
            raise DataError(
                f"{spec.place}: has no column {role!r} (it has {', '.join(found)}); set dataset.columns.{role}"
            )
    return columns


def conditions(spec: DataSpec, frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Where]:
    """Which rows each set has: as `dataset.splits` says, else by split and domain."""
    split, domain = columns["split"], columns["domain"]
    if spec.splits:
        wheres = {
            name: {split: where} if isinstance(where, str) else where for name, where in spec.splits.items()
        }
        return {name: where for name, where in wheres.items() if _wanted(name, spec)}
    found: list[str] = list(frame[split].unique()) if split in frame else []
    roles: dict[str, Where] = {}
    for role in ROLES:
        if words := [word for word in found if SPLITS.get(word.lower()) == role]:
            roles[role] = {split: words}
    roles = roles or {"train": {}}
    if domain not in frame:
        return roles
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
        ConfigError: a column is not there.
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
        if low:
            met &= (compared >= (float(low) if by_number else low)).to_numpy()
        if high:
            met &= (compared < (float(high) if by_number else high)).to_numpy()
        return met
    wanted = condition if isinstance(condition, list) else [condition]
    return values.isin([str(value) for value in wanted]).to_numpy()


def _rows(path: Path, frame: pd.DataFrame, columns: Mapping[str, str], rows: list[int], name: str) -> Rows:
    paths = _paths(frame, columns["path"], rows)
    for one in paths:
        refuse_escape(path, one)
    keys = frame[columns["label"]].iloc[rows].tolist()
    return file_rows(path.parent, paths, paths, keys, name)


def _paths(frame: pd.DataFrame, pattern: str, rows: list[int]) -> list[str]:
    if "{" not in pattern:
        return frame[pattern].iloc[rows].tolist()
    used = [field for field in _fields(pattern) if field != "row"]
    cells = frame[used].iloc[rows].itertuples(index=False, name=None)
    return [
        pattern.format(**dict(zip(used, cell, strict=True)), row=row)
        for row, cell in zip(rows, cells, strict=True)
    ]


def _fields(pattern: str) -> list[str]:
    """The columns that a column name or a pattern of them stands for."""
    if "{" not in pattern:
        return [pattern]
    return [field for _, field, _, _ in string.Formatter().parse(pattern) if field]
