"""A walk through folders of images: what is met on the way, links included."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clipkal.data.images import EXTENSIONS
from clipkal.data.names import is_text, shortened
from clipkal.errors import DataError

_JUNK = {"thumbs.db", "desktop.ini"}  # left by file managers, as hidden files are


@dataclass
class Walk:
    """What was met on the way through a tree.

    Attributes:
        folder: of the tree.
        links: image files and folders, relative to the tree, that are links.
        ignored: suffix -> how many files were left out.
    """

    folder: Path
    links: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What a folder holds by name, hidden files and folders left out.

    Raises:
        DataError: the folder is missing, no folder, or may not be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                (e for e in found if not e.name.startswith((".", "__MACOSX"))), key=lambda e: e.name
            )
    except (OSError, ValueError) as error:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else _reason(error)
        raise DataError(f"{folder}: {reason}; check dataset.path and dataset.ood") from error


def _reason(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) else error).lower()


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the subfolders, hidden ones left out.

    Raises:
        DataError: the folder is missing or no folder.
    """
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def is_junk(name: str) -> bool:
    """Whether a file is one that file managers leave behind, or hidden."""
    return name.startswith(".") or name.lower() in _JUNK


def ending(name: str) -> str:
    """How a file's name ends, for a count of files that are not read."""
    return Path(name).suffix.lower() or "without a suffix"


def told(ignored: Counter[str]) -> str:
    """As ".heic (5), .txt (1)" of a count by `ending`."""
    return ", ".join(f"{suffix} ({count})" for suffix, count in sorted(ignored.items()))


def holds_images(folder: Path) -> bool:
    """Whether images lie directly in a folder, which must then hold no folders beside them."""
    inside = entries(folder)
    images = [e.name for e in inside if is_image(e.name) and not e.is_dir()]
    if images and (folders := [e.name for e in inside if e.is_dir()]):
        raise DataError(
            f"{folder}: holds images ({shortened(images, 2)}) beside folders ({shortened(folders, 2)}), so that it may "
            "be a split or a class; move one of them"
        )
    return bool(images)


def any_image(folder: Path) -> bool:
    """Whether an image lies anywhere below a folder."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(is_image(name) and not name.startswith(".") for name in names):
            return True
    return False


def images_below(walk: Walk, relative: str) -> list[str]:
    """Sorted paths, relative to the tree, of all image files below one of its folders.

    Raises:
        DataError: there is none, a folder may not be read, or a link leads back to where it is.
    """
    found: list[str] = []
    ignored: Counter[str] = Counter()
    parents = Path(relative).parents
    pending = [(relative, {os.path.realpath(walk.folder / parent) for parent in parents})]
    while pending:
        place, above = pending.pop()
        own = os.path.realpath(walk.folder / place)
        if own in above:
            raise DataError(
                f"{walk.folder / place}: is a link that leads back to a folder it is in; remove it"
            )
        for entry in entries(walk.folder / place):
            path = f"{place}/{entry.name}"
            if entry.is_dir():
                pending.append((path, {*above, own}))
            elif is_image(entry.name):
                found.append(path)
            elif not is_junk(entry.name):
                ignored[ending(entry.name)] += 1
                continue
            if entry.is_symlink():
                walk.links.append(path)
    if (walk.folder / relative).is_symlink():
        walk.links.append(relative)
    if not found:
        kinds, there = " ".join(sorted(EXTENSIONS)), f" but {shortened(sorted(ignored))}" if ignored else ""
        raise DataError(
            f"{walk.folder / relative}: holds no image ({kinds}){there}; remove or fill the folder"
        )
    if bad := next((path for path in found if not is_text(path)), None):
        raise DataError(f"{walk.folder}: the file name {bad!r} is not valid text; rename the file")
    walk.ignored += ignored
    return sorted(found)


def refuse_same(folder: Path, paths: Iterable[str], links: set[str]) -> None:
    """Raises `DataError` where two of the paths, relative to `folder`, are one file.

    Args:
        folder: that they are in.
        paths: N of them, without "..".
        links: those of them that are known to be links; links among the folders are found.
    """
    real: dict[str, str] = {}  # folder -> where it really is
    seen: dict[str, str] = {}

    def place(path: str) -> str:
        above, _, name = path.rpartition("/")
        if above not in real:
            real[above] = os.path.realpath(above)
        return f"{real[above]}/{name}"

    for path in paths:
        full = place(f"{folder}/{posixpath.normpath(path)}")
        if path in links:
            full = place(posixpath.normpath(posixpath.join(posixpath.dirname(full), Path(full).readlink())))
        if other := seen.get(full):
            raise DataError(
                f"{folder}: {other} and {path} are the same file; each image may be there once: remove one of them"
                " (or the link to its folder)"
            )
        seen[full] = path
