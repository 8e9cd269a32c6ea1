"""Labelled sets of images or features, and the dataset that groups them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from clipkal import files
from clipkal.data.names import folded, is_text, shortened, shown
from clipkal.errors import DataError

log = logging.getLogger(__name__)
Decoder = Callable[[int], Image.Image]
RESERVED = {"train", "val", "test", "shots"}  # roles, so no names of OOD sets
_UNIT_TOLERANCE = 1e-3  # how far the norm of a feature row may be from one


@dataclass(frozen=True)
class _Picked:
    """Decoder of a subset: position `i` of the subset is position `positions[i]` of the whole."""

    decode: Decoder
    positions: list[int]

    def __call__(self, i: int) -> Image.Image:
        return self.decode(self.positions[i])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one domain and split, decoded one by one when asked.

    Attributes:
        name: what the set is called in results, e.g. "photo/test".
        ids: N stable, distinct names, relative paths with "/" (they appear in shot lists and predictions).
        labels: int64 [N], places in the dataset's `class_names`.
        decode: position -> PIL image in RGB; raises `DataError` naming the file where that fails.
        digest: sha256 of what defines ids, labels and pixels; features are cached under it.

    Raises:
        DataError: a label is negative, an id appears twice or is an absolute path, or the lengths differ.
    """

    name: str
    ids: list[str]
    labels: Tensor
    decode: Decoder
    digest: str

    def __post_init__(self) -> None:
        _check_rows(self.name, self.ids, self.labels)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | Tensor, name: str | None = None) -> ImageSet:
        """The images at `indices`, in that order."""
        chosen = _positions(indices, len(self))
        digest = files.digest(self.digest, ",".join(map(str, chosen)))
        whole = chosen == list(range(len(self)))
        return ImageSet(
            name or self.name,
            [self.ids[i] for i in chosen],
            self.labels[chosen],
            self.decode if whole else pick(self.decode, chosen),
            self.digest if whole else digest,
        )

    def with_labels(self, labels: Tensor) -> ImageSet:
        """The same images under other labels, int64 [N]."""
        digest = files.digest(self.digest, "labels", labels.numpy().tobytes())
        return ImageSet(self.name, self.ids, labels, self.decode, digest)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The same after a backbone.

    Attributes:
        name: what the set is called in results.
        ids: N stable, distinct names.
        labels: int64 [N].
        inputs: float32 [N, d] features, rows of length one.

    Raises:
        DataError: as for `ImageSet`, or a feature is not finite, not of length one, or not float32.
    """

    name: str
    ids: list[str]
    labels: Tensor
    inputs: Tensor

    def __post_init__(self) -> None:
        _check_rows(self.name, self.ids, self.labels)
        if self.inputs.dim() != 2 or len(self.inputs) != len(self.ids):
            shape = list(self.inputs.shape)
            raise DataError(
                f"{self.name}: features are {shape}, expected [{len(self.ids)}, d]; one row per image"
            )
        check_unit_rows(self.inputs, self.name, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | Tensor, name: str | None = None) -> FeatureSet:
        """The rows at `indices`, in that order."""
        chosen = _positions(indices, len(self))
        ids = [self.ids[i] for i in chosen]
        return FeatureSet(name or self.name, ids, self.labels[chosen], self.inputs[chosen])

    def with_labels(self, labels: Tensor) -> FeatureSet:
        """The same features under other labels, int64 [N]."""
        return FeatureSet(self.name, self.ids, labels, self.inputs)


class LabelledSet(Protocol):
    """What is learnt from and evaluated on: a `FeatureSet`, or the same with images as inputs."""

    @property
    def ids(self) -> Sequence[str]:
        """N names."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    @property
    def inputs(self) -> Tensor:
        """Inputs [N, …] of a model, or what gives a batch of them for a slice or an int64 tensor of places."""
        ...


AnySet = ImageSet | FeatureSet


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a source returns, before any shot is drawn.

    Attributes:
        name: the dataset's name.
        class_names: C names, in the order of the labels.
        prompts: for each class every sentence of its ensemble.
        train, test: the pool the shots come from, and the in-distribution test set.
        val: the pool for validation, or None where the source has none.
        ood: test sets under shift by name.
        text_features: float32 [C, d] with unit rows, for precomputed features only.
        logit_scale: the factor exp(log_scale) on the cosine, for precomputed features only.
        spaces: OOD set -> rule of its label space, see `label_space`; "occurring" where it is not named.

    Raises:
        DataError: a set is empty, a label is out of range, image and feature sets are mixed, an OOD set is
            called like a role, or the class names do not tell the classes apart (`check_class_names`).
    """

    name: str
    class_names: list[str]
    prompts: list[list[str]]
    train: AnySet
    val: AnySet | None
    test: AnySet
    ood: dict[str, Any]  # dict[str, AnySet]; Any keeps dict[str, ImageSet] assignable
    text_features: Tensor | None = None
    logit_scale: float | None = None
    spaces: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := RESERVED & set(self.ood):
            raise DataError(f"{self.name}: an OOD set cannot be called {min(taken)!r}; give it another name")
        check_class_names(self.name, self.class_names)
        check_sets(self.name, len(self.class_names), self.sets())
        if len(self.prompts) != len(self.class_names) or not all(self.prompts):
            raise DataError(
                f"{self.name}: every one of the {len(self.class_names)} classes needs at least one prompt"
            )
        check_text_features(self.name, self.text_features, len(self.class_names))

    def sets(self) -> dict[str, AnySet]:
        """Every set by role or OOD name."""
        own: dict[str, AnySet] = {"train": self.train, "test": self.test}
        return own | ({"val": self.val} if self.val is not None else {}) | self.ood


def occurring_classes(labels: Tensor) -> list[int]:
    """The sorted labels that occur."""
    return sorted(set(labels.tolist()))


def label_space(rule: str, labels: Tensor, classes: int) -> list[int]:
    """The labels that a set is scored over, ascending: the mask on its logits.

    Args:
        rule: "occurring", those that occur in it, as is usual for ImageNet-A, -R and ObjectNet, which lack
            most of ImageNet's; or "all".
        labels: of the set.
        classes: how many there are.
    """
    return list(range(classes)) if rule == "all" else occurring_classes(labels)


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


def check_sets(owner: str, classes: int, sets: dict[str, AnySet]) -> None:
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
    bad = (~(off <= _UNIT_TOLERANCE)).nonzero()[:, 0]  # NaN is bad too
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


def _check_rows(owner: str, ids: list[str], labels: Tensor) -> None:
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


def _positions(indices: Sequence[int] | Tensor, size: int) -> list[int]:
    chosen = [int(i) for i in (indices.tolist() if isinstance(indices, Tensor) else indices)]
    if chosen and not (min(chosen) >= 0 and max(chosen) < size):
        raise IndexError(f"indices must be in 0..{size - 1}")
    return chosen


def pick(decode: Decoder, chosen: list[int]) -> Decoder:
    """The decoder of the positions `chosen`; picks of picks do not pile up."""
    if isinstance(decode, _Picked):
        return _Picked(decode.decode, [decode.positions[i] for i in chosen])
    return _Picked(decode, chosen)
