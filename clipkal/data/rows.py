"""Images as they are named where they lie: what most sources have in common, before labels are given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from clipkal import files
from clipkal.data.names import fill_templates, folded, renamed, shortened, shown
from clipkal.data.sets import Dataset, Decoder, ImageSet, pick
from clipkal.data.spec import DataSpec
from clipkal.data.splits import ROLES
from clipkal.errors import DataError

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
Listing = dict[str, list[str]]  # class -> sorted file paths


@dataclass(frozen=True)
class Rows:
    """Images with the words of their source.

    Attributes:
        ids: N distinct names.
        keys: N class names, as the source has them.
        decode: position -> PIL image in RGB.
        digest: sha256 of what defines ids and pixels.
    """

    ids: list[str]
    keys: list[str]
    decode: Decoder
    digest: str

    def at(self, positions: Sequence[int]) -> Rows:
        """The images at `positions`, in that order."""
        ids, keys = [self.ids[i] for i in positions], [self.keys[i] for i in positions]
        digest = files.digest(self.digest, ",".join(map(str, positions)))
        return Rows(ids, keys, pick(self.decode, list(positions)), digest)

    def labelled(self, name: str, keys: Sequence[str]) -> ImageSet:
        """As a set whose labels are places in `keys`, which are distinct."""
        place = {key: label for label, key in enumerate(keys)}
        return self.with_labels(name, [place[key] for key in self.keys])

    def with_labels(self, name: str, labels: Sequence[int]) -> ImageSet:
        """As a set with these labels."""
        given = torch.tensor(labels, dtype=torch.int64)
        digest = files.digest(self.digest, given.numpy().tobytes())
        return ImageSet(name, self.ids, given, self.decode, digest)


def dataset_of(
    spec: DataSpec, keys: Sequence[str], parts: Mapping[str, Rows], names: Sequence[str] | None = None
) -> Dataset:
    """A dataset of `parts`: train, val and test by these names, and every other one an OOD set.

    Missing parts are held out as of a folder: where there is val but no test, val is the test set.

    Args:
        spec: names, templates, and the shares to hold out.
        keys: C distinct class names in label order, as the source has them.
        parts: at least train.
        names: what to call the classes, where that is not their keys; two may share a name.

    Raises:
        DataError: there is no training image, no test image and none is to be held out, a set that
            `dataset.splits` names is empty, or an image is in two sets of which one is for learning.
    """
    _refuse_overlaps(spec, parts)
    own = _complete({role: rows for role, rows in parts.items() if role in ROLES}, spec)
    shown = renamed(names or keys, spec.class_names)
    sets = {role: rows.labelled(f"{spec.name}/{role}", keys) for role, rows in own.items()}
    return Dataset(
        spec.name,
        shown,
        fill_templates(spec.templates, [[n] for n in shown]),
        sets["train"],
        sets.get("val"),
        sets["test"],
        {name: rows.labelled(name, keys) for name, rows in parts.items() if name not in ROLES},
    )


def _refuse_overlaps(spec: DataSpec, parts: Mapping[str, Rows]) -> None:
    """No image of train or val may be in another set; OOD sets may be parts of test and of each other."""
    if empty := [name for name in spec.splits if name in parts and not parts[name].ids]:
        raise DataError(f"{spec.place}: the set {empty[0]!r} holds no image; check dataset.splits.{empty[0]}")
    for role in ("train", "val"):
        own = set(parts[role].ids) if role in parts else set()
        for name, rows in parts.items():
            if name != role and (both := own & set(rows.ids)):
                raise DataError(
                    f"{spec.place}: {len(both)} images are both in {role} and in {name} ({shortened(sorted(both), 3)}); "
                    "each image may be in one of them: check dataset.splits"
                )


def _complete(parts: dict[str, Rows], spec: DataSpec) -> dict[str, Rows]:
    if "train" not in parts or not parts["train"].ids:
        raise DataError(f"{spec.place}: has no training images; check dataset.splits and dataset.id_domain")
    fraction = spec.val_fraction
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        parts["train"], parts["test"] = _held_out(parts["train"], spec.test_fraction)
        fraction /= 1 - spec.test_fraction
    if "val" not in parts:
        parts["train"], parts["val"] = _held_out(parts["train"], min(fraction, 1.0))
    if not parts["test"].ids:
        raise DataError(f"{spec.place}: has no test images; set dataset.test_fraction above 0")
    return {role: rows for role, rows in parts.items() if rows.ids}


def _held_out(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    listing: Listing = {}
    for name, key in zip(rows.ids, rows.keys, strict=True):
        listing.setdefault(key, []).append(name)
    held = {name for names in hold_out(listing, fraction)[1].values() for name in names}
    return (
        rows.at([i for i, name in enumerate(rows.ids) if name not in held]),
        rows.at([i for i, name in enumerate(rows.ids) if name in held]),
    )


def hold_out(listing: Listing, fraction: float) -> tuple[Listing, Listing]:
    """Splits off about fraction · n files of each class, those whose paths have the smallest sha256.

    Of two files or more at least one stays, and at least one is held out unless the fraction is zero.
    """
    rest, held = {}, {}
    for name, paths in listing.items():
        ranked = sorted(paths, key=files.digest)
        least = 1 if fraction > 0 else 0
        count = min(max(round(fraction * len(paths)), least), len(paths) - 1)
        held[name], rest[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return rest, held


def in_order(keys: Iterable[str]) -> list[str]:
    """The distinct class names in label order: numbers by their value, all others by the alphabet."""
    found = set(keys)
    numbers = all(_NUMBER.fullmatch(key) for key in found)
    return sorted(found, key=lambda key: (float(key), key) if numbers else (0.0, key))


def class_keys(spec: DataSpec, keys: Iterable[str]) -> list[str]:
    """The distinct class names of a source where people wrote them one by one, in label order.

    Raises:
        DataError: two are the same but for case, blanks or the way a number is written, and `class_names` does not
            tell them apart: most likely one class.
    """
    ordered = in_order(keys)
    seen: dict[str, str] = {}
    for key, name in zip(ordered, renamed(ordered, spec.class_names), strict=True):
        alike = f"{_one_way(key)}\0{folded(name) if name != key else ''}"
        if (other := seen.setdefault(alike, key)) != key:
            raise DataError(
                f"{spec.place}: are the classes {shown(other)} and {shown(key)} one? Write them in one way, or tell them "
                "apart in dataset.class_names"
            )
    return ordered


def _one_way(key: str) -> str:
    return str(float(key)) if _NUMBER.fullmatch(key) else folded(key)
