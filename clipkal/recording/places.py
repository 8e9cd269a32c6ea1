"""Where the inputs of a run lie: the files and folders that its configuration names."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clipkal import files
from clipkal.backbones.sources import MINI_FOLDER
from clipkal.config.schema import DatasetConfig
from clipkal.data import FewShotTask
from clipkal.data.catalogue import EMBEDDED, entry
from clipkal.data.spec import DataSpec, read_spec


def places(cfg: DictConfig, task: FewShotTask) -> list[Path]:
    """The files and folders that exist, without repetition: images, tables, archives, lists and weights.

    What has no place of its own is left out: the embedded datasets, which are code, and weights and datasets
    that a library keeps in a cache of its own by name.
    """
    named = [*_data(cfg, task), *_named_files(cfg), *_weights(cfg.backbone)]
    return [path for path in dict.fromkeys(named) if path.exists()]


def _data(cfg: DictConfig, task: FewShotTask) -> Iterator[Path]:
    root = cfg.data.root
    specs = [read_spec(cfg.dataset, root), *(_other(listed, root) for listed in cfg.fewshot.transfer)]
    for spec in specs:
        if spec.source not in EMBEDDED and not spec.repository:
            yield from _with_images(spec.path, task)
        for shift in spec.shifts.values():
            yield from _with_images(shift.path, task)


def _other(listed: str, root: str) -> DataSpec:
    """One of fewshot.transfer: an option of conf/dataset, or option:path."""
    option, _, path = listed.partition(":")
    changes: dict[str, Any] = {"ood": []} | ({"path": path} if path else {})
    return read_spec(
        OmegaConf.merge(OmegaConf.structured(DatasetConfig), entry(option).config, changes), root
    )


def _with_images(path: Path, task: FewShotTask) -> Iterator[Path]:
    """A folder or file, and beside a file that lists images (.csv, .json) the folders it takes them from."""
    yield path
    if path.name.endswith("_data.npy"):
        yield path.with_name(path.name.replace("_data.npy", "_labels.npy"))
    if path.suffix.lower() in (".csv", ".json"):
        yield from _image_folders(path.parent, _ids(task))


def _image_folders(folder: Path, ids: Iterable[str]) -> list[Path]:
    """The subfolders that the ids start with, or the whole folder where they do not say or start with a file."""
    tops = {name.partition("/")[0] for name in ids}
    found = [folder / top for top in sorted(tops) if (folder / top).exists()]
    return found if found and all(path.is_dir() for path in found) else [folder]


def _ids(task: FewShotTask) -> Iterator[str]:
    sets = [task.shots, task.test, *task.ood.values(), *(other.test for other in task.transfer.values())]
    for one in sets if task.val is None else [*sets, task.val]:
        yield from one.ids


def _named_files(cfg: DictConfig) -> Iterator[Path]:
    root = files.expanded(cfg.data.root).absolute()
    maps = [shift.class_map for shift in cfg.dataset.shifts.values()]
    for name in (cfg.dataset.class_names, *maps):
        if isinstance(name, str):
            yield root / files.expanded(name)
    if cfg.fewshot.shot_list:
        yield files.expanded(cfg.fewshot.shot_list).absolute()


def _weights(backbone: DictConfig) -> Iterator[Path]:
    if backbone.model == "mini":
        yield from sorted(path for path in MINI_FOLDER.iterdir() if path.suffix != ".md")
    elif str(backbone.model).startswith("local-dir:"):
        yield files.expanded(str(backbone.model).removeprefix("local-dir:")).absolute()
    elif backbone.pretrained and (file := files.expanded(backbone.pretrained)).is_file():
        yield file.absolute()
