"""A finished run on more sets: which they are, what it says of them, and where that is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clipkal import files
from clipkal.backbones import featurise, pixelise
from clipkal.backbones.openclip import PRECOMPUTED
from clipkal.data.drawing import others
from clipkal.data.images import told_by_contents
from clipkal.data.loading import load_dataset
from clipkal.data.names import folded, shortened
from clipkal.data.sets import AnySet, FeatureSet
from clipkal.data.task import FewShotTask, draw_task
from clipkal.errors import ConfigError, DataError
from clipkal.evaluation import Evaluation, SetEvaluation, detection_table, evaluate
from clipkal.inference.record import PREDICTIONS
from clipkal.inference.run import Run
from clipkal.inference.settings import same_images
from clipkal.recording import predictions
from clipkal.recording.recorder import MOST_CLASSES
from clipkal.tracking import environment
from clipkal.tracking.directory import SCHEMA_VERSION
from clipkal.tracking.writing import plain, writing

FOLDER = "evaluations"
LONGEST = 80  # letters of the settings in a file's name


@dataclass
class Later:
    """What was found on sets that were added to a finished run.

    Attributes:
        evaluation: of the new sets only.
        skipped: set -> ids of images that could not be read.
        record: the dataset that they came from, as configured.
    """

    evaluation: Evaluation
    skipped: dict[str, list[str]]
    record: dict[str, Any] = field(default_factory=dict)


def evaluate_run(run: Run, cfg: DictConfig, config_dir: Path | None = None) -> Later:
    """Predicts and scores the sets that `cfg` describes, with every predictive of the run.

    Its own test set is the reference of OOD detection: predicted again where it is part of the dataset, else by its stored
    predictions.

    Raises:
        ConfigError: there is nothing to evaluate, or what learnt from images is given features, or the reverse.
        DataError: the dataset has classes that the run did not learn, or cannot be read.
    """
    own = same_images(cfg, run.record.cfg)
    task = _sets(_task(cfg, own, config_dir), run, own)
    if not (task.ood or task.transfer):
        raise ConfigError(
            "there is no set to evaluate: name OOD sets, such as 'dataset.ood=[gaussian_noise@3]', or another dataset, such "
            "as dataset=cifar10"
        )
    task, skipped = _seen(run, task, cfg)
    temperatures = run.record.results["evaluation"]["temperatures"] or None
    how: dict[str, Any] = {"predictives": run.readouts, "temperature": temperatures}
    found = Evaluation({}, {}, {})
    if task.ood:
        sets: dict[str, Any] = {"test": ("id", task.test)} if own else {}
        sets |= {name: ("ood", one) for name, one in task.ood.items()}
        found = evaluate(run.reader, sets, spaces=task.label_spaces, **how)
        if found.sets.pop("test", None) is None:
            found.detection = detection_table({"test": _reference(run)} | found.sets)
    for name, other in task.transfer.items():
        with run.adapter.classes(other.text_features):  # type: ignore[arg-type]
            other_set: Any = other.test
            new = evaluate(run.reader, {name: ("transfer", other_set)}, **how)
        found.sets[name] = replace(new.sets[name], class_names=other.class_names)
        found.settings = found.settings or new.settings
    return Later(found, skipped, OmegaConf.to_container(cfg.dataset, resolve=True))  # type: ignore[arg-type]


def _task(cfg: DictConfig, own: bool, config_dir: Path | None) -> FewShotTask:
    """The sets of the dataset; those of a run on half of the classes are halved like its own."""
    with told_by_contents(cfg.data.verify):
        dataset = load_dataset(cfg.dataset, cfg.data.root)
        subset = cfg.fewshot.subset if own else "all"
        return draw_task(dataset, "all", cfg.seed, subset=subset, others=others(cfg, config_dir))


def _sets(task: FewShotTask, run: Run, own: bool) -> FewShotTask:
    """The task with OOD and transfer sets only, its labels those of the run's classes; nothing to learn from is left.

    The test images of another dataset are an OOD set by its name, and its OOD sets are called after it.
    """
    ood, spaces = dict(task.ood), dict(task.label_spaces)
    if own:
        transfer = {name: one for name, one in task.transfer.items() if name != "new"}
    else:
        ood = {task.name: task.test} | {f"{task.name}/{name}": one for name, one in ood.items()}
        spaces = {f"{task.name}/{name}": space for name, space in spaces.items()}
        transfer = task.transfer
    place = _places(task, run.class_names) if ood else {}
    relabelled = {name: _relabelled(one, place) for name, one in ood.items()}
    spaces = {name: sorted(place[label] for label in space) for name, space in spaces.items()}
    few: Any = task.test.subset([0])
    few = few.with_labels(torch.zeros(1, dtype=torch.int64))
    test = task.test if own and ood else few
    prompts = run.prompts or [[name] for name in run.class_names]
    return FewShotTask(
        task.name, run.class_names, prompts, few, None, test, relabelled, None, task.logit_scale, task.record, spaces,
        transfer,
    )  # fmt: skip


def _places(task: FewShotTask, classes: Sequence[str]) -> dict[int, int]:
    """Label there -> label of the run, by the names of the classes."""
    if list(task.class_names) == list(classes):
        return {label: label for label in range(len(classes))}
    here: dict[str, list[int]] = {}
    for label, name in enumerate(classes):
        here.setdefault(folded(name), []).append(label)
    unknown = [name for name in task.class_names if len(here.get(folded(name), [])) != 1]
    if unknown:
        raise DataError(
            f"dataset {task.name} has classes that the run did not learn: {shortened(unknown, 5)} (it learnt "
            f"{shortened(classes, 5)}); type fewshot.transfer=[{task.name}] to test it on these classes, or map them in "
            "dataset.class_names"
        )
    return {label: here[folded(name)][0] for label, name in enumerate(task.class_names)}


def _relabelled(one: AnySet, place: Mapping[int, int]) -> AnySet:
    if all(there == here for there, here in place.items()):
        return one
    return one.with_labels(torch.tensor([place[label] for label in one.labels.tolist()]))


def _seen(run: Run, task: FewShotTask, cfg: DictConfig) -> tuple[FewShotTask, dict[str, list[str]]]:
    """The sets as the run's adapter wants them."""
    backbone = None if cfg.backbone.model == PRECOMPUTED else run.backbone
    prepare = pixelise if run.on_images else featurise
    how = {"workers": cfg.data.workers, "progress": cfg.data.progress, "on_bad_image": cfg.data.on_bad_image}
    seen, skipped = prepare(backbone, task, cache_dir=cfg.data.cache, **how)
    for name, one in seen.ood.items():
        if isinstance(one, FeatureSet) and one.inputs.shape[1] != run.width:
            raise DataError(
                f"{name}: features of width {one.inputs.shape[1]}, but the run learnt from {run.width}"
            )
    return seen, {name: ids for name, ids in skipped.items() if name not in ("shots", "test")}


