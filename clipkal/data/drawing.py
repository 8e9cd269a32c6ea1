"""From the configuration of a run to its few-shot task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clipkal import files
from clipkal.config.schema import DatasetConfig
from clipkal.data.catalogue import EMBEDDED, entry
from clipkal.data.images import told_by_contents
from clipkal.data.loading import load_dataset
from clipkal.data.sets import Dataset
from clipkal.data.spec import read_spec
from clipkal.data.task import FewShotTask, draw_task
from clipkal.errors import ConfigError


def draw(cfg: DictConfig, dataset: Dataset | None = None, config_dir: Path | None = None) -> FewShotTask:
    """The few-shot task of a composed configuration, before any backbone has seen it.

    Args:
        cfg: the configuration of a run; `dataset`, `data`, `fewshot` and `seed` count.
        dataset: the loaded dataset, where it is at hand.
        config_dir: where more datasets are described, if not in a run that knows.

    Raises:
        ClipkalError: the dataset cannot be loaded, or cannot give the shots.
    """
    how = cfg.fewshot
    with told_by_contents(cfg.data.verify):
        return draw_task(
            dataset or load_dataset(cfg.dataset, cfg.data.root),
            how.shots,
            cfg.seed,
            how.validation,
            how.protocol,
            short_class=how.short_class,
            subset=how.subset,
            shot_list=how.shot_list,
            others=others(cfg, config_dir),
        )


def others(cfg: DictConfig, config_dir: Path | None = None) -> dict[str, Dataset]:
    """The datasets of `fewshot.transfer`, by the name of their option, or of their file where it gives a path.

    Each is its option in conf/dataset without OOD sets; what the run says of its own dataset is not theirs,
    but for `download`.
    """
    found: dict[str, Dataset] = {}
    for listed in cfg.fewshot.transfer:
        option, _, path = listed.partition(":")
        name = Path(path).stem or option
        if name in found:
            raise ConfigError(f"fewshot.transfer lists {name!r} twice")
        changes = {"ood": [], "download": cfg.dataset.download} | ({"path": path} if path else {})
        described = OmegaConf.merge(
            OmegaConf.structured(DatasetConfig), entry(option, config_dir).config, changes
        )
        found[name] = load_dataset(described, cfg.data.root)
    return found


_last: tuple[Any, Dataset] | None = None
"""What `shared_dataset` gave last, and the key to it."""


def shared_dataset(cfg: DictConfig) -> Dataset:
    """The loaded dataset of a configuration, kept for the next job of a sweep that asks for the same.

    One is kept, the last, as long as it is what it was: its settings are the same, and so are the size and time of change of
    the .npz files that it was read from. One in folders is loaded anew, since looking at all its files is what takes the time;
    so is any with `data.verify=true`, and what a library keeps by name.

    Raises:
        ClipkalError: it cannot be loaded.
    """
    global _last
    key = _key(cfg)
    if key is None or _last is None or _last[0] != key:
        _last = None  # before the next is loaded, so that two never take memory
        dataset = load_dataset(cfg.dataset, cfg.data.root)
        if key is None:
            return dataset
        _last = key, dataset
    return _last[1]


def _key(cfg: DictConfig) -> Any:
    """Everything that defines a loaded dataset; None where that cannot be told by a look at a few files."""
    if cfg.data.verify or cfg.dataset.source not in (*EMBEDDED, "features", "archive"):
        return None
    spec, root = read_spec(cfg.dataset, cfg.data.root), files.expanded(cfg.data.root).absolute()
    places = [] if spec.source in EMBEDDED else [spec.path]
    places += [shift.path for shift in spec.shifts.values()]
    if not all(place.suffix == ".npz" and place.is_file() for place in places):
        return None
    maps = [shift.class_map for shift in cfg.dataset.shifts.values()]
    lists = [files.expanded(one) for one in (cfg.dataset.class_names, *maps) if isinstance(one, str)]
    places += [root / one for one in lists]
    stamps = [files.stamps(place.parent, [place.name]) for place in places]
    return OmegaConf.to_container(cfg.dataset, resolve=True), places, stamps
