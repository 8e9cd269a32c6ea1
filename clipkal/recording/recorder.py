"""What a run leaves behind: everything that is written between the first shot and `finished.json`."""

import logging
import time
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from torch import Tensor

from clipkal.adapters import Adapter
from clipkal.data import FeatureSet, FewShotTask
from clipkal.errors import ClipkalError
from clipkal.evaluation import Evaluation
from clipkal.files import digest
from clipkal.recording import predictions
from clipkal.recording.checkpoint import Checkpoint, save_adapter, save_predictive
from clipkal.recording.interrupt import Interrupt
from clipkal.recording.places import places
from clipkal.tracking import RunDirectory, WandbMirror, environment, other_choices
from clipkal.tracking.inputs import Record, inputs_of
from clipkal.training import State, Training
from clipkal.uncertainty import Predictive

log = logging.getLogger("clipkal")

MOST_CLASSES = 200
"""With more classes than this, predictions.parquet leaves the probabilities out (1000 are 4 kB an image)."""
FINAL = ("accuracy", "nll", "brier", "ece")
"""The metrics that go to metrics.csv and W&B's summary; results.json has all."""


class Recorder:
    """Writes one run's files as they come to be known: shots, curves, checkpoints, results.

    It is the training loop's `Saver` (a checkpoint every `checkpoint_every` seconds, and at once when a
    signal asks
    the run to stop: then SystemExit) and its `Report` (a line in metrics.csv and W&B for every epoch).
    """

    def __init__(self, cfg: DictConfig, directory: RunDirectory, mirror: WandbMirror, identity: str):
        self.cfg, self.directory, self.mirror, self.identity = cfg, directory, mirror, identity
        self.interrupt = Interrupt()
        self.path = directory.path / "checkpoint.pt"
        self.saved_at = time.monotonic()
        self.run: dict[str, Any] = {}
        self.skipped: dict[str, list[str]] = {}
        self.fingerprint: dict[str, Any] = {}
        self.inputs: Record = {}

    def begin(self, task: FewShotTask, skipped: dict[str, list[str]]) -> None:
        """Records which images were drawn, which could not be read, and what files all that came from."""
        self.skipped = skipped
        self.inputs = inputs_of(self.cfg).record(places(self.cfg, task))
        self.directory.write_shots(task.record)
        self.run = describe(self.cfg) | {
            "overrides": other_choices(HydraConfig.get().overrides.task if HydraConfig.initialized() else []),
            "shots_sha256": task.record["sha256"],
            "classes": task.class_names,
            "train_images": len(task.shots),
            "val_images": 0 if task.val is None else len(task.val),
        }
        self.fingerprint = {
            "run": self.identity,
            "shots": task.record["sha256"],
            "classes": digest(*task.class_names),
            "features": _content(task.shots),
        }

    # -- the training loop's Saver and Report --

    def restore(self) -> State | None:
        """The state of an interrupted run of the same settings, or None."""
        state = Checkpoint.load(self.path, self.fingerprint)
        if state:
            log.info("going on from the checkpoint in %s", self.directory.path)
            self.directory.trim(_step(state["trial"], state["epoch"] + 1))
        else:
            self.directory.trim(0)
        return state

    def after_step(self, state: Callable[[], State]) -> None:
        """Saves a checkpoint when it is time, or when the run was asked to stop."""
        stop = self.interrupt.requested
        if stop or time.monotonic() - self.saved_at >= self.cfg.checkpoint_every:
            Checkpoint.save(self.path, state(), self.fingerprint)
            self.saved_at = time.monotonic()
        if stop:
            log.info("stopped; the same command goes on from here")
            raise SystemExit(self.interrupt.exit_code)

    def epoch(self, trial: int, epoch: int, values: dict[str, float]) -> None:
        """One line for every finished epoch of every trial."""
        named = {name: value for name, value in values.items() if name != "epoch"}
        self.directory.log_all(_step(trial, epoch), f"trial{trial}", self.cfg.dataset.name, named)
        curve = {f"trial{trial}/{name}": value for name, value in named.items()}
        self.mirror.log({**curve, "epoch": epoch}, step=_step(trial, epoch))

    # -- the end --

    def finish(
        self, adapter: Adapter, training: Training | None, predictive: Predictive, evaluation: Evaluation
    ) -> float | None:
        """Writes results, predictions, adapter, posterior, predictive and figures; `finished.json` comes last."""
        results = {
            "run": self.run,
            **evaluation.to_dict(),
            "training": _training_record(training) | {"parameters": _trained_parameters(adapter)},
            "skipped": self.skipped,
            "environment": environment(),
        }
        about = {**self.run, "run_id": self.identity, "adapter_settings": adapter.describe()}
        self._log_final(evaluation, training)
        log.debug("learnt with %s", results["training"].get("optimizer", "nothing"))
        self.directory.write_results(results)
        widest = max(len(one.classes) for one in evaluation.sets.values())
        self.directory.write_predictions(predictions.table(evaluation, widest <= MOST_CLASSES))
        saved = save_adapter(self.directory.path / "adapter.safetensors", adapter.state_dict(), about)
        if training and training.posterior is not None:
            state = training.optimizer.state_dict()["extra"]
            self.directory.save_tensors("posterior", _tensors(state), {**about, **_scalars(state)})
        save_predictive(self.directory.path / "predictive.safetensors", predictive, about)
        if self._wants_figure():
            self._draw(evaluation)
        summary = _summary(evaluation, training)
        self.mirror.summary(summary)
        self.mirror.artifact([self.directory.results_path, self.directory.path / "shots.json", saved])
        self.directory.finish(summary, self.inputs)
        Checkpoint.delete(self.path)
        log.info("%s  %s", self.directory.path, _headline(summary, evaluation.reported))
        return summary["val_nll"]

    def _wants_figure(self) -> bool:
        """A single run shows its own figures; those of a multirun's jobs are drawn by clipkal-report."""
        if self.cfg.figures != "auto":
            return self.cfg.figures
        return not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN

    def _draw(self, evaluation: Evaluation) -> None:
        """The run's figures. Views of its results, whose failure must not keep the run from finishing."""
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


def _content(shots: Any) -> str:
    """A digest of what the optimiser is shown: features, or images by their own digest."""
    if isinstance(shots, FeatureSet):
        return digest(shots.inputs.numpy().tobytes())
    return digest(shots.digest)


def describe(cfg: DictConfig) -> dict[str, Any]:
    """The choices that define a run, in the words that tables and dashboards use."""
    return {
        "dataset": cfg.dataset.name,
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


def _step(trial: int, epoch: int) -> int:
    """One growing step number over all trials: trials have fewer than 100,000 epochs."""
    return trial * 100_000 + epoch


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


def _tensors(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a nested state, by dotted name."""
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {prefix: state} if isinstance(state, Tensor) else {}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        found |= _tensors(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _scalars(state: dict[str, Any]) -> dict[str, Any]:
    """The plain values at the top of a state."""
    return {key: value for key, value in state.items() if isinstance(value, bool | int | float | str)}