def _reference(run: Run) -> SetEvaluation:
    """The run's own test set by its stored predictions: what OOD detection compares with."""
    from pyarrow import parquet

    columns = ["predictive", "confidence", "entropy", "epistemic"]
    table = parquet.read_table(
        run.record.whole(PREDICTIONS), columns=columns, filters=[("set", "==", "test")]
    )
    rows = {name: table[name].to_pylist() for name in columns}
    scores: dict[str, dict[str, Any]] = {}
    for name in run.predictives:
        mine = torch.tensor([found == name for found in rows["predictive"]])
        confidence, entropy, epistemic = (
            torch.tensor(rows[key], dtype=torch.float64)[mine]
            for key in ("confidence", "entropy", "epistemic")
        )
        scores[name] = {"msp": 1 - confidence, "entropy": entropy}
        if bool((epistemic > 0).any()):
            scores[name]["mutual_information"] = epistemic
    return SetEvaluation("id", [], torch.zeros(0, dtype=torch.int64), [], scores=scores)


def write_evaluation(run: Run, found: Later, settings: Sequence[str], name: str | None = None) -> Path:
    """`evaluations/<name>.json` and `.parquet` in the run directory, each whole or absent; an older one is replaced."""
    name = _name(settings) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}", name):
        raise ConfigError(f"--name {name}: use letters, digits and ._- only, at most 120")
    folder = run.record.path / FOLDER
    about = {"run_id": run.record.run_id, "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds")}
    content = {"schema_version": SCHEMA_VERSION, **about, "settings": list(settings), "dataset": found.record}
    content |= found.evaluation.to_dict() | {"skipped": found.skipped, "environment": environment()}
    widest = max(len(one.classes) for one in found.evaluation.sets.values())
    with writing(folder):
        from pyarrow import parquet

        table = predictions.table(found.evaluation, widest <= MOST_CLASSES)
        with files.atomic_path(folder / f"{name}.parquet") as temporary:
            parquet.write_table(table, temporary, compression="zstd")
        files.write_json(folder / f"{name}.json", plain(content))
    return folder / f"{name}.json"


def _name(settings: Sequence[str]) -> str:
    """Readable, and with a digest, so that other settings have another name."""
    words = (
        "--".join("-".join(filter(None, re.split(r"[^A-Za-z0-9._]+", word))) for word in settings) or "again"
    )
    return f"{words[:LONGEST].strip('.-')}-{files.digest(*settings)[:8]}"
