"""What class names, sets and features must be to make a task: one line that says what to mend where they are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkal.data.names import folded, is_text, shortened, shown
from clipkal.errors import DataError

if TYPE_CHECKING:
    from clipkal.data.sets import AnySet

log = logging.getLogger(__name__)
UNIT_TOLERANCE = 1e-3  # how far the norm of a feature row may be from one


def check_class_names(owner: str, names: Sequence[str]) -> None:
    """Refuses class names that cannot be a task.

    Names that differ only by case, blanks, underscores or the spelling of accents count as one, since prompts do
    not tell them apart. Two classes of one name are usual in long lists (ImageNet has two called "missile"), and
    are reported in one line; three are a mistake.

    Raises:
        DataError: there are fewer than two classes, a name is blank or no text, or three classes share one.
    """
    if len(names) < 2:
        raise DataError(f"{owner}: has {len(names)} class ({shortened(names)}); at least two are needed")
    for label, name in enumerate(names):
        if not name.strip() or not is_text(name):
            raise DataError(
                f"{owner}: class {label} is called {shown(name)}, which is no name; set dataset.class_names"
            )
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault(folded(name), []).append(name)
    if most := next((alike for alike in same.values() if len(alike) > 2), None):
        raise DataError(
            f"{owner}: {len(most)} of {len(names)} classes share a name: {shortened([*map(shown, most)], 4)}; mend the "
            "labels, or tell them apart in dataset.class_names"
        )
    if pairs := [alike for alike in same.values() if len(alike) > 1]:
        _say_pairs(owner, shortened([f"{shown(one)} and {shown(other)}" for one, other in pairs], 6))


@cache  # a dataset is put together in several steps
def _say_pairs(owner: str, listed: str) -> None:
    log.warning("%s: classes that share a name, which zero-shot cannot tell apart: %s", owner, listed)


def check_sets(owner: str, classes: int, sets: Mapping[str, AnySet]) -> None:
    """Raises `DataError` unless every set is non-empty, of one kind, and has labels below `classes`."""
    if len({type(s) for s in sets.values()}) > 1:
        raise DataError(f"{owner}: image sets and feature sets cannot be mixed in one dataset")
    for role, one in sets.items():
        if not len(one):
            raise DataError(f"{owner}: the set {role!r} holds no image")
        if int(one.labels.max()) >= classes:
            raise DataError(
                f"{owner}: {role!r} has label {int(one.labels.max())} but there are {classes} classes"
            )


def check_text_features(owner: str, text_features: Tensor | None, classes: int) -> None:
    """Raises `DataError` unless `text_features` is None or finite float32 [classes, d] with unit rows."""
    if text_features is None:
        return
    if text_features.dim() != 2 or len(text_features) != classes:
        raise DataError(f"{owner}: text features are {list(text_features.shape)}, expected [{classes}, d]")
    check_unit_rows(text_features, f"{owner}: text features", [f"class {i}" for i in range(classes)])


def check_unit_rows(rows: Tensor, owner: str, names: Sequence[str]) -> None:
    """Raises `DataError` naming the first row of float32 [N, d] that is not finite or not of length one."""
    if rows.dtype != torch.float32:
        raise DataError(f"{owner}: features are {rows.dtype}, expected float32")
    off = (rows.norm(dim=1) - 1).abs()
    bad = (~(off <= UNIT_TOLERANCE)).nonzero()[:, 0]  # NaN is bad too
    if len(bad):
        i = int(bad[0])
        reason = (
            "is not finite"
            if not bool(rows[i].isfinite().all())
            else f"has length {float(rows[i].norm()):.4g}"
        )
        raise DataError(
            f"{owner}: the feature of {names[i]!r} {reason}; rows must be finite and of length one"
        )


def check_rows(owner: str, ids: list[str], labels: Tensor) -> None:
    """Raises `DataError` unless labels are int64 [N], none negative, and ids N distinct names that a file can hold."""
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise DataError(f"{owner}: labels are {labels.dtype} {list(labels.shape)}, expected int64 [N]")
    if len(ids) != len(labels):
        raise DataError(f"{owner}: {len(ids)} ids but {len(labels)} labels")
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"{owner}: label {int(labels.min())} is negative")
    if bad := None if is_text("".join(ids)) else next(i for i in ids if not is_text(i)):
        raise DataError(f"{owner}: the id {shown(bad)} is no text that a file can hold; rename it")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise DataError(f"{owner}: the id {twice!r} appears twice; each image must be listed once")
