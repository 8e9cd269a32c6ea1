"""Any classification dataset of `torchvision.datasets`, by its class name (`dataset.torchvision`).

Its own splits are taken: train, val and test, by whichever of the arguments `train` and `split` it has; what
is missing is held out as of a folder. Labels must be known without decoding every image, as nearly all are.
A class with several names (Imagenette, ImageNet) is called by the first, and its prompts use all of them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

from PIL import Image

from clipkal import files
from clipkal.data.fetch import by_hand
from clipkal.data.images import file_stamps, to_rgb
from clipkal.data.names import choose, fill_templates
from clipkal.data.rows import Rows, dataset_of
from clipkal.data.sets import Dataset
from clipkal.data.shifts import with_shifts
from clipkal.data.spec import DataSpec
from clipkal.errors import ConfigError, DataError

SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
_KINDS_OF_OOD = "give name:path, one of dataset.shifts, or a corruption such as jpeg@3"
LABELS = ("targets", "labels", "_labels", "y")  # what its classes call their labels
SAMPLES = ("samples", "_samples")  # (path, label) of every image


@dataclass(frozen=True)
class TorchvisionDecoder:
    """Position -> image of a dataset without transforms."""

    dataset: Any
    name: str

    def __call__(self, i: int) -> Image.Image:
        try:
            return to_rgb(self.dataset[i][0])
        except Exception as error:  # the many kinds of Pillow's decoders
            raise DataError(f"{self.name}/{i:05d}: cannot be read as an image ({error})") from error


def load(spec: DataSpec) -> Dataset:
    """Reads the dataset below `spec.path`, or downloads it there where `spec.download` says so.

    Raises:
        ConfigError: `dataset.torchvision` is no class of torchvision.datasets with these arguments.
        DataError: the files are missing or damaged, or cannot be downloaded.
    """
    if spec.domains:
        raise DataError(
            f"dataset.ood: {spec.domains[0]!r}: {spec.torchvision} has no domains; {_KINDS_OF_OOD}"
        )
    whole = _splits(spec)
    labels = {role: _labels(one, spec) for role, one in whole.items()}
    ways = _names(whole["train"])
    keys = [
        str(i) for i in range(max(len(ways), 1 + max(max(found, default=0) for found in labels.values())))
    ]
    if len(ways) != len(keys):
        ways = [[key] for key in keys]
    parts = {role: _rows(role, one, labels[role], spec) for role, one in whole.items()}
    shown = [names[0] for names in ways]
    dataset = dataset_of(spec, keys, parts, shown)
    if spec.class_names is None:
        dataset = replace(dataset, prompts=fill_templates(spec.templates, ways))
    return with_shifts(dataset, spec, shown)


def _names(one: Any) -> list[list[str]]:
    """What each class is called, in label order, its usual name first; empty where torchvision does not say."""
    places: dict[str, int] = getattr(one, "class_to_idx", {})
    in_order = sorted(places, key=lambda name: places[name])
    listed = getattr(one, "classes", None) or getattr(one, "categories", None) or in_order
    return [list(map(str, names)) if isinstance(names, tuple | list) else [str(names)] for names in listed]


def _splits(spec: DataSpec) -> dict[str, Any]:
    """The dataset's own splits by role."""
    import torchvision.datasets

    known = [name for name, kind in vars(torchvision.datasets).items() if _has_images(kind)]
    if not spec.torchvision:
        raise ConfigError(
            "dataset.torchvision must be set to a class of torchvision.datasets, such as CIFAR10"
        )
    choose("dataset.torchvision:", spec.torchvision, known, ConfigError)
    kind = getattr(torchvision.datasets, spec.torchvision)
    arguments = inspect.signature(kind.__init__).parameters
    if "train" in arguments:
        return {"train": _open(kind, spec, train=True), "test": _open(kind, spec, train=False)}
    if "split" not in arguments:
        return {"train": _open(kind, spec)}
    found = {}
    for role, words in SPLITS.items():
        for word in words:
            try:
                found[role] = _open(kind, spec, split=word)
                break
            except ValueError:  # the dataset has no such split
                continue
    if "train" not in found:
        raise ConfigError(f"dataset.torchvision={spec.torchvision}: has no split called train or trainval")
    return found


def _has_images(kind: Any) -> bool:
    return inspect.isclass(kind) and "root" in inspect.signature(kind.__init__).parameters


def _open(kind: Any, spec: DataSpec, **split: Any) -> Any:
    """One split; raises ValueError where there is no such split, DataError where its files are missing."""
    fetching = spec.download and "download" in inspect.signature(kind.__init__).parameters
    url = next((str(u) for u in (getattr(kind, "url", None), *getattr(kind, "mirrors", ())) if u), None)
    try:
        return kind(str(spec.path), **split, **({"download": True} if fetching else {}))
    except (TypeError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"dataset.torchvision={kind.__name__} cannot be opened by its folder alone ({error}); "
            "use source=folder or source=table"
        ) from error
    except Exception as error:  # what torchvision's many readers raise on files that are not theirs
        if split.get("split") and isinstance(error, ValueError):
            raise
        if fetching:
            raise by_hand(spec.path, url or f"torchvision's {kind.__name__}", error) from error
        raise DataError(
            f"{spec.path}: torchvision's {kind.__name__} is not there, or damaged; set dataset.download=true to "
            f"fetch it, or unpack it there{f' from {url}' if url else ''}, or check dataset.path"
        ) from error


def _labels(one: Any, spec: DataSpec) -> list[int]:
    """Every label, without a look at the images."""
    given = next((getattr(one, name) for name in LABELS if hasattr(one, name)), None)
    if given is None:
        samples = next((getattr(one, name) for name in SAMPLES if hasattr(one, name)), None)
        given = None if samples is None else [sample[1] for sample in samples]
    try:
        labels = [index(label) for label in given]  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"dataset.torchvision={spec.torchvision}: is no dataset of one label an image that torchvision lists"
        ) from error
    if min(labels, default=-1) < 0:
        raise DataError(f"{spec.path}: {spec.torchvision} has images without a label")
    return labels


def _rows(role: str, one: Any, labels: list[int], spec: DataSpec) -> Rows:
    ids = [f"{role}/{i:05d}" for i in range(len(labels))]
    digest = files.digest("torchvision", str(spec.torchvision), role, _state(one, spec.path))
    return Rows(
        ids, [str(label) for label in labels], TorchvisionDecoder(one, f"{spec.path}: {role}"), digest
    )


def _state(one: Any, folder: Path) -> str:
    """A digest of the pixels where they are in memory, else of the files below the folder."""
    pixels = getattr(one, "data", None)
    if pixels is not None and hasattr(pixels, "__array__"):
        return files.digest(pixels.__array__().tobytes())
    relative = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return files.digest(*relative, *map(str, file_stamps(folder, relative)))
