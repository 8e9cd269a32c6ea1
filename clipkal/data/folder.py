"""Trees of image files: `<path>/<class>/*`, `<path>/<split>/<class>/*`, and several domains side by side.

A *tree* is a folder whose subfolders are classes, or splits (train, val, test) that hold the classes; what else
lies beside splits is an error, unless `dataset.splits` says which folder is what. The
dataset's path is the ID tree itself; with `id_domain` the path holds one tree per domain and that one is ID.
An OOD set is a tree too: a subfolder of the path by its name, or a folder elsewhere; its test split counts,
or else its val split, or else all its images. It may lack classes, and is then scored over those it has; a
class that ID does not know is an error.

Files are listed sorted by path, so that the shots of a seed do not depend on the machine; labels count the classes
in the order of `rows.in_order`: numbers by their value, as in every source. Where a tree has no
splits, each class is split by the sha256 of the file names: a new file never moves an old one from test to
train. Where it has train and val but no test (ImageNet), val is the test set and a new val set is held out
from train.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from clipkal.data.matching import as_shift
from clipkal.data.names import choose, fill_templates, renamed, shortened
from clipkal.data.rows import Listing, class_keys, hold_out
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.shifts import shifted_sets
from clipkal.data.spec import DataSpec
from clipkal.data.splits import role_of
from clipkal.data.tree import Tree, listed_rows, read_tree, rows_of
from clipkal.data.walk import subfolders
from clipkal.errors import DataError


def load(spec: DataSpec) -> Dataset:
    """Reads the tree at `spec.path` (or its subfolder `id_domain`) and the OOD trees.

    Raises:
        DataError: a folder is missing or holds no image, or a class of a test or OOD set is unknown.
    """
    own = _own_tree(spec)
    train, val, test = _id_listings(own, spec)
    keys = class_keys(spec, train)
    _refuse_single(own, train)
    names = renamed(keys, spec.class_names)
    ood = {name: as_shift(name, rows_of(tree), keys, tree.folder) for name, tree in _domains(spec).items()}
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        _image_set(own, f"{spec.name}/train", train, keys),
        _image_set(own, f"{spec.name}/val", val, keys) if val else None,
        _image_set(own, f"{spec.name}/test", test, keys),
        ood | shifted_sets(spec, keys),
    )


def _own_tree(spec: DataSpec) -> Tree:
    inside = subfolders(spec.path)
    if not inside:
        raise DataError(
            f"{spec.path}: has no subfolders; expected <class>/, train/<class>/ or <domain>/<class>/ below it"
        )
    if spec.id_domain is not None:
        choose("dataset.id_domain", spec.id_domain, inside)
        return read_tree(spec.path / spec.id_domain, f"{spec.id_domain}/", splits=spec.splits)
    if not spec.splits and _looks_like_domains(spec.path, inside):
        raise DataError(
            f"{spec.path}: holds several domains; set dataset.id_domain to one of {shortened(inside)}"
        )
    return read_tree(spec.path, without=spec.domains or [], splits=spec.splits)


def _refuse_single(tree: Tree, train: Listing) -> None:
    """One class is most often the folder that a zip was unpacked into."""
    if len(train) > 1:
        return
    paths = next(iter(train.values()))
    place = tree.folder.joinpath(*PurePosixPath(paths[0]).parts[: 1 if "all" in tree.splits else 2])
    deeper = subfolders(place)
    hint = f": it holds the folders {shortened(deeper, 4)}; point dataset.path one folder deeper, or move them up"
    raise DataError(f"{place}: is the only class, and at least two are needed{hint if deeper else ''}")


def _looks_like_domains(folder: Path, inside: list[str]) -> bool:
    """Whether every subfolder holds subfolders (classes or splits) that the first one holds too."""
    if len(inside) < 2 or any(role_of(name) for name in inside):
        return False
    first = subfolders(folder / inside[0])
    return len(first) > 1 and all(set(subfolders(folder / name)) & set(first) for name in inside)


def _domains(spec: DataSpec) -> dict[str, Tree]:
    """The trees of the domains that are OOD; by default every other one, where there are domains."""
    inside = [n for n in subfolders(spec.path) if n != spec.id_domain]
    wanted = spec.domains if spec.domains is not None else inside if spec.id_domain is not None else []
    return {n: read_tree(spec.path / choose("dataset.ood: domain", n, inside), f"{n}/") for n in wanted}


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


def _image_set(tree: Tree, name: str, listing: Listing, keys: list[str]) -> ImageSet:
    """The files of a listing in its order; a class that is not in `keys` is an error."""
    if unknown := sorted(set(listing) - set(keys)):
        raise DataError(
            f"{tree.folder}: {name!r} has classes that train lacks: {shortened(unknown)} (train has: {shortened(keys)})"
        )
    return listed_rows(tree, [(key, path) for key, paths in listing.items() for path in paths]).labelled(
        name, keys
    )
