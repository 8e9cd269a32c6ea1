"""Shot lists: which images a run learned from, written so that another machine can use the same ones."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clipkal import files
from clipkal.data.names import spoken
from clipkal.data.sets import AnySet
from clipkal.errors import DataError

RECORD_VERSION = 1
SUBSETS = ("all", "base", "new")
_EXPECTED = "expected train and val, each a list of entries with an id"


@dataclass(frozen=True)
class Item:
    """A listed image: id or path, and its class where the list gives it (the label only in lists of ours)."""

    name: str
    class_name: str | None = None
    label: int | None = None


@dataclass(frozen=True)
class ShotList:
    """What a list names.

    Attributes:
        train, val: its images, in its order.
        sha256: of the file.
        shots: images a class as the list itself says, a number or "all"; None where it says nothing.
        subset: the half of the classes that its labels count, see `clipkal.data.protocol.base_or_new`.
        classes: how many classes that were; None where it says nothing.
    """

    train: list[Item]
    val: list[Item]
    sha256: str
    shots: int | str | None = None
    subset: str = "all"
    classes: int | None = None


def list_items(one: AnySet, class_names: list[str]) -> list[dict[str, Any]]:
    """One entry {id, label, class_name} per image, in the order of the set.

    Raises:
        DataError: an id is an absolute path or leaves its folder, so that it would mean nothing elsewhere.
    """
    for name in one.ids:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{one.name}: the id {name!r} must be a relative path inside the dataset")
    rows = zip(one.ids, one.labels.tolist(), strict=True)
    return [{"id": name, "label": label, "class_name": class_names[label]} for name, label in rows]


def fingerprint(train: Any, val: Any) -> str:
    """sha256 over both lists; equal where and only where the same images were drawn in the same order."""
    return files.digest(*(json.dumps(part, sort_keys=True, ensure_ascii=False) for part in (train, val)))


def read_shot_list(path: Path) -> ShotList:
    """Reads a `shots.json`, or an index file in the format of cross_modal_adaptation.

    The latter is {"train": {"data": [{"impath", "label", "classname"}, …]}, "val": …}.

    Raises:
        DataError: the file is missing, no such JSON, a pickle, or its entries do not fit its own sha256.
    """
    if path.suffix in {".pkl", ".pickle"}:
        raise DataError(
            f"{path}: a pickle can run code and holds absolute paths; fewshot.shot_list must be JSON"
        )
    content = files.read_json(path, "shot list", "check fewshot.shot_list")
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no shot list: {_EXPECTED}")
    if (version := content.get("schema_version", RECORD_VERSION)) != RECORD_VERSION:
        raise DataError(
            f"{path}: schema_version {reprlib.repr(version)} is not {RECORD_VERSION}; another clipkal wrote it"
        )
    train, val = (_items(path, part, content.get(part)) for part in ("train", "val"))
    if "sha256" in content and content["sha256"] != fingerprint(content.get("train"), content.get("val")):
        raise DataError(f"{path}: the entries do not fit the sha256 in the file; it was edited or cut off")
    if not train:
        raise DataError(f"{path}: lists no training image")
    shots, subset, classes = content.get("shots"), content.get("subset", "all"), content.get("classes")
    if subset not in SUBSETS or (shots != "all" and not _counts(shots)) or not _counts(classes):
        raise DataError(
            f"{path}: shots, subset ({', '.join(SUBSETS)}) or classes are not what clipkal writes there"
        )
    return ShotList(train, val, files.sha256(path), shots, subset, classes)


def _counts(number: Any) -> bool:
    return number is None or (type(number) is int and number > 0)


def _items(path: Path, part: str, listed: Any) -> list[Item]:
    entries = listed.get("data") if isinstance(listed, dict) else listed
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise DataError(f"{path}: {part}: is no list: {_EXPECTED}")
    return [_item(f"{path}: {part}[{i}]", entry) for i, entry in enumerate(entries)]


def _item(place: str, entry: Any) -> Item:
    class_name: Any = None
    label: Any = None
    match entry:
        case str(name):
            pass
        case {"id": str(name), **more}:
            class_name, label = more.get("class_name"), more.get("label")
        case {"impath": str(name), **more}:
            class_name = more.get("classname")
        case _:
            raise DataError(f"{place}: is no entry of a shot list: {reprlib.repr(entry)}; {_EXPECTED}")
    if not isinstance(class_name, str | None) or not (label is None or type(label) is int):
        raise DataError(
            f"{place}: the class name must be a text and the label a number: {reprlib.repr(entry)}"
        )
    return Item(name, class_name, label)


def positions_of(
    items: list[Item], pool: AnySet, class_names: list[str], kept: list[int], path: Path
) -> list[int]:
    """The positions of the listed images in `pool`; `kept` are the labels that those of the list count, in order.

    A listed path may have leading folders that the ids lack ("./data/dtd/images/a/b.jpg" for "a/b.jpg"): the
    longest ending that is an id counts.

    Raises:
        DataError: an image is not in the pool, is listed twice, or has another class or label in the list.
    """
    places = {name: i for i, name in enumerate(pool.ids)}
    number_of = {label: number for number, label in enumerate(kept)}
    positions: list[int] = []
    taken: set[int] = set()
    for item in items:
        name, class_name = item.name, item.class_name
        position = _find(name, places)
        if position is None:
            raise DataError(
                f"{path}: the listed image {name[:200]!r} is not among the {len(pool)} of {pool.name!r}"
            )
        label = int(pool.labels[position])
        own = class_names[label]
        if class_name is not None and spoken(class_name).lower() != spoken(own).lower():
            raise DataError(
                f"{path}: lists {name[:200]!r} as {class_name[:80]!r} but the dataset has it as {own!r}"
            )
        if item.label is not None and item.label != number_of.get(label):
            raise DataError(
                f"{path}: lists {name[:200]!r} with label {item.label}, but its class {own!r} has label "
                f"{number_of.get(label)} now: the classes have another order; draw the shots again"
            )
        if position in taken:
            raise DataError(f"{path}: lists {name[:200]!r} twice; each image may be shown once")
        taken.add(position)
        positions.append(position)
    return positions


def _find(name: str, places: dict[str, int]) -> int | None:
    parts = name.replace("\\", "/").split("/")
    for start in range(len(parts)):
        position = places.get("/".join(parts[start:]))
        if position is not None:
            return position
    return None
