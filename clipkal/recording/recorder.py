"""What a run leaves behind: everything that is written between the first shot and `finished.json`."""

import logging
import time
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from clipkal.adapters import Adapter
from clipkal.backbones import Backbone
from clipkal.data import FeatureSet, FewShotTask
from clipkal.errors import ClipkalError
from clipkal.evaluation import Evaluation
from clipkal.files import digest
from clipkal.optim.base import StepInfo
from clipkal.recording import charts, predictions
from clipkal.recording.checkpoint import Checkpoint, save_adapter, save_predictive
from clipkal.recording.curves import Curves
from clipkal.recording.interrupt import Interrupt
from clipkal.recording.memory import PeakMemory
from clipkal.recording.places import places
from clipkal.tracking import Mirror, RunDirectory, environment, other_choices
from clipkal.tracking.inputs import Record, inputs_of
from clipkal.tracking.kept import PREDICTIONS, keeps
from clipkal.tracking.tensors import packed
from clipkal.training import Progress, State, Training
from clipkal.uncertainty import Predictive

log = logging.getLogger("clipkal")

EPOCHS = 100_000
"""More epochs than any trial has."""

MOST_CLASSES = 200
"""With more classes than this, predictions.parquet leaves the probabilities out (1000 are 4 kB an image)."""
ARTIFACT = (
    "config.yaml", "results.json", "shots.json", "classes.safetensors", "adapter.safetensors", "posterior.safetensors",
    "predictive.safetensors", "predictions.parquet", "finished.json",
)  # fmt: skip
"""What W&B keeps as the run's artifact: all that `clipkal.load_run` reads."""
FINAL = ("accuracy", "nll", "brier", "ece")
"""The metrics that go to metrics.csv and finished.json; results.json has all."""


