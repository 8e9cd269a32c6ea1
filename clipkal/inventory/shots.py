"""The shots a run would learn from, drawn exactly as the run draws them."""

from __future__ import annotations

import json

from omegaconf import DictConfig

from clipkal.data import Dataset, FewShotTask, draw_task, load_dataset


def draw(cfg: DictConfig, dataset: Dataset | None = None) -> FewShotTask:
    """The few-shot task of a composed configuration, before any backbone has seen it.

    Args:
        cfg: the configuration of a run; `dataset`, `data`, `fewshot` and `seed` count.
        dataset: the loaded dataset, where it is at hand.

    Raises:
        ClipkalError: the dataset cannot be loaded, or cannot give the shots.
    """
    how = cfg.fewshot
    return draw_task(
        dataset or load_dataset(cfg.dataset, cfg.data.root),
        how.shots,
        cfg.seed,
        how.validation,
        how.protocol,
        short_class=how.short_class,
        subset=how.subset,
        shot_list=how.shot_list,
    )


def shot_list(task: FewShotTask) -> str:
    """The record of the draw as text, byte for byte what a run writes to `shots.json`."""
    return json.dumps(task.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
