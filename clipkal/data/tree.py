"""Trees of image files on disk: what is there, by split and class.

A folder called like a split (`clipkal.data.splits`) is one where it holds class folders, and a class where it
holds images (DomainNet has a class `train`). What is no image is left out and counted in one line.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clipkal import files
from clipkal.data.images import FileDecoder, file_stamps
from clipkal.data.names import composed, is_text, shortened, shown
from clipkal.data.rows import Listing, Rows
from clipkal.data.spec import Shift
from clipkal.data.splits import chosen_words, role_of, roles_of, way_out
from clipkal.data.walk import (
    Walk,
    any_image,
    entries,
    holds_images,
    images_below,
    is_image,
    refuse_same,
    subfolders,
    told,
)
from clipkal.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tree:
    """A folder and its listings by split; the key "all" stands for a tree without splits."""

    folder: Path
    prefix: str  # what its ids start with, "" or "name/"
    splits: dict[str, Listing]  # its paths are relative to the tree


def read_tree(
    folder: Path, prefix: str = "", without: Sequence[str] = (), splits: Mapping[str, Any] | None = None
) -> Tree:
    """Lists a tree, by splits where its subfolders are called so.

    Args:
        folder: its place.
        prefix: what its ids start with.
        without: subfolders that are neither classes nor splits.
        splits: `dataset.splits`, role -> subfolder, where the names do not say it.

    Raises:
        DataError: the folder is missing or empty, its images are not in class folders, it holds a folder whose
            role is not known beside splits, or a file or folder twice (through a link).
    """
    found = _split_folders(folder, without, splits or {})
    walk = Walk(folder)
    listings = {split: _classes(walk, below, () if below else without) for split, below in found.items()}
    walk.links += [below for below in found.values() if below and (folder / below).is_symlink()]
    if walk.links:
        listed = [path for listing in listings.values() for paths in listing.values() for path in paths]
        refuse_same(folder, listed, set(walk.links))
    if walk.ignored:
        log.warning("%s: files left out since they are not read as images: %s", folder, told(walk.ignored))
    return Tree(folder, prefix, listings)


def _split_folders(folder: Path, without: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, str]:
    """Role -> its folder, relative and with a slash; {"all": ""} where there are no splits."""
    inside = [name for name in subfolders(folder) if name not in without]
    if chosen:
        words = chosen_words(chosen, inside)
    else:
        called = [name for name in inside if role_of(name) and not holds_images(folder / name)]
        rest = [name for name in inside if name not in called]
        if not called and not (rest and all(map(role_of, rest))):
            return {"all": ""}
        if flat := [name for name in rest if role_of(name)]:
            raise DataError(f"{folder / flat[0]}: {_no_classes(folder / flat[0])}")
        words = roles_of(
            folder, [*called, *(n for n in rest if any_image(folder / n))], "folders beside splits"
        )
    for role, names in words.items():
        if len(names) != 1:
            raise ConfigError(
                f"{folder}: {shortened(names)} are all {role}; a folder has one of them, {way_out(())}"
            )
    return {role: f"{names[0]}/" for role, names in words.items()}


def _no_classes(folder: Path) -> str:
    return f"holds no class folders; expected {folder}/<class>/<image files>"


def _classes(walk: Walk, below: str, without: Sequence[str] = ()) -> Listing:
    """Class -> its images, below the folder `below` ("" or "name/") of a tree, in the order of the folders."""
    inside = entries(walk.folder / below)
    names = [entry.name for entry in inside if entry.is_dir() and entry.name not in without]
    if not names:
        raise DataError(f"{walk.folder / below}: {_no_classes(walk.folder / below)}")
    if loose := [entry.name for entry in inside if is_image(entry.name) and not entry.is_dir()]:
        shown = shortened(loose, 3)
        log.warning("%s: images in no class folder are left out: %s", walk.folder / below, shown)
    listing: Listing = {}
    for name in names:
        key = composed(name)
        if key in listing:
            raise DataError(
                f"{walk.folder / below}: holds two folders {key!r}, whose accents are written in two ways"
            )
        listing[key] = images_below(walk, below + name)
    return listing


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

    A path whose accents the disk writes in another way (NFC, NFD) is found there; its id stays as it is.

    Raises:
        DataError: a file is missing; `what` says what lists it.
    """
    relative, stamps = _found(folder, relative)
    absent = [path for path, stamp in zip(relative, stamps, strict=True) if stamp is None]
    if absent:
        odd = [path for path in absent if os.path.lexists(folder / path)]
        are = "no regular files (but pipes, folders or broken links)" if odd else "missing"
        raise DataError(
            f"{folder}: {len(odd or absent)} of the {len(relative)} images of {what or 'the folder'} are {are}: "
            f"{shortened(odd or absent, 3)}; {'replace' if odd else 'unpack'} them there, or check dataset.path"
        )
    rows = (f"{i}\0{stamp}\n" for i, stamp in zip(ids, stamps, strict=True))
    return Rows(ids, keys, FileDecoder(folder, relative), files.digest(*rows))


def _found(folder: Path, relative: list[str]) -> tuple[list[str], list[str | None]]:
    """The paths as the disk writes them, and their stamps."""
    stamps = file_stamps(folder, relative)
    lost = [i for i, stamp in enumerate(stamps) if stamp is None and not relative[i].isascii()]
    relative = list(relative) if lost else relative
    for form in ("NFC", "NFD") if lost else ():
        others = [unicodedata.normalize(form, relative[i]) for i in lost]
        for i, other, stamp in zip(lost, others, file_stamps(folder, others), strict=True):
            if stamp is not None:
                relative[i], stamps[i] = other, stamp
    return relative, stamps


def listed_path(file: Path, path: str) -> str:
    """A path as `file` lists it, relative to the file's folder and with "/" between its parts.

    "\\" is taken for "/", as Windows writes it; an absolute path inside the folder is shortened.

    Raises:
        DataError: it leads out of the folder, or is no path.
    """
    path = path.replace("\\", "/")
    home = f"{file.parent.as_posix()}/"
    path = path.removeprefix(home)
    refuse_escape(file, path)
    return path


def refuse_escape(file: Path, path: str) -> None:
    """Raises `DataError` where `path`, which `file` lists, is absolute or leads out of its folder."""
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path.split("/")[0]:
        raise DataError(
            f"{file}: lists {shown(path)}, which leads out of the dataset; paths must be relative to the folder of this "
            "file, and stay in it"
        )
    if not is_text(path):
        raise DataError(f"{file}: lists {shown(path)}, which is no name of a file")
