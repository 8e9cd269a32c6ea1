"""CoOp's layout: a folder of images with a `split_zhou_<Name>.json` that lists train, val and test.

The split file is {"train": [[path, label, class name], …], "val": …, "test": …}; its order is kept, since the
shots of a seed depend on it. One loader reads all of them; what is particular to a dataset is in the table
`LAYOUTS`. FGVC-Aircraft, which has lists of its own, is recognised by its `variants.txt`.
"""

from __future__ import annotations

import logging
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkal import files
from clipkal.data.aircraft import VARIANTS, Rows, is_aircraft, read_lists
from clipkal.data.names import fill_templates, renamed, shortened
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.shifts import shifted_sets
from clipkal.data.spec import DataSpec
from clipkal.data.tree import file_rows, refuse_escape
from clipkal.errors import DataError

log = logging.getLogger(__name__)
SPLIT_FILES = "split_zhou_*.json"
PARTS = ("train", "val", "test")
_EXPECTED = "expected lists of [path, label, class name] under train, val and test"
_HOW_TO_GET = (
    "get it from the links in CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) or from the folder splits of "
    "github.com/linzhiqiu/cross_modal_adaptation"
)


@dataclass(frozen=True)
class Layout:
    """Where CoOp keeps a dataset's images below its folder, and the sha256 of the published split file."""

    images: str
    sha256: str | None  # None: not known


LAYOUTS: dict[str, Layout] = {
    "split_zhou_Caltech101.json": Layout(
        "101_ObjectCategories", "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5"
    ),
    "split_zhou_DescribableTextures.json": Layout(
        "images", "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38"
    ),
    "split_zhou_EuroSAT.json": Layout(
        "2750", "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2"
    ),
    "split_zhou_OxfordFlowers.json": Layout(
        "jpg", "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794"
    ),
    "split_zhou_OxfordPets.json": Layout(
        "images", "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e"
    ),
    "split_zhou_StanfordCars.json": Layout(
        "", "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d"
    ),
    "split_zhou_UCF101.json": Layout(
        "UCF-101-midframes", "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8"
    ),
    "split_zhou_Food101.json": Layout("images", None),
    "split_zhou_SUN397.json": Layout("SUN397", None),
}


@dataclass(frozen=True)
class Split:
    """The paths and labels of one part of a split file, in its order."""

    paths: list[str]
    labels: list[int]


def load(spec: DataSpec) -> Dataset:
    """Reads the split file in the folder `spec.path` (or at that path), and checks that every image is there.

    Raises:
        DataError: the split file is missing, not the expected one, damaged, or lists paths outside the
            dataset; an image is missing.
    """
    if is_aircraft(spec.path):
        file, images = spec.path / VARIANTS, spec.path / "images"
        parts, classes = checked(file, read_lists(spec.path))
    else:
        file = split_file(spec.path)
        _check_sha256(file, spec.split_sha256)
        parts, classes = read_split(file)
        images = _image_folder(file, parts["train"])
    if spec.domains:
        raise DataError(
            f"dataset.ood: {shortened(spec.domains)}: CoOp data have no domains; give name:path of a folder"
        )
    sets = {part: _image_set(f"{spec.name}/{part}", images, split, classes) for part, split in parts.items()}
    names = renamed(classes, spec.class_names)
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        sets["train"],
        sets.get("val"),
        sets["test"],
        shifted_sets(spec, classes),
    )


def _check_sha256(file: Path, expected: str | None) -> None:
    """Raises where the config's checksum fails; only warns where the published one does."""
    known = LAYOUTS[file.name].sha256 if file.name in LAYOUTS else None
    found = files.sha256(file)
    if expected is not None and found != expected:
        raise DataError(f"{file}: its sha256 is {found}, not dataset.split_sha256={expected}; {_HOW_TO_GET}")
    if expected is None and known is not None and found != known:
        log.warning("%s is not the published split file, so neither are its shots; %s", file, _HOW_TO_GET)


def split_file(path: Path) -> Path:
    """The split file at `path`, or the only one in the folder `path`.

    Raises:
        DataError: there is none, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; dataset.path must be the folder that holds {SPLIT_FILES}")
    found = sorted(path.glob(SPLIT_FILES))
    if not found:
        raise DataError(f"{path}: holds no {SPLIT_FILES}; {_HOW_TO_GET}")
    if len(found) > 1:
        raise DataError(
            f"{path}: holds several split files ({shortened([f.name for f in found])}); "
            "give one of them as dataset.path"
        )
    return found[0]


def read_split(file: Path) -> tuple[dict[str, Split], list[str]]:
    """The parts train, val and test of a split file, and the class names by label.

    Raises:
        DataError: the file is no such JSON, a path leaves the dataset, or labels and names do not fit each
            other.
    """
    content = files.read_json(file, "split file", _HOW_TO_GET)
    if not isinstance(content, dict):
        raise DataError(f"{file}: is no split file: {_EXPECTED}")
    rows: Rows = {part: _part(file, part, content[part]) for part in PARTS if content.get(part)}
    return checked(file, rows)


def checked(file: Path, rows: Rows) -> tuple[dict[str, Split], list[str]]:
    """The parts of a split and the class names by label.

    Raises:
        DataError: as `read_split`.
    """
    for part in ("train", "test"):
        if part not in rows:
            raise DataError(f"{file}: lists no {part} images")
    names: dict[int, str] = {}
    for path, label, name in (row for part_rows in rows.values() for row in part_rows):
        refuse_escape(file, path)
        if names.setdefault(label, name) != name:
            raise DataError(f"{file}: label {label} is called both {names[label][:80]!r} and {name[:80]!r}")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{file}: labels must be 0..C-1 without gaps, found {shortened(sorted(names))}")
    parts = {part: Split([r[0] for r in listed], [r[1] for r in listed]) for part, listed in rows.items()}
    return parts, [names[label] for label in range(len(names))]


def _part(file: Path, part: str, listed: Any) -> list[tuple[str, int, str]]:
    if not isinstance(listed, list):
        raise DataError(f"{file}: {part}: is no list: {_EXPECTED}")
    return [_row(f"{file}: {part}[{i}]", row) for i, row in enumerate(listed)]


def _row(place: str, row: Any) -> tuple[str, int, str]:
    match row:
        case [str(path), int(label), str(name)] if type(label) is int and name.strip():
            return path.replace("\\", "/"), label, name  # a list that was written on Windows
    raise DataError(f"{place}: is no entry of a split file: {reprlib.repr(row)}; {_EXPECTED}")


def _image_folder(file: Path, train: Split) -> Path:
    """As CoOp has it, or beside the split file, or whichever subfolder holds the first training image."""
    home = file.parent
    known = LAYOUTS.get(file.name)
    places = [home / known.images] if known else []
    places += [home, *sorted(p for p in home.iterdir() if p.is_dir())]
    isfile = os.path.isfile  # unlike Path.is_file it bears paths of any length
    return next((p for p in places if isfile(p / train.paths[0])), places[0])


def _image_set(name: str, folder: Path, split: Split, classes: list[str]) -> ImageSet:
    keys = [classes[label] for label in split.labels]
    return file_rows(folder, split.paths, split.paths, keys, name).with_labels(name, split.labels)
