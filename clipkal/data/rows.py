"""Images as they are named where they lie: what most sources have in common, before labels are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from clipkal import files
from clipkal.data.names import fill_templates, renamed
from clipkal.data.sets import Dataset, Decoder, ImageSet, pick
from clipkal.data.spec import DataSpec
from clipkal.errors import DataError

Listing = dict[str, list[str]]  # class -> sorted file paths
ROLES = ("train", "val", "test")


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
        DataError: there is no training image, or no test image and none is to be held out.
    """
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
    numbers = all(key.isdecimal() for key in found)
    return sorted(found, key=lambda key: (int(key), key) if numbers else (0, key))
