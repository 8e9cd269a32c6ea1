"""Which class of the in-distribution set each class of an OOD set stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from clipkal.data.names import choose, folded, shortened
from clipkal.data.rows import Rows
from clipkal.data.sets import ImageSet
from clipkal.errors import DataError


def as_shift(
    name: str, rows: Rows, keys: Sequence[str], place: Path, class_map: Mapping[str, str] | None = None
) -> ImageSet:
    """The OOD set `name`: the rows whose class ID has, class after class, under the labels of ID.

    Args:
        name: of the set.
        rows: its images.
        keys: C class names of ID in label order, as its source has them.
        place: where the rows come from, for messages.
        class_map: see `matched`.
    """
    key_of = matched(name, rows.keys, keys, place, class_map)
    kept = [i for i, found in enumerate(rows.keys) if found in key_of]
    label = {key: i for i, key in enumerate(keys)}
    kept.sort(key=lambda i: label[key_of[rows.keys[i]]])  # stable
    chosen = rows.at(kept)
    own = [key_of[found] for found in chosen.keys]
    return Rows(chosen.ids, own, chosen.decode, chosen.digest).labelled(name, keys)


def matched(
    name: str, found: Iterable[str], keys: Sequence[str], place: Path, class_map: Mapping[str, str] | None
) -> dict[str, str]:
    """Which class of ID each class of the OOD set `name` stands for.

    Without a map it is the class of the same name, upper and lower case, underscores and the spelling of
    accents aside; where all are called 0, 1, 2, …, and ID's are not, they stand for the classes in order, as in
    ImageNetV2. With a map (class there -> class of ID) classes that are not in it are left out.

    Raises:
        DataError: a class is unknown to ID or is two classes there, or the map names one that is nowhere.
    """
    there = set(found)
    if class_map is not None:
        own = _mapped(name, there, keys, place, class_map)
    else:
        alike: dict[str, list[str]] = {}
        for key in dict.fromkeys(keys):
            alike.setdefault(folded(key), []).append(key)
        own = {key: key if key in keys else _alike(key, alike.get(folded(key), []), place) for key in there}
    if twice := {key for key in own.values() if list(keys).count(key) > 1}:
        raise DataError(f"{place}: OOD set {name!r} has {min(twice)!r}, but ID has two classes of that name")
    unknown = sorted(set(own.values()) - set(keys))
    if unknown == sorted(own) and all(_is_place(key, len(keys)) for key in unknown):
        return {key: keys[int(key)] for key in own}
    if unknown:
        raise DataError(
            f"{place}: OOD set {name!r} has classes that ID lacks: {shortened(unknown)} (ID has: "
            f"{shortened(keys)}); rename or remove them, or say what they are in dataset.shifts.{name}.class_map"
        )
    return own


def _alike(key: str, found: list[str], place: Path) -> str:
    """The one class of ID that is spelt like `key`; itself where there is none."""
    if len(found) > 1:
        raise DataError(
            f"{place}: {key!r} may be any of ID's classes {shortened(found)}; spell it as ID does"
        )
    return found[0] if found else key


def _is_place(key: str, size: int) -> bool:
    return key.isdecimal() and len(key) < 10 and int(key) < size


def _mapped(
    name: str, there: set[str], keys: Sequence[str], place: Path, class_map: Mapping[str, str]
) -> dict[str, str]:
    for key in class_map.values():
        choose(f"dataset.shifts.{name}.class_map: class of ID", key, keys)
    if absent := sorted(set(class_map) - there):
        raise DataError(
            f"{place}: {len(absent)} of the {len(class_map)} classes in dataset.shifts.{name}.class_map are not there: "
            f"{shortened(absent)}; is it unpacked whole?"
        )
    return dict(class_map)
