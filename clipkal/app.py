"""One run, from the configuration to the results, top to bottom."""

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clipkal.adapters import Adapter, build_adapter
from clipkal.backbones import featurise, load_backbone
from clipkal.data import FewShotTask
from clipkal.errors import ClipkalError, ConfigError
from clipkal.evaluation import Evaluation, evaluate, fit_temperatures
from clipkal.inventory.shots import draw
from clipkal.methods import make_build, make_plan
from clipkal.recording import Recorder, describe
from clipkal.tracking import RunDirectory, WandbMirror, run_id, run_path
from clipkal.training import Training, train

log = logging.getLogger("clipkal")


def run(cfg: DictConfig) -> float | None:
    """Draws the shots, fine-tunes, evaluates and records one run; returns the validation NLL (for
    sweepers), if any.

    A run that has already finished with the same settings is skipped; one that was interrupted goes on from
    its checkpoint. Raises ClipkalError for whatever the user can mend.
    """
    prepare(cfg)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    identity = run_id(settings)
    with RunDirectory(path_of(cfg)) as directory:
        found = directory.begin(identity, OmegaConf.to_yaml(cfg, resolve=True))
        if found.status == "finished":
            log.info("%s  already finished, skipped (delete the folder to run it again)", directory.path)
            return directory.summary().get("val_nll")
        about = {"run": describe(cfg), "config": settings}
        with WandbMirror(cfg.tracking, identity, directory.path, **about) as mirror:
            recorder = Recorder(cfg, directory, mirror, identity)
            task, skipped = few_shot_task(cfg)
            recorder.begin(task, skipped)
            adapter = make_adapter(cfg, task)
            training = learn(cfg, adapter, task, recorder)
            evaluation = judge(cfg, adapter, training, task)
            return recorder.finish(adapter, training, evaluation)


def prepare(cfg: DictConfig) -> None:
    """Checks that nothing mandatory is missing, and sets seed and threads. Raises ConfigError."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]} must be given: type {missing[0]}=…")
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)


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


def few_shot_task(cfg: DictConfig) -> tuple[FewShotTask, dict[str, list[str]]]:
    """The drawn task seen through the frozen backbone, and the ids of images that could not be read."""
    task = draw(cfg)
    return featurise(
        load_backbone(cfg.backbone, cfg.device),
        task,
        cache_dir=cfg.data.cache,
        workers=cfg.data.workers,
        progress=cfg.data.progress,
        on_bad_image=cfg.data.on_bad_image,
    )


def make_adapter(cfg: DictConfig, task: Any) -> Adapter:
    """The trainable part, over the frozen text features; zero-shot until it learns."""
    learn_scale = cfg.optimizer.get("learn_scale", False)
    return build_adapter(cfg.adapter.name, task.text_features, task.logit_scale, learn_scale)


def learn(cfg: DictConfig, adapter: Adapter, task: Any, recorder: Recorder) -> Training | None:
    """Fine-tunes the adapter in place; None where nothing is trainable."""
    if not any(p.requires_grad for p in adapter.parameters()):
        return None
    plan = make_plan(cfg, has_validation=task.val is not None)
    try:
        with recorder.interrupt:
            return train(adapter, make_build(cfg), task, plan, recorder, recorder.epoch)
    except FloatingPointError as error:
        raise ClipkalError(
            f"optimizer={cfg.optimizer.name} diverged: {error}; try a smaller step or prior"
        ) from error


def judge(cfg: DictConfig, adapter: Adapter, training: Training | None, task: Any) -> Evaluation:
    """Evaluates on the ID test set and every OOD set, with every predictive that the run has."""
    posterior = training.posterior if training else None
    wanted = cfg.predictive.name
    if wanted != "plugin" and posterior is None:
        raise ConfigError(
            f"predictive={wanted} needs a posterior, which optimizer={cfg.optimizer.name} has not"
        )
    names = ["plugin"] if wanted == "plugin" else ["plugin", wanted]
    how: dict[str, Any] = {"predictives": names, "n_samples": cfg.predictive.samples, "seed": cfg.seed}
    temperatures = None
    if cfg.predictive.temperature and task.val is not None:
        temperatures = fit_temperatures(adapter, posterior, task.val, **how)
    sets = {"test": ("id", task.test)} | {name: ("ood", one) for name, one in task.ood.items()}
    return evaluate(adapter, posterior, sets, temperature=temperatures, **how)
