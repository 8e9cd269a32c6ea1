"""Trees of image files: `<path>/<class>/*`, `<path>/<split>/<class>/*`, and several domains side by side.

A *tree* is a folder whose subfolders are classes, or splits (train, val, test) that hold the classes. The
dataset's path is the ID tree itself; with `id_domain` the path holds one tree per domain and that one is ID.
An OOD set is a tree too: a subfolder of the path by its name, or a folder elsewhere; its test split counts,
or else its val split, or else all its images. It may lack classes, and is then scored over those it has; a
class that ID does not know is an error.

Files are listed sorted by path, so that the shots of a seed do not depend on the machine. Where a tree has no
splits, each class is split by the sha256 of the file names: a new file never moves an old one from test to
train. Where it has train and val but no test (ImageNet), val is the test set and a new val set is held out
from train.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clipkal import files
from clipkal.data.images import EXTENSIONS, FileDecoder, file_stamps
from clipkal.data.names import choose, fill_templates, renamed, shortened, spoken
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.spec import DataSpec
from clipkal.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
Listing = dict[str, list[str]]  # class -> sorted file paths relative to the tree


@dataclass(frozen=True)
class Tree:
    """A folder and its listings by split; the key "all" stands for a tree without splits."""

    folder: Path
    prefix: str  # what its ids start with, "" or "name/"
    splits: dict[str, Listing]


def load(spec: DataSpec) -> Dataset:
    """Reads the tree at `spec.path` (or its subfolder `id_domain`) and the OOD trees.

    Raises:
        DataError: a folder is missing or holds no image, or a class of a test or OOD set is unknown.
    """
    own = _own_tree(spec)
    train, val, test = _id_listings(own, spec)
    keys = sorted(train)
    names = renamed(keys, spec.class_names)
    ood = {name: ood_set(name, tree, keys, own.folder) for name, tree in _ood_trees(spec).items()}
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        image_set(own, f"{spec.name}/train", train, keys),
        image_set(own, f"{spec.name}/val", val, keys) if val else None,
        image_set(own, f"{spec.name}/test", test, keys),
        ood,
    )


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
            f"{base}/{e}" for e in entries if Path(e).suffix.lower() in EXTENSIONS and not e.startswith(".")
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


def _own_tree(spec: DataSpec) -> Tree:
    inside = subfolders(spec.path)
    if not inside:
        raise DataError(
            f"{spec.path}: has no subfolders; expected <class>/, train/<class>/ or <domain>/<class>/ below it"
        )
    if spec.id_domain is not None:
        choose("dataset.id_domain", spec.id_domain, inside)
        return read_tree(spec.path / spec.id_domain, f"{spec.id_domain}/")
    if _looks_like_domains(spec.path, inside):
        raise DataError(
            f"{spec.path}: holds several domains; set dataset.id_domain to one of {shortened(inside)}"
        )
    return read_tree(spec.path, without=spec.domains or [])


def _looks_like_domains(folder: Path, inside: list[str]) -> bool:
    """Whether every subfolder holds subfolders (classes or splits) that the first one holds too."""
    if len(inside) < 2 or any(name.lower() in SPLITS for name in inside):
        return False
    first = subfolders(folder / inside[0])
    return len(first) > 1 and all(set(subfolders(folder / name)) & set(first) for name in inside)


def _ood_trees(spec: DataSpec) -> dict[str, Tree]:
    """The OOD trees by name; by default every other domain, where there are domains."""
    inside = [n for n in subfolders(spec.path) if n != spec.id_domain]
    wanted = spec.domains if spec.domains is not None else inside if spec.id_domain is not None else []
    trees = {n: read_tree(spec.path / choose("dataset.ood: domain", n, inside), f"{n}/") for n in wanted}
    return trees | {name: read_tree(place, f"{name}/") for name, place in spec.elsewhere.items()}


def _id_listings(tree: Tree, spec: DataSpec) -> tuple[Listing, Listing | None, Listing]:
    """Train, val and test of the ID tree, held out where it lacks them."""
    splits, val_fraction = dict(tree.splits), spec.val_fraction
    if "all" in splits:
        rest, test = hold_out(splits["all"], spec.test_fraction)
        splits, val_fraction = {"train": rest, "test": test}, val_fraction / (1 - spec.test_fraction)
    if "train" not in splits:
        raise DataError(f"{tree.folder}: has no train folder beside {', '.join(splits)}")
    if "test" not in splits:
        splits["test"] = splits.pop("val", {})
    if not any(splits["test"].values()):
        raise DataError(
            f"{tree.folder}: has no test images; add a test folder, or set dataset.test_fraction above 0"
        )
    if "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], min(val_fraction, 1.0))
    val = splits["val"] if any(splits["val"].values()) else None
    return splits["train"], val, splits["test"]


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


def ood_set(name: str, tree: Tree, keys: list[str], own: Path) -> ImageSet:
    """The test (or val, or only) images of an OOD tree under the labels of ID, whose classes are `keys`.

    A folder stands for the class of its name, upper and lower case and underscores aside; folders called
    0, 1, 2, … stand for the classes in order, as in ImageNetV2.

    Raises:
        DataError: the tree has train images only, or a class that ID lacks.
    """
    split = next((s for s in ("test", "val", "all") if s in tree.splits), None)
    if split is None:
        raise DataError(f"{tree.folder}: has only a train folder; an OOD set needs test or val images")
    loose = {spoken(key).lower(): key for key in keys}
    listing: Listing = {}
    for folder, paths in tree.splits[split].items():
        key = folder if folder in keys else loose.get(spoken(folder).lower(), folder)
        listing[key] = sorted(listing.get(key, []) + paths)
    if all(key.isdecimal() and int(key) < len(keys) for key in set(listing) - set(keys)):
        listing = {key if key in keys else keys[int(key)]: paths for key, paths in listing.items()}
    if unknown := sorted(set(listing) - set(keys)):
        raise DataError(
            f"{tree.folder}: OOD set {name!r} has classes that {own} lacks: {shortened(unknown)} "
            f"(known: {shortened(keys)}); rename or remove the folders"
        )
    return image_set(tree, name, listing, keys)


def image_set(tree: Tree, name: str, listing: Listing, keys: list[str]) -> ImageSet:
    """The files of a listing in class order, labelled by the place of their class in `keys`.

    Raises:
        DataError: a class is not in `keys`.
    """
    if unknown := sorted(set(listing) - set(keys)):
        raise DataError(f"{tree.folder}: {name!r} has classes that train lacks: {shortened(unknown)}")
    present = [(label, listing[key]) for label, key in enumerate(keys) if key in listing]
    relative = [path for _, paths in present for path in paths]
    labels = [label for label, paths in present for _ in paths]
    return from_files(name, tree.folder, relative, labels, tree.prefix)


def from_files(name: str, folder: Path, relative: list[str], labels: list[int], prefix: str = "") -> ImageSet:
    """A set of files; its digest is of every id, label, size and time of change, not of where they lie."""
    ids = [prefix + path for path in relative]
    stamps = file_stamps(folder, relative)
    rows = (f"{i}\0{label}\0{stamp}\n" for i, label, stamp in zip(ids, labels, stamps, strict=True))
    return ImageSet(
        name, ids, torch.tensor(labels, dtype=torch.int64), FileDecoder(folder, relative), files.digest(*rows)
    )
