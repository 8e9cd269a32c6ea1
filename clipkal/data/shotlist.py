"""Shot lists: which images a run learned from, written so that another machine can use the same ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clipkal import files
from clipkal.data.names import spoken
from clipkal.data.sets import AnySet
from clipkal.errors import DataError

Item = tuple[str, str | None]  # id or path, and the class name where the list gives it


@dataclass(frozen=True)
class ShotList:
    """What a list names: items for train and val in its order, and the sha256 of the file."""

    train: list[Item]
    val: list[Item]
    sha256: str


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


def fingerprint(train: list[dict[str, Any]], val: list[dict[str, Any]]) -> str:
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [_items(content.get(part) or []) for part in ("train", "val")]
    except OSError as error:
        raise DataError(
            f"{path}: the shot list cannot be read ({error.strerror}); check fewshot.shot_list"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is no shot list; expected train and val, each a list of entries with an id"
        ) from error
    if "sha256" in content and content["sha256"] != fingerprint(content["train"], content["val"]):
        raise DataError(f"{path}: the entries do not fit the sha256 in the file; it was edited or cut off")
    if not parts[0]:
        raise DataError(f"{path}: lists no training image")
    return ShotList(parts[0], parts[1], files.sha256(path))


def _items(part: Any) -> list[Item]:
    entries = part["data"] if isinstance(part, dict) else part
    return [_item(entry) for entry in entries]


def _item(entry: Any) -> Item:
    if isinstance(entry, str):
        return entry, None
    name = entry["id"] if "id" in entry else entry["impath"]
    return str(name), entry.get("class_name", entry.get("classname"))


def positions_of(items: list[Item], pool: AnySet, class_names: list[str], path: Path) -> list[int]:
    """The positions of the listed images in `pool`.

    A listed path may have leading folders that the ids lack ("./data/dtd/images/a/b.jpg" for "a/b.jpg"): the
    longest ending that is an id counts.

    Raises:
        DataError: an image is not in the pool, is listed twice, or has another class in the list.
    """
    places = {name: i for i, name in enumerate(pool.ids)}
    positions: list[int] = []
    taken: set[int] = set()
    for name, class_name in items:
        position = _find(name, places)
        if position is None:
            raise DataError(
                f"{path}: the listed image {name!r} is not among the {len(pool)} of {pool.name!r}"
            )
        own = class_names[int(pool.labels[position])]
        if class_name is not None and spoken(class_name).lower() != spoken(own).lower():
            raise DataError(f"{path}: lists {name!r} as {class_name!r} but the dataset has it as {own!r}")
        if position in taken:
            raise DataError(f"{path}: lists {name!r} twice; each image may be shown once")
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