class Recorder:
    """Writes one run's files as they come to be known: shots, curves, checkpoints, results.

    It is the training loop's `Saver` (a checkpoint every `checkpoint_every` seconds, and at once when a signal asks the run
    to stop: then SystemExit), its `Report` (lines in metrics.csv and on the dashboard for every epoch) and its `Watch` (a
    few hundred points on the dashboard for the steps).
    """

    def __init__(self, cfg: DictConfig, directory: RunDirectory, mirror: Mirror, identity: str):
        self.cfg, self.directory, self.mirror, self.identity = cfg, directory, mirror, identity
        self.interrupt = Interrupt()
        self.path = directory.path / "checkpoint.pt"
        self.saved_at = time.monotonic()
        self.run: dict[str, Any] = {}
        self.skipped: dict[str, list[str]] = {}
        self.fingerprint: dict[str, Any] = {}
        self.inputs: Record = {}
        self.environment = environment()
        self.memory = PeakMemory()
        self.curves = Curves(mirror, cfg.tracking.curve_points)

    def begin(self, task: FewShotTask, skipped: dict[str, list[str]], backbone: Backbone | None) -> None:
        """Records which images were drawn, which could not be read, and what files, classes and weights all that came from."""
        self.skipped = skipped
        assert task.text_features is not None  # it has been through the backbone, or came with features
        if self.keeps("classes.safetensors"):
            self.directory.save_tensors(
                "classes", {"text_features": task.text_features}, classes_record(task, backbone)
            )
        self.inputs = inputs_of(self.cfg).record(places(self.cfg, task))
        self.directory.write_shots(task.record)
        self.run = describe(self.cfg) | {
            "overrides": other_choices(HydraConfig.get().overrides.task if HydraConfig.initialized() else []),
            "shots_sha256": task.record["sha256"],
            "classes": task.class_names,
            "train_images": len(task.shots),
            "val_images": 0 if task.val is None else len(task.val),
        }
        self.task = task
        self.curves.images = len(task.shots)
        self._describe_on_mirror()
        self.fingerprint = {
            "run": self.identity,
            "shots": task.record["sha256"],
            "classes": digest(*task.class_names),
            "features": _content(task.shots),
        }

    def _describe_on_mirror(self) -> None:
        """What the configuration does not say: what was drawn, from which files, by which versions, on what."""
        drawn = {name: value for name, value in self.run.items() if name not in ("overrides", "classes")}
        drawn |= {"classes": len(self.run["classes"])}
        self.mirror.config({"run": drawn, "inputs": self.inputs, "environment": self.environment})

    # -- the training loop's Saver, Report and Watch --

    def restore(self) -> State | None:
        """The state of an interrupted run of the same settings, or None."""
        state = Checkpoint.load(self.path, self.fingerprint)
        if state:
            log.info("going on from the checkpoint in %s", self.directory.path)
            self.directory.trim(_step(state["trial"], self._next_point(state)))
            if self.mirror.wants_all:
                self._replay()
        else:
            self.directory.trim(0)
        return state

    def _next_point(self, state: State) -> float:
        """Where every point from here on has yet to be logged: half an image on, but an epoch at its end."""
        seen = state.get("images", 0)  # absent from a state of before there were looks within an epoch
        return float(state["epoch"] + min(1.0, (seen + 0.5) / len(self.task.shots)))

    def after_step(self, state: Callable[[], State]) -> None:
        """Saves a checkpoint when it is time, or when the run was asked to stop."""
        stop = self.interrupt.requested
        if stop or time.monotonic() - self.saved_at >= self.cfg.checkpoint_every:
            Checkpoint.save(self.path, state(), self.fingerprint)
            self.saved_at = time.monotonic()
        if stop:
            log.info("stopped; the same command goes on from here")
            raise SystemExit(self.interrupt.exit_code)

    def _replay(self) -> None:
        """Gives the mirror the epochs that metrics.csv has from before the interruption."""
        epochs: dict[float, dict[str, float]] = {}
        for step, _, _, metric, value in self.directory.logged():
            epochs.setdefault(step, {})[metric] = value
        for step, values in epochs.items():
            trial, epoch = divmod(step, EPOCHS)
            self.curves.epoch(int(trial), epoch, values)

    def epoch(self, trial: int, epoch: float, values: dict[str, float]) -> None:
        """The lines for a point of a trial's curve: its means and, after an epoch, what the optimiser said after its last step."""
        named = {name: value for name, value in values.items() if name != "epoch"}
        self.directory.log_all(_step(trial, epoch), f"trial{trial}", self.cfg.dataset.name, named)
        self.curves.epoch(trial, epoch, named)

    def step(self, progress: Progress, info: StepInfo) -> None:
        """A point on the dashboard for the step, if it is its turn."""
        self.curves.step(progress, info)

    # -- the end --

    def finish(
        self, adapter: Adapter, training: Training | None, predictive: Predictive, evaluation: Evaluation
    ) -> float | None:
        """Writes results, predictions, adapter, posterior, predictive and figures; `finished.json` comes last."""
        results = {
            "run": self.run,
            **evaluation.to_dict(),
            "training": _training_record(training)
            | {"parameters": _trained_parameters(adapter), **self.memory.record()},
            "skipped": self.skipped,
            "environment": self.environment,
        }
        self._log_final(evaluation, training)
        log.debug("learnt with %s", results["training"].get("optimizer", "nothing"))
        self.directory.write_results(results)
        if self.keeps(PREDICTIONS):
            widest = max(len(one.classes) for one in evaluation.sets.values())
            self.directory.write_predictions(predictions.table(evaluation, widest <= MOST_CLASSES))
        if self.keeps("adapter.safetensors"):
            self._save_model(adapter, training, predictive)
        if _wants(self.cfg.figures):
            self._draw(evaluation)
        self._show(evaluation, training)
        summary = _summary(evaluation, training)
        self.directory.finish(summary, self.inputs)
        if self.cfg.tracking.artifacts:
            self.mirror.artifact("run", [self.directory.path / name for name in ARTIFACT])
        Checkpoint.delete(self.path)
        log.info("%s  %s", self.directory.path, _headline(summary, evaluation.reported))
        if self.mirror.later_line and not in_multirun():
            log.info("%s", self.mirror.later_line)
        return summary["val_nll"]

    def keeps(self, name: str) -> bool:
        """Whether this file is to stay on disk."""
        return keeps(self.cfg.keep, name)

    def _save_model(self, adapter: Adapter, training: Training | None, predictive: Predictive) -> None:
        about = {**self.run, "run_id": self.identity, "adapter_settings": adapter.describe()}
        save_adapter(self.directory.path / "adapter.safetensors", adapter.state_dict(), about)
        if training and training.posterior is not None:
            tensors, structure = packed(training.optimizer.extra_state())
            self.directory.save_tensors("posterior", tensors, {**about, "state": structure})
        save_predictive(self.directory.path / "predictive.safetensors", predictive, about)

    def _show(self, evaluation: Evaluation, training: Training | None) -> None:
        """The finished run on the dashboard. A view of results.json, whose failure must not keep the run from finishing."""
        if self.mirror.mode == "disabled":
            return
        try:
            self.curves.kept(training)
            final = charts.final_metrics(evaluation)
            self.mirror.log(final, step=self.curves.steps, epoch=self.curves.last_epoch)
            self.mirror.summary(charts.headline(final, training))
            self.mirror.table("tables/sets", *charts.sets_table(evaluation))
            self.mirror.table("tables/classes", *charts.classes_table(evaluation, self.task.class_names))
            self.mirror.lines("charts/reliability", charts.reliability_lines(evaluation))
            self.mirror.lines("charts/risk_coverage", charts.risk_coverage_lines(evaluation))
            if _wants(self.cfg.tracking.media):
                about = (evaluation, self.task.class_names, self.task.images, self.cfg.seed)
                self.mirror.table("tables/images", *charts.images_table(*about))
        except ClipkalError:  # a full disk
            raise
        except Exception as error:
            log.warning("%s: the dashboard could not be given everything (%s)", self.directory.path, error)

    def _draw(self, evaluation: Evaluation) -> None:
        """The run's figures, here and on the dashboard. Views of its results, whose failure must not keep it from finishing."""
        try:
            from clipkal.recording.run_figures import run_figures

            for name, draw in run_figures().items():
                if (figure := draw(evaluation)) is not None:
                    self.mirror.image(self.directory.save_figure(name, figure))
        except ClipkalError:  # a full disk
            raise
        except Exception as error:  # a broken installation of matplotlib, a matplotlibrc that it refuses, …
            log.warning("%s: no figure could be drawn (%s)", self.directory.path, error)

    def _log_final(self, evaluation: Evaluation, training: Training | None) -> None:
        """The final metrics of every set, in long form beside the curves."""
        step = _step(len(training.trials), 0) if training else 0
        for name, one in evaluation.sets.items():
            for predictive, metrics in one.metrics.items():
                named = {f"{predictive}/{metric}": metrics[metric] for metric in FINAL}
                self.directory.log_all(step, one.role, name, named)


