"""Trees of image files on disk: what is there, by split and class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clipkal import files
from clipkal.data.images import EXTENSIONS, FileDecoder, file_stamps
from clipkal.data.names import shortened
from clipkal.data.rows import Listing, Rows
from clipkal.data.spec import Shift
from clipkal.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Tree:
    """A folder and its listings by split; the key "all" stands for a tree without splits."""

    folder: Path
    prefix: str  # what its ids start with, "" or "name/"
    splits: dict[str, Listing]  # its paths are relative to the tree


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the subfolders, hidden ones left out.

    Raises:
        DataError: the folder is missing or no folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        raise DataError(f"{folder}: {reason}; check dataset.path and dataset.ood") from error


def list_images(folder: Path, relative: str) -> list[str]:
    """Sorted paths, relative to `folder`, of all image files below `folder/relative`.

    Raises:
        DataError: there is none.
    """
    found = []
    for place, _, entries in os.walk(folder / relative, followlinks=True):
        base = Path(place).relative_to(folder).as_posix()
        found += [
            f"{base}/{e}"
            for e in entries
            if f".{e.rpartition('.')[2].lower()}" in EXTENSIONS and not e.startswith(".")
        ]
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataError(f"{folder / relative}: holds no image ({kinds}); remove or fill the folder")
    for path in found:
        if not path.isascii() and path.encode(errors="replace").decode() != path:
            raise DataError(f"{folder}: the file name {path!r} is not valid text; rename the file")
    return sorted(found)


def read_tree(folder: Path, prefix: str = "", without: Sequence[str] = ()) -> Tree:
    """Lists a tree, by splits where its subfolders are called so; the subfolders `without` are no classes.

    Raises:
        DataError: the folder is missing or empty, or its images are not in class folders.
    """
    inside = subfolders(folder)
    splits = {SPLITS[name.lower()]: name for name in inside if name.lower() in SPLITS}
    if splits:
        return Tree(folder, prefix, {split: _classes(folder, f"{name}/") for split, name in splits.items()})
    return Tree(folder, prefix, {"all": _classes(folder, "", without)})


def _classes(folder: Path, below: str, without: Sequence[str] = ()) -> Listing:
    names = [name for name in subfolders(folder / below) if name not in without]
    if not names:
        raise DataError(
            f"{folder / below}: holds no class folders; expected {folder / below}/<class>/<image files>"
        )
    return {name: list_images(folder, below + name) for name in names}


def shift_rows(name: str, shift: Shift) -> Rows:
    """The images of an OOD set that is a tree; ids start with its name."""
    return rows_of(read_tree(shift.path, f"{name}/"))


def rows_of(tree: Tree) -> Rows:
    """The test (or val, or only) images of a tree, whose classes are called like their folders.

    Raises:
        DataError: the tree has train images only.
    """
    split = next((s for s in ("test", "val", "all") if s in tree.splits), None)
    if split is None:
        raise DataError(f"{tree.folder}: has only a train folder; an OOD set needs test or val images")
    return listed_rows(tree, [(key, path) for key, paths in tree.splits[split].items() for path in paths])


def listed_rows(tree: Tree, listed: Sequence[tuple[str, str]]) -> Rows:
    """The (class, path) pairs of a tree."""
    relative, keys = [path for _, path in listed], [key for key, _ in listed]
    return file_rows(tree.folder, relative, [tree.prefix + path for path in relative], keys)


def file_rows(folder: Path, relative: list[str], ids: list[str], keys: list[str], what: str = "") -> Rows:
    """Files below `folder`, that must be there, with the digest of their ids, sizes and times of change.

    Raises:
        DataError: a file is missing; `what` says what lists it.
    """
    stamps = file_stamps(folder, relative)
    absent = [path for path, stamp in zip(relative, stamps, strict=True) if stamp is None]
    if absent:
        raise DataError(
            f"{folder}: {len(absent)} of the {len(relative)} images of {what or 'the folder'} are missing: "
            f"{shortened(absent, 3)}; unpack them there, or check dataset.path"
        )
    rows = (f"{i}\0{stamp}\n" for i, stamp in zip(ids, stamps, strict=True))
    return Rows(ids, keys, FileDecoder(folder, relative), files.digest(*rows))


def refuse_escape(file: Path, path: str) -> None:
    """Raises `DataError` where `path`, which `file` lists, is absolute or leads out of its folder."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path.split("/")[0]:
        raise DataError(
            f"{file}: lists {path!r}, which leads out of the dataset; refuse the file or mend the entry"
        )
