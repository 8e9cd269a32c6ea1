"""Which rows of a file with domains and splits are train, val, test and OOD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipkal.data.names import choose, is_missing, is_text, shortened, shown
from clipkal.data.spec import DataSpec, Shift
from clipkal.data.splits import chosen_words, roles_of
from clipkal.errors import DataError

Roles = dict[str, list[int]]  # train, val, test -> places in the list of splits


@dataclass(frozen=True)
class Partition:
    """Row numbers by role; `val` is None where the ID domain has no val rows."""

    id_domain: str
    train: list[int]
    val: list[int] | None
    test: list[int]
    ood: dict[str, list[int]]


@dataclass(frozen=True)
class Columns:
    """The columns that every packed file has.

    Attributes:
        label, domain, split: int64 [n], places in the three lists of names.
        classes, domains, splits: names.
    """

    path: Path
    label: np.ndarray
    domain: np.ndarray
    split: np.ndarray
    classes: list[str]
    domains: list[str]
    splits: list[str]

    def roles(self, chosen: Mapping[str, Any]) -> Roles:
        """train, val and test -> places in `splits`, of the splits that occur.

        Args:
            chosen: `dataset.splits`, role -> word or list of words, where the words do not say it themselves.

        Raises:
            DataError: the role of a split is not known; see `clipkal.data.splits`.
        """
        found = [self.splits[place] for place in np.unique(self.split)]
        words = chosen_words(chosen, found) if chosen else roles_of(self.path, found)
        return {role: [self.splits.index(word) for word in of] for role, of in words.items()}

    def rows(self, domain: str, places: Sequence[int]) -> list[int]:
        """The row numbers of one domain, of the splits at `places`."""
        match = (self.domain == self.domains.index(domain)) & np.isin(self.split, places)
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
        raise DataError(
            f"{path}: is not a readable .npz file ({shortened([error])}); it must be {what}"
        ) from error


def read_table(path: Path, arrays: dict[str, np.ndarray], rows: int) -> Columns:
    """Checks and returns the columns.

    Raises:
        DataError: a column is missing, has not `rows` rows of whole numbers, or points outside its list of names, or
            two domains or splits share a name.
    """
    require(path, arrays, ("label", "domain", "split", "classes", "domains", "splits"))
    names: dict[str, Any] = {key: texts(path, key, arrays[key]) for key in ("classes", "domains", "splits")}
    for key in ("domains", "splits"):
        if len(set(names[key])) < len(names[key]):
            raise DataError(f"{path}: {key!r} has a name twice ({shortened(names[key])})")
    columns: dict[str, Any] = {}
    for key, listing in (("label", "classes"), ("domain", "domains"), ("split", "splits")):
        column = whole_numbers(path, key, arrays[key])
        if column.shape != (rows,):
            raise DataError(f"{path}: {key!r} has shape {list(column.shape)}, expected [{rows}]")
        outside = np.flatnonzero((column < 0) | (column >= len(names[listing])))
        if len(outside):
            raise DataError(
                f"{path}: {key!r} has a value outside 0..{len(names[listing]) - 1}, the places in {listing!r}: "
                f"{column[outside[0]]} in row {outside[0]} and in {len(outside)} of {rows} rows; leave such rows out of "
                "the file"
            )
        columns[key] = column
    return Columns(path=path, **columns, **names)


def texts(path: Path, key: str, array: np.ndarray) -> list[str]:
    """The names in an array [n] of text (or of whole numbers, for names such as 0, 1, 2).

    Raises:
        DataError: it holds something else, or a name is blank, stands for none (nan) or is no valid text.
    """
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise DataError(f"{path}: {key!r} is {array.dtype} {list(array.shape)}, expected texts [n]")
    try:
        found = [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]
    except ValueError as error:
        raise DataError(f"{path}: {key!r} has a name that is no text") from error
    for place, name in enumerate(found):
        if is_missing(name) or not is_text(name):
            raise DataError(f"{path}: {key!r} has {shown(name)} at {place}, which is no name")
    return found


def whole_numbers(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    """An array of whole numbers as int64.

    Raises:
        DataError: it holds something else; floats are not cut off.
    """
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {key!r} is {array.dtype} {list(array.shape)}, expected whole numbers; save it as int64"
        )
    return array.astype(np.int64)


def require(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> None:
    """Raises `DataError` naming the arrays that the file lacks."""
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(f"{path}: lacks the arrays {', '.join(missing)} (it has {', '.join(arrays)})")


def partition(table: Columns, spec: DataSpec) -> Partition:
    """Train, val and test of the ID domain (the first one by default), and the test rows of each OOD domain.

    Raises:
        DataError: a domain is unknown, the role of a split is not known, or the ID domain or an OOD domain lacks a
            split that is needed.
    """
    own = choose("dataset.id_domain", spec.id_domain or table.domains[0], table.domains)
    others = [d for d in table.domains if d != own]
    wanted = others if spec.domains is None else spec.domains
    roles = table.roles(spec.splits)
    train, test = _needed(table, own, "train", roles), _needed(table, own, "test", roles)
    ood = {choose("dataset.ood: domain", d, others): _needed(table, d, "test", roles) for d in wanted}
    return Partition(own, train, table.rows(own, roles.get("val", [])) or None, test, ood)


def rows_of_shift(table: Columns, name: str, shift: Shift) -> list[int]:
    """The test rows of the domain that the OOD set `name` is.

    Raises:
        DataError: the domain is unknown, has no test rows, or is one of several and not given.
    """
    if shift.domain is None and name not in table.domains and len(table.domains) > 1:
        raise DataError(
            f"{table.path}: holds several domains ({shortened(table.domains)}); call the OOD set like one of them, "
            f"or set dataset.shifts.{name}.domain"
        )
    only = name if name in table.domains else table.domains[0]
    domain = choose(f"dataset.shifts.{name}.domain", shift.domain or only, table.domains)
    return _needed(table, domain, "test", table.roles({}))


def _needed(table: Columns, domain: str, role: str, roles: Roles) -> list[int]:
    places = roles.get(role, [])
    rows = table.rows(domain, places)
    if not rows:
        has = [d for d in table.domains if table.rows(d, places)]
        raise DataError(
            f"{table.path}: domain {domain!r} has no {role} rows (domains that have: "
            f"{', '.join(has) or 'none'}); choose another dataset.id_domain or dataset.ood"
        )
    return rows
