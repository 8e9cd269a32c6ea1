"""From the configuration of a run to its few-shot task."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clipkal.config.schema import DatasetConfig
from clipkal.data.catalogue import entry
from clipkal.data.images import told_by_contents
from clipkal.data.loading import load_dataset
from clipkal.data.sets import Dataset
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