def _wants(choice: bool | str) -> bool:
    """Whether to draw; auto: single runs show their own figures, those of a multirun's jobs are clipkal-report's."""
    return not in_multirun() if choice == "auto" else bool(choice)


def in_multirun() -> bool:
    """Whether this run is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _content(shots: Any) -> str:
    """A digest of what the optimiser is shown: features, or images by their own digest."""
    if isinstance(shots, FeatureSet):
        return digest(shots.inputs.numpy().tobytes())
    return digest(shots.digest)


def describe(cfg: DictConfig) -> dict[str, Any]:
    """The choices that define a run, in the words that tables and dashboards use."""
    return {
        "dataset": cfg.dataset.name,
        "id_domain": cfg.dataset.get("id_domain"),
        "backbone": cfg.backbone.name,
        "method": cfg.method,
        "adapter": cfg.adapter.name,
        "optimizer": cfg.optimizer.name,
        "predictive": cfg.predictive.name,
        "shots": cfg.fewshot.shots,
        "seed": cfg.seed,
        "validation": cfg.fewshot.validation,
        "protocol": cfg.fewshot.protocol,
    }


def classes_record(task: FewShotTask, backbone: Backbone | None) -> dict[str, Any]:
    """What classes.safetensors says beside the text features: how the classes were put into words, and for which weights."""
    return {
        "class_names": task.class_names,
        "prompts": task.prompts,
        "logit_scale": task.logit_scale,
        "backbone": backbone and {**backbone.identity, "transform": backbone.transform},
    }


def _step(trial: int, epoch: float) -> float:
    """One growing step number over all trials, which have fewer than 100,000 epochs; no whole number within an epoch."""
    return trial * EPOCHS + epoch


def _training_record(training: Training | None) -> dict[str, Any]:
    """How the parameters were found: by what, kept epoch and rate, every trial's curve, seconds."""
    if training is None:
        return {"seconds": 0.0, "trials": []}
    kept = training.kept
    return {
        "rate": kept.rate,
        "epoch": kept.epoch,
        "val_nll": kept.val_nll,
        "seconds": training.seconds,
        "optimizer": training.optimizer.describe(),
        "last_step": training.last_step,
        "trials": [vars(trial) for trial in training.trials],
    }


def _trained_parameters(adapter: Adapter) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad)


def _summary(evaluation: Evaluation, training: Training | None) -> dict[str, Any]:
    """The few final numbers, flat: <set>/<predictive>/<metric>."""
    flat: dict[str, Any] = {"val_nll": training.kept.val_nll if training else None}
    for name, one in evaluation.sets.items():
        for predictive, metrics in one.metrics.items():
            for metric in FINAL:
                flat[f"{name}/{predictive}/{metric}"] = metrics[metric]
    for name, scores in evaluation.detection.items():
        for score, values in scores.items():
            flat[f"detection/{name}/{score}/auroc"] = values["auroc"]
    return flat


def _headline(summary: dict[str, Any], reported: str) -> str:
    accuracy, nll, ece = (summary[f"test/{reported}/{metric}"] for metric in ("accuracy", "nll", "ece"))
    return f"ID accuracy {accuracy:.1%}  NLL {nll:.3f}  ECE {ece:.1%}"
