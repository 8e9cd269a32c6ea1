"""The few-shot task: shots drawn from a dataset, the sets it is measured on, and the record of the draw."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clipkal.data.checks import check_sets, check_text_features
from clipkal.data.names import choose
from clipkal.data.protocol import PROTOCOLS, base_or_new
from clipkal.data.sets import AnySet, Dataset, ImageSet, label_space
from clipkal.data.shotlist import (
    RECORD_VERSION,
    SUBSETS,
    fingerprint,
    list_items,
    positions_of,
    read_shot_list,
)
from clipkal.errors import ConfigError, DataError

VALIDATIONS = ("none", "fewshot", "full")
SHORT_CLASS = ("error", "keep")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Transfer:
    """A test set with classes of its own, of which nothing is learnt.

    The new half of base-to-new, or the test set of another dataset.

    Attributes:
        class_names, prompts: C' names, and for each the sentences of its ensemble.
        test: its images, with labels below C'.
        text_features: float32 [C', d] with unit rows, or None before a backbone has seen the prompts.
    """

    class_names: list[str]
    prompts: list[list[str]]
    test: AnySet
    text_features: Tensor | None = None

    def __post_init__(self) -> None:
        check_sets(self.test.name, len(self.class_names), {"test": self.test})
        check_text_features(self.test.name, self.text_features, len(self.class_names))


@dataclass(frozen=True, eq=False)
class FewShotTask:
    """What a run learns from and is measured on.

    Attributes:
        name: the dataset's name.
        class_names, prompts: C names, and for each the sentences of its ensemble.
        shots: the training set.
        val: the validation set, or None where the run validates on nothing.
        test: the in-distribution test set, never subsampled.
        ood: test sets under shift by name.
        text_features: float32 [C, d] with unit rows, or None before a backbone has seen the prompts.
        logit_scale: the factor on the cosine, or None.
        record: what was drawn and how, JSON-able; goes to `shots.json`.
        label_spaces: OOD set -> the labels it is scored over, ascending; the ID test set is scored over all.
        transfer: test sets with other classes by name, each scored over its own.
        images: what was evaluated before a backbone saw it, by name, to look at; nothing for precomputed features.
    """

    name: str
    class_names: list[str]
    prompts: list[list[str]]
    shots: AnySet
    val: AnySet | None
    test: AnySet
    ood: dict[str, Any]  # dict[str, AnySet]
    text_features: Tensor | None
    logit_scale: float | None
    record: dict[str, Any]
    label_spaces: dict[str, list[int]] = field(default_factory=dict)
    transfer: dict[str, Transfer] = field(default_factory=dict)
    images: dict[str, ImageSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sets(self.name, len(self.class_names), self.sets())
        check_text_features(self.name, self.text_features, len(self.class_names))

    def with_images(self, before: FewShotTask) -> FewShotTask:
        """The same task with the evaluated images of the one `before` a backbone saw it."""
        tests = {"test": before.test, **before.ood} | {
            name: one.test for name, one in before.transfer.items()
        }
        return replace(self, images={name: one for name, one in tests.items() if isinstance(one, ImageSet)})

    def sets(self) -> dict[str, AnySet]:
        """Every set by role or OOD name."""
        own: dict[str, AnySet] = {"shots": self.shots, "test": self.test}
        return own | ({"val": self.val} if self.val is not None else {}) | self.ood


def draw_task(
    dataset: Dataset,
    shots: int | str,
    seed: int,
    validation: str = "none",
    protocol: str = "coop",
    *,
    short_class: str = "error",
    subset: str = "all",
    shot_list: str | Path | None = None,
    others: Mapping[str, Dataset] | None = None,
) -> FewShotTask:
    """Draws the shots of one seed.

    Args:
        dataset: where they come from.
        shots: images per class, from 1 on; "all" takes every training image.
        seed: 0, 1, 2, …, of any size.
        validation: "none"; "fewshot" draws min(shots, 4) per class from the val pool, after the train shots
            on the same stream (the whole pool where shots is "all", as in CoOp); "full" takes the whole val
            pool. Never the test set.
        protocol: a name in `PROTOCOLS`.
        short_class: what to do with a class that has fewer training images than shots: "error", or "keep"
            what it has.
        subset: "all", or the "base" or "new" half of the classes (the first ceil(C/2) sorted labels are
            base). Applied after drawing, to every set; the labels then count from 0. With "base" the test
            images of the other half become the transfer set "new".
        shot_list: a file with another's list of images to use instead of drawing: a `shots.json` of ours, or
            an index file in the format of cross_modal_adaptation.
        others: datasets, by name, whose test sets become transfer sets (cross-dataset evaluation).

    Raises:
        ConfigError: a choice is unknown or the seed is negative.
        DataError: the dataset cannot give what is asked (a short class, no val images), or the list does not
            fit it.
    """
    per_class = parse_shots(shots)
    choose("fewshot.validation", validation, VALIDATIONS, ConfigError)
    choose("fewshot.subset", subset, SUBSETS, ConfigError)
    choose("fewshot.short_class", short_class, SHORT_CLASS, ConfigError)
    choose("fewshot.protocol", protocol, list(PROTOCOLS), ConfigError)
    if seed < 0:
        raise ConfigError(f"seed={seed}: seeds count from 0 (Python's generator would take -1 for 1)")
    how: dict[str, Any] = {
        "shots": "all" if per_class < 1 else per_class,
        "seed": seed,
        "validation": validation,
        "subset": subset,
    }
    if shot_list is not None:
        train, val, source = _listed(dataset, Path(shot_list), validation, how["shots"])
        how |= {"protocol": "list", "list": source}
    else:
        train, val = _drawn(dataset, per_class, seed, validation, protocol, short_class)
        how |= {"protocol": protocol, "short_class": short_class}
    return _assemble(dataset, train, val, how, others or {})


def parse_shots(shots: int | str) -> int:
    """Images per class, or -1 for "all".

    Raises:
        ConfigError: neither "all" nor a whole number from 1 on. CoOp takes 0 and below for all, readers for none.
    """
    if shots == "all":
        return -1
    if type(shots) is not int or shots < 1:
        raise ConfigError(
            f"fewshot.shots={shots}: give a number from 1 on, or all; for no training choose method=zeroshot"
        )
    return shots


def _drawn(
    dataset: Dataset, shots: int, seed: int, validation: str, protocol: str, short_class: str
) -> tuple[AnySet, AnySet | None]:
    if short_class == "error":
        _refuse_short_classes(dataset, shots)
    pool = dataset.val
    if pool is None and validation != "none":
        raise DataError(
            f"dataset {dataset.name!r} has no validation images; set fewshot.validation=none, "
            "or dataset.val_fraction=0.1 where it is a folder"
        )
    val_labels = [] if pool is None else pool.labels.tolist()
    train, val = PROTOCOLS[protocol](dataset.train.labels.tolist(), val_labels, shots, seed)
    shots_of_val = pool.subset(val) if pool is not None and validation == "fewshot" else None
    return dataset.train.subset(train), pool if validation == "full" else shots_of_val


def _refuse_short_classes(dataset: Dataset, shots: int) -> None:
    counts = Counter(dataset.train.labels.tolist())
    short = [c for c in range(len(dataset.class_names)) if counts[c] < shots]
    if short:
        more = f" (and {len(short) - 1} more classes)" if len(short) > 1 else ""
        raise DataError(
            f"dataset {dataset.name!r}: class {dataset.class_names[short[0]]!r} has {counts[short[0]]} "
            f"training images, fewer than fewshot.shots={shots}{more}; ask for fewer shots, "
            "or set fewshot.short_class=keep to take what there is"
        )


def _listed(
    dataset: Dataset, path: Path, validation: str, shots: int | str
) -> tuple[AnySet, AnySet | None, dict[str, str]]:
    listing = read_shot_list(path)
    kept = _kept(dataset, listing.subset)
    if listing.classes not in (None, len(kept)):
        raise DataError(
            f"{path}: was drawn from {listing.classes} classes, but dataset {dataset.name!r} has {len(kept)} now; "
            "draw the shots again"
        )
    if listing.shots not in (None, shots):
        log.warning(
            "%s: lists %s shots a class, but the run is recorded with fewshot.shots=%s; give fewshot.shots=%s too",
            *(path, listing.shots, shots, listing.shots),
        )
    train = positions_of(listing.train, dataset.train, dataset.class_names, kept, path)
    val = dataset.val if validation == "full" else None
    if validation == "fewshot":
        if not listing.val:
            raise DataError(f"{path}: lists no val images; set fewshot.validation=none or full")
        pool = dataset.val if dataset.val is not None else dataset.train
        val = pool.subset(positions_of(listing.val, pool, dataset.class_names, kept, path))
        if pool is dataset.train and (both := set(val.ids) & {dataset.train.ids[i] for i in train}):
            raise DataError(f"{path}: lists {min(both)!r} both for training and for validation")
    return dataset.train.subset(train), val, {"file": path.name, "sha256": listing.sha256}


def _kept(dataset: Dataset, subset: str) -> list[int]:
    """The labels of a half of the classes, or of all."""
    if subset == "all":
        return list(range(len(dataset.class_names)))
    return base_or_new(dataset.train.labels.tolist(), subset)


def _assemble(
    dataset: Dataset, shots: AnySet, val: AnySet | None, how: dict[str, Any], others: Mapping[str, Dataset]
) -> FewShotTask:
    """Applies base-to-new to every set and writes the record."""
    kept = _kept(dataset, how["subset"])
    names = [dataset.class_names[c] for c in kept]
    shots, test = _restricted(shots, kept), _restricted(dataset.test, kept)
    val = None if val is None else _restricted(val, kept)
    ood = {name: part for name, s in dataset.ood.items() if len(part := _restricted(s, kept))}
    items = list_items(shots, names), [] if val is None else list_items(val, names)
    rules = {name: dataset.spaces.get(name, "occurring") for name in ood}
    spaces = {name: label_space(rules[name], s.labels, len(names)) for name, s in ood.items()}
    record = {"schema_version": RECORD_VERSION, "dataset": dataset.name, **how, "classes": len(names)}
    record |= {"label_spaces": {name: {"rule": rules[name], "classes": len(spaces[name])} for name in ood}}
    transfer = _transfer(dataset, how["subset"], others, ood)
    if transfer:
        record["transfer"] = {
            n: {"images": len(t.test), "classes": len(t.prompts)} for n, t in transfer.items()
        }
    record |= {"sha256": fingerprint(*items), "train": items[0], "val": items[1]}
    text, scale = _of(dataset.text_features, kept), dataset.logit_scale
    prompts = [dataset.prompts[c] for c in kept]
    return FewShotTask(
        dataset.name, names, prompts, shots, val, test, ood, text, scale, record, spaces, transfer
    )


def _transfer(
    dataset: Dataset, subset: str, others: Mapping[str, Dataset], ood: Mapping[str, Any]
) -> dict[str, Transfer]:
    """The new half where the base half is learnt, and the test sets of other datasets."""
    found = {n: Transfer(d.class_names, d.prompts, d.test, d.text_features) for n, d in others.items()}
    if subset == "base":
        new = base_or_new(dataset.train.labels.tolist(), "new")
        names, prompts = [dataset.class_names[c] for c in new], [dataset.prompts[c] for c in new]
        found["new"] = Transfer(
            names, prompts, _restricted(dataset.test, new), _of(dataset.text_features, new)
        )
    if both := sorted({"test", "val", "shots", *ood} & set(found)):
        raise DataError(
            f"dataset {dataset.name!r}: {both[0]!r} is the name of an OOD set and of a transfer set"
        )
    return found


def _of(text_features: Tensor | None, kept: list[int]) -> Tensor | None:
    return None if text_features is None else text_features[kept]


def _restricted(one: AnySet, kept: list[int]) -> AnySet:
    """The items whose label is in `kept`, relabelled by its place there."""
    place = {label: i for i, label in enumerate(kept)}
    labels = one.labels.tolist()
    if all(place.get(label) == label for label in labels):
        return one
    part = one.subset([i for i, label in enumerate(labels) if label in place])
    return part.with_labels(part.labels.new_tensor([place[label] for label in part.labels.tolist()]))
