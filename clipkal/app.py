"""One run, from the configuration to the results, top to bottom."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clipkal.config import check
from clipkal.errors import ClipkalError
from clipkal.recording import sweep_live, sweep_notes
from clipkal.tracking import Mirror, RunDirectory, run_id, run_path
from clipkal.tracking.wandb_session import in_sweep

if TYPE_CHECKING:
    from clipkal.adapters import Adapter
    from clipkal.backbones import Backbone
    from clipkal.data import FewShotTask
    from clipkal.evaluation import Evaluation
    from clipkal.recording.recorder import Recorder
    from clipkal.training import Training
    from clipkal.uncertainty import Predictive

log = logging.getLogger("clipkal")


def run(cfg: DictConfig) -> float | None:
    """Draws the shots, fine-tunes, evaluates and records one run; returns the validation NLL (for sweepers), if any.

    A run that has already finished with the same settings is skipped; one that was interrupted goes on from
    its checkpoint. Raises ClipkalError for whatever the user can mend.
    """
    check(cfg)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    identity = run_id(settings)
    with RunDirectory(path_of(cfg)) as directory:
        found = directory.begin(identity, OmegaConf.to_yaml(cfg, resolve=True))
        if found.status == "finished":
            absent = directory.lacks(cfg.keep)
            without = f" without {' and '.join(absent)}" if absent else ""
            again = "delete the folder to run it again"
            log.info("%s  already finished%s, skipped (%s)", directory.path, without, again)
            val_nll = directory.summary().get("val_nll")
            if in_sweep():  # whose agent waits for the figure
                with Mirror(cfg.tracking, identity, directory.path, config=settings) as mirror:
                    mirror.summary({"val/nll": val_nll})
            return val_nll
        sweep_notes.began()
        from clipkal.recording.recorder import Recorder, describe  # only now: torch takes seconds to import

        set_up(cfg)
        about: dict[str, Any] = {"run": describe(cfg), "config": settings, **how_it_learns(cfg)}
        with Mirror(cfg.tracking, identity, directory.path, **about) as mirror:
            recorder = Recorder(cfg, directory, mirror, identity)
            task, backbone, skipped = few_shot_task(cfg)
            recorder.begin(task, skipped, backbone)
            adapter = make_adapter(cfg, task, backbone)
            predictive = make_predictive(cfg)
            training = learn(cfg, adapter, task, recorder)
            evaluation = judge(cfg, predictive, adapter, training, task)
            return recorder.finish(adapter, training, predictive, evaluation)


def set_up(cfg: DictConfig) -> None:
    """Sets torch's threads and its seed."""
    import torch

    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)


def how_it_learns(cfg: DictConfig) -> dict[str, str]:
    """The dashboard's kind of job, and the axis of its curves: epochs where learning rates are tried, else images seen."""
    from clipkal.methods import make_plan

    if cfg.optimizer.name == "none":
        return {"job_type": "evaluate"}
    tries_rates = make_plan(cfg, has_validation=False).rates != (None,)
    return {"job_type": "train", "axis": "epoch" if tries_rates else "images_seen"}


def path_of(cfg: DictConfig) -> Path:
    """The run's directory, named by the choices that define the run."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return run_path(
        cfg.output_dir,
        dataset=cfg.dataset.name,
        backbone=cfg.backbone.name,
        method=cfg.method,
        shots=cfg.fewshot.shots,
        seed=cfg.seed,
        overrides=overrides,
    )


def few_shot_task(
    cfg: DictConfig,
) -> "tuple[FewShotTask, Backbone | None, dict[str, list[str]]]":
    """The drawn task as the adapter wants it: features of the frozen backbone, or images for its towers.

    And the backbone, and by set the ids of images that could not be read.
    """
    from clipkal.backbones import featurise, pixelise, remembered_backbone
    from clipkal.backbones.memory import shared
    from clipkal.data.drawing import draw, shared_dataset
    from clipkal.methods import learns_from_images
    from clipkal.recording.recorder import in_multirun

    several = in_multirun()
    task = draw(cfg, shared_dataset(cfg) if several else None)
    on_images = learns_from_images(cfg)
    prepare_task = pixelise if on_images else featurise
    cache = False if on_images else cfg.data.cache  # what learns from images needs the towers at once
    with shared(several and not cfg.data.verify):
        backbone = remembered_backbone(cfg.backbone, cfg.device, cache)
        seen, skipped = prepare_task(
            backbone,
            task,
            cache_dir=cfg.data.cache,
            workers=cfg.data.workers,
            progress=cfg.data.progress and not sweep_live.beside_table(),
            on_bad_image=cfg.data.on_bad_image,
        )
    return seen.with_images(task), backbone, skipped


def make_adapter(cfg: DictConfig, task: Any, backbone: "Backbone | None") -> "Adapter":
    """The trainable part, over the frozen text features; zero-shot until it learns.

    Raises ConfigError where it could not be transferred to other classes, and the task asks for that.
    """
    from clipkal.methods import build_adapter

    adapter = build_adapter(cfg, task.text_features, task.logit_scale, backbone, task.prompts)
    for other in task.transfer.values():
        with adapter.classes(other.text_features):
            pass  # told now, not after the learning
    return adapter


def make_predictive(cfg: DictConfig) -> "Predictive":
    """How probabilities will be read out of what is learnt."""
    from clipkal.methods import build_predictive

    return build_predictive(cfg)


def learn(cfg: DictConfig, adapter: "Adapter", task: Any, recorder: "Recorder") -> "Training | None":
    """Fine-tunes the adapter in place; None where nothing is trainable."""
    if not any(p.requires_grad for p in adapter.parameters()):
        return None
    from clipkal.methods import make_build, make_plan
    from clipkal.training import train

    plan = make_plan(cfg, has_validation=task.val is not None)
    recorder.curves.rates = plan.rates
    try:
        with recorder.interrupt:
            return train(adapter, make_build(cfg), task, plan, recorder, recorder.epoch, recorder.step)
    except FloatingPointError as error:
        raise ClipkalError(
            f"optimizer={cfg.optimizer.name} diverged: {error}; try a smaller step or prior"
        ) from error


def judge(
    cfg: DictConfig, predictive: "Predictive", adapter: "Adapter", training: "Training | None", task: Any
) -> "Evaluation":
    """Evaluates on the ID test set, every OOD set and, with its own classes, every transfer set.

    With the plug-in and with the predictive of the run, which learns what it has to learn first.
    """
    from clipkal.evaluation import evaluate, fit_temperatures
    from clipkal.uncertainty import Plugin, Reader

    reader = Reader(adapter, training.posterior if training else None, cfg.seed, adapter.batch_size)
    predictive.fit(reader, task.shots, task.val)
    how: dict[str, Any] = {"predictives": {"plugin": Plugin(), cfg.predictive.name: predictive}}
    if cfg.predictive.temperature_scaling and task.val is not None:
        how |= {"temperature": fit_temperatures(reader, task.val, **how)}
    sets = {"test": ("id", task.test)} | {name: ("ood", one) for name, one in task.ood.items()}
    known = {"spaces": task.label_spaces, "shots": task.shots, "validation": task.val}
    evaluation = evaluate(reader, sets, **known, **how)
    for name, other in task.transfer.items():
        with adapter.classes(other.text_features):
            found = evaluate(reader, {name: ("transfer", other.test)}, **how)
        evaluation.sets[name] = replace(found.sets[name], class_names=other.class_names)
    return evaluation
