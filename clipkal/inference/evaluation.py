"""A finished run on more sets: which they are, what it says of them, and where that is written."""

import logging
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
from clipkal.data.drawing import draw, others
from clipkal.data.images import told_by_contents
from clipkal.data.loading import load_dataset
from clipkal.data.names import folded, shortened
from clipkal.data.sets import AnySet, Dataset, FeatureSet
from clipkal.data.spec import read_spec
from clipkal.data.task import FewShotTask, draw_task
from clipkal.errors import ClipkalError, ConfigError, DataError
from clipkal.evaluation import Evaluation, SetEvaluation, detection_table, evaluate
from clipkal.inference.record import PREDICTIONS
from clipkal.inference.run import Run
from clipkal.inference.settings import same_images
from clipkal.recording import predictions
from clipkal.recording.recorder import MOST_CLASSES
from clipkal.tracking import environment
from clipkal.tracking.directory import SCHEMA_VERSION
from clipkal.tracking.writing import plain, writing

log = logging.getLogger(__name__)
FOLDER = "evaluations"
LONGEST = 80  # letters of the settings in a file's name


@dataclass
class AddedSets:
    """What was found on sets that were added to a finished run.

    Attributes:
        evaluation: of the new sets only.
        skipped: set -> ids of images that could not be read.
        record: the dataset that they came from, as configured.
    """

    evaluation: Evaluation
    skipped: dict[str, list[str]]
    record: dict[str, Any] = field(default_factory=dict)


def evaluate_run(run: Run, cfg: DictConfig, config_dir: Path | None) -> AddedSets:
    """Predicts and scores the sets that `cfg` describes, with every predictive of the run.

    Where the run's own dataset is at hand, its test set is the reference of OOD detection, and its shots and validation
    images give distances and conformal sets, as in the run. Where it is not, detection compares with the stored predictions
    of the test set.

    Raises:
        ConfigError: there is nothing to evaluate, or what learnt from images is given features, or the reverse.
        DataError: the dataset has classes that the run did not learn, or cannot be read.
    """
    own, task = _own(run, cfg), _sets(run, cfg, config_dir)
    if not (task.ood or task.transfer):
        raise ConfigError(
            "there is no set to evaluate: name OOD sets, such as 'dataset.ood=[gaussian_noise@3]', or another dataset, such "
            "as dataset=cifar10"
        )
    if own is not None:
        task = replace(task, shots=own.shots, val=own.val, test=own.test)
    task, skipped = _seen(run, task, cfg)
    temperatures = run.record.results["evaluation"]["temperatures"] or None
    how: dict[str, Any] = {"predictives": run.readouts, "temperature": temperatures}
    found = Evaluation({}, {}, {})
    if task.ood:
        sets: dict[str, Any] = {name: ("ood", one) for name, one in task.ood.items()}
        known: dict[str, Any] = {"spaces": task.label_spaces}
        if own is not None:
            sets = {"test": ("id", task.test)} | sets
            known |= {"shots": task.shots, "validation": task.val}
        found = evaluate(run.reader, sets, **known, **how)
        if found.sets.pop("test", None) is None:
            found.detection = detection_table({"test": _reference(run)} | found.sets)
    for name, other in task.transfer.items():
        with run.adapter.classes(other.text_features):  # type: ignore[arg-type]
            other_set: Any = other.test
            new = evaluate(run.reader, {name: ("transfer", other_set)}, **how)
        found.sets[name] = replace(new.sets[name], class_names=other.class_names)
        found.settings = found.settings or new.settings
    return AddedSets(found, skipped, OmegaConf.to_container(cfg.dataset, resolve=True))  # type: ignore[arg-type]


def _own(run: Run, cfg: DictConfig) -> FewShotTask | None:
    """The run's own shots, validation and test images; None where they are not at hand, or others than then."""
    before = run.record.cfg.copy()
    before.data, before.fewshot.transfer, before.dataset.ood = cfg.data, [], []
    try:
        task = draw(before)
    except (ClipkalError, OSError) as error:
        log.warning(
            "the run's own images are not at hand, so neither distances nor conformal sets: %s", error
        )
        return None
    if task.record["sha256"] != run.record.results["run"]["shots_sha256"]:
        log.warning("the run's own images have changed since, so neither distances nor conformal sets")
        return None
    return task


