"""Which rows of a file with domains and splits are train, val, test and OOD."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipkal.data.names import choose, shortened
from clipkal.data.spec import DataSpec, Shift
from clipkal.errors import DataError


@dataclass(frozen=True)
class Partition:
    """Row numbers by role; `val` is None where the ID domain has no val rows."""

    id_domain: str
    train: list[int]
    val: list[int] | None
    test: list[int]
    ood: dict[str, list[int]]


@dataclass(frozen=True)
class Table:
    """The columns that every packed file has.

    Attributes:
        label, domain, split: int64 [n], places in the three lists of names.
        classes, domains, splits: names; splits are among train, val, test.
    """

    path: Path
    label: np.ndarray
    domain: np.ndarray
    split: np.ndarray
    classes: list[str]
    domains: list[str]
    splits: list[str]

    def rows(self, domain: str, split: str) -> list[int]:
        """The row numbers of one domain and split; none where the file has no such split."""
        if split not in self.splits:
            return []
        match = (self.domain == self.domains.index(domain)) & (self.split == self.splits.index(split))
        return np.flatnonzero(match).tolist()


def open_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`, in memory; never unpickles.

    Raises:
        DataError: no such file, no `.npz`, damaged, or an array that would need pickle.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; dataset.path must name {what}")
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: content[key] for key in content.files}
    except Exception as error:
        # A damaged file raises many kinds: BadZipFile, zlib.error, EOFError, ValueError, …
        raise DataError(f"{path}: is not a readable .npz file ({error}); it must be {what}") from error


def read_table(path: Path, arrays: dict[str, np.ndarray], rows: int) -> Table:
    """Checks and returns the columns.

    Raises:
        DataError: a column is missing, has not `rows` rows, or points outside its list of names.
    """
    require(path, arrays, ("label", "domain", "split", "classes", "domains", "splits"))
    names: dict[str, Any] = {key: [str(n) for n in arrays[key]] for key in ("classes", "domains", "splits")}
    columns: dict[str, Any] = {}
    for key, listing in (("label", "classes"), ("domain", "domains"), ("split", "splits")):
        column = arrays[key].astype(np.int64)
        if column.shape != (rows,):
            raise DataError(f"{path}: {key!r} has shape {list(column.shape)}, expected [{rows}]")
        if rows and not (column.min() >= 0 and column.max() < len(names[listing])):
            raise DataError(
                f"{path}: {key!r} has a value outside 0..{len(names[listing]) - 1}, the places in {listing!r}"
            )
        columns[key] = column
    return Table(path=path, **columns, **names)


def require(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> None:
    """Raises `DataError` naming the arrays that the file lacks."""
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(f"{path}: lacks the arrays {', '.join(missing)} (it has {', '.join(arrays)})")


def partition(table: Table, spec: DataSpec) -> Partition:
    """Train, val and test of the ID domain (the first one by default), and the test rows of each OOD domain.

    Raises:
        DataError: a domain is unknown, or the ID domain or an OOD domain lacks a split that is needed.
    """
    own = choose("dataset.id_domain", spec.id_domain or table.domains[0], table.domains)
    others = [d for d in table.domains if d != own]
    wanted = others if spec.domains is None else spec.domains
    train, test = _needed(table, own, "train"), _needed(table, own, "test")
    ood = {choose("dataset.ood: domain", d, others): _needed(table, d, "test") for d in wanted}
    return Partition(own, train, table.rows(own, "val") or None, test, ood)


def rows_of_shift(table: Table, name: str, shift: Shift) -> list[int]:
    """The test rows of the domain that the OOD set `name` is.

    Raises:
        DataError: the domain is unknown, has no test rows, or is one of several and not said.
    """
    if shift.domain is None and name not in table.domains and len(table.domains) > 1:
        raise DataError(
            f"{table.path}: holds several domains ({shortened(table.domains)}); call the OOD set like one of them, "
            f"or set dataset.shifts.{name}.domain"
        )
    only = name if name in table.domains else table.domains[0]
    domain = choose(f"dataset.shifts.{name}.domain", shift.domain or only, table.domains)
    return _needed(table, domain, "test")


def _needed(table: Table, domain: str, split: str) -> list[int]:
    rows = table.rows(domain, split)
    if not rows:
        has = [d for d in table.domains if table.rows(d, split)]
        raise DataError(
            f"{table.path}: domain {domain!r} has no {split} rows (domains that have: "
            f"{', '.join(has) or 'none'}); choose another dataset.id_domain or dataset.ood"
        )
    return rows