def _sets(run: Run, cfg: DictConfig, config_dir: Path | None) -> FewShotTask:
    """OOD and transfer sets as a task whose labels are those of the run's classes, with one image in the place of the others.

    The test images of another dataset are an OOD set by its name, and its OOD sets are called after it. Of the run's own
    dataset it is the OOD sets; those of a run on half of the classes are halved like its own.
    """
    own = same_images(cfg, run.record.cfg)
    with told_by_contents(cfg.data.verify):
        dataset = _loaded(cfg, own)
        subset = cfg.fewshot.subset if own else "all"
        task = draw_task(dataset, "all", cfg.seed, subset=subset, others=others(cfg, config_dir))
    ood, spaces, transfer = dict(task.ood), dict(task.label_spaces), task.transfer
    if own:
        transfer = {name: one for name, one in transfer.items() if name != "new"}
    else:
        ood = {task.name: task.test} | {f"{task.name}/{name}": one for name, one in ood.items()}
        spaces = {f"{task.name}/{name}": space for name, space in spaces.items()}
    place = _places(task, run.class_names) if ood else {}
    few: Any = task.test.subset([0])
    few = few.with_labels(torch.zeros(1, dtype=torch.int64))
    return replace(
        task,
        class_names=run.class_names,
        prompts=run.prompts or [[name] for name in run.class_names],
        shots=few,
        val=None,
        test=few,
        ood={name: _relabelled(one, place) for name, one in ood.items()},
        text_features=None,
        label_spaces={name: sorted(place[label] for label in space) for name, space in spaces.items()},
        transfer=transfer,
    )


def _loaded(cfg: DictConfig, own: bool) -> Dataset:
    """The dataset; what of another one is not evaluated is told, and where to go on without the run's own one."""
    spec = read_spec(cfg.dataset, cfg.data.root)
    try:
        dataset = load_dataset(cfg.dataset, cfg.data.root)
    except DataError as error:
        if not own or spec.path.exists():
            raise
        raise DataError(
            f"{error}; dataset.ood adds sets to the run's own dataset, which must be there: put it back, or name the new "
            "images alone: dataset=folder dataset.name=NAME dataset.path=…"
        ) from error
    parts = [len(one) for one in (dataset.train, dataset.val) if one is not None]
    if not own and any(parts):
        whole = f"; 'dataset.ood=[{dataset.name}:{spec.path}]' takes all of a folder without splits"
        log.warning(
            "%s: its %s test images are evaluated, and its %s train and validation images are not%s",
            dataset.name,
            f"{len(dataset.test):,}",
            f"{sum(parts):,}",
            whole if spec.source == "folder" else "",
        )
    return dataset


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
    """The run's own test set by its stored predictions: what OOD detection compares with where there is nothing better."""
    from pyarrow import parquet

    path, where = run.record.whole(PREDICTIONS), [("set", "==", "test")]
    columns = [
        name
        for name in ("confidence", "entropy", "epistemic", "novelty")
        if name in parquet.read_schema(path).names
    ]
    table = parquet.read_table(path, columns=["predictive", *columns], filters=where).to_pandas()
    scores: dict[str, dict[str, Any]] = {}
    for name in run.predictives:
        mine = table[table.predictive == name]
        known = {key: torch.from_numpy(mine[key].to_numpy(dtype="float64", copy=True)) for key in columns}
        scores[name] = {"msp": 1 - known["confidence"], "entropy": known["entropy"]}
        scores[name] |= {"mutual_information": known["epistemic"]} if bool(known["epistemic"].any()) else {}
        scores[name] |= (
            {"novelty": known["novelty"]} if "novelty" in known and not known["novelty"].isnan().any() else {}
        )
    return SetEvaluation("id", [], torch.zeros(0, dtype=torch.int64), [], scores=scores)


def write_evaluation(run: Run, found: AddedSets, settings: Sequence[str], name: str | None) -> Path:
    """`evaluations/<name>.json` and `.parquet` in the run directory, each whole or absent; an older one is replaced."""
    name = _name(settings) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}", name):
        raise ConfigError(f"--name {name}: use letters, digits and ._- only, at most 120")
    folder = run.record.path / FOLDER
    about = {"run_id": run.record.run_id, "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds")}
    content = {"schema_version": SCHEMA_VERSION, **about, "settings": list(settings), "dataset": found.record}
    content |= found.evaluation.to_dict() | {"skipped": found.skipped, "environment": environment()}
    widest = max(len(one.classes) for one in found.evaluation.sets.values())
    with writing(folder, "move the run to another disk"):
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
