"""Labelled sets of images or features, and the dataset that groups them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from clipkal import files
from clipkal.data.checks import (
    check_class_names,
    check_rows,
    check_sets,
    check_text_features,
    check_unit_rows,
)
from clipkal.errors import DataError

Decoder = Callable[[int], Image.Image]
RESERVED = {"train", "val", "test", "shots"}  # roles, so no names of OOD sets


@dataclass(frozen=True)
class _Picked:
    """Decoder of a subset: position `i` of the subset is position `positions[i]` of the whole."""

    decode: Decoder
    positions: list[int]

    def __call__(self, i: int) -> Image.Image:
        return self.decode(self.positions[i])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one domain and split, decoded one by one when asked.

    Attributes:
        name: what the set is called in results, e.g. "photo/test".
        ids: N stable, distinct names, relative paths with "/" (they appear in shot lists and predictions).
        labels: int64 [N], places in the dataset's `class_names`.
        decode: position -> PIL image in RGB; raises `DataError` naming the file where that fails.
        digest: sha256 of what defines ids, labels and pixels; features are cached under it.

    Raises:
        DataError: a label is negative, an id appears twice or is an absolute path, or the lengths differ.
    """

    name: str
    ids: list[str]
    labels: Tensor
    decode: Decoder
    digest: str

    def __post_init__(self) -> None:
        check_rows(self.name, self.ids, self.labels)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at `indices`, in that order."""
        chosen = _positions(indices, len(self))
        digest = files.digest(self.digest, ",".join(map(str, chosen)))
        whole = chosen == list(range(len(self)))
        return ImageSet(
            self.name,
            [self.ids[i] for i in chosen],
            self.labels[chosen],
            self.decode if whole else pick(self.decode, chosen),
            self.digest if whole else digest,
        )

    def with_labels(self, labels: Tensor) -> ImageSet:
        """The same images under other labels, int64 [N]."""
        digest = files.digest(self.digest, "labels", labels.numpy().tobytes())
        return ImageSet(self.name, self.ids, labels, self.decode, digest)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The same after a backbone.

    Attributes:
        name: what the set is called in results.
        ids: N stable, distinct names.
        labels: int64 [N].
        inputs: float32 [N, d] features, rows of length one.

    Raises:
        DataError: as for `ImageSet`, or a feature is not finite, not of length one, or not float32.
    """

    name: str
    ids: list[str]
    labels: Tensor
    inputs: Tensor

    def __post_init__(self) -> None:
        check_rows(self.name, self.ids, self.labels)
        if self.inputs.dim() != 2 or len(self.inputs) != len(self.ids):
            shape = list(self.inputs.shape)
            raise DataError(
                f"{self.name}: features are {shape}, expected [{len(self.ids)}, d]; one row per image"
            )
        check_unit_rows(self.inputs, self.name, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | Tensor) -> FeatureSet:
        """The rows at `indices`, in that order."""
        chosen = _positions(indices, len(self))
        ids = [self.ids[i] for i in chosen]
        return FeatureSet(self.name, ids, self.labels[chosen], self.inputs[chosen])

    def with_labels(self, labels: Tensor) -> FeatureSet:
        """The same features under other labels, int64 [N]."""
        return FeatureSet(self.name, self.ids, labels, self.inputs)


class LabelledSet(Protocol):
    """What is learnt from and evaluated on: a `FeatureSet`, or the same with images as inputs."""

    @property
    def ids(self) -> Sequence[str]:
        """N names."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    @property
    def inputs(self) -> Tensor:
        """Inputs [N, …] of a model, or what gives a batch of them for a slice or an int64 tensor of places."""
        ...


AnySet = ImageSet | FeatureSet


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a source returns, before any shot is drawn.

    Attributes:
        name: the dataset's name.
        class_names: C names, in the order of the labels.
        prompts: for each class every sentence of its ensemble.
        train, test: the pool the shots come from, and the in-distribution test set.
        val: the pool for validation, or None where the source has none.
        ood: test sets under shift by name.
        text_features: float32 [C, d] with unit rows, for precomputed features only.
        logit_scale: the factor exp(log_scale) on the cosine, for precomputed features only.
        spaces: OOD set -> rule of its label space, see `label_space`; "occurring" where it is not named.

    Raises:
        DataError: a set is empty, a label is out of range, image and feature sets are mixed, an OOD set is
            called like a role, or the class names do not tell the classes apart (`check_class_names`).
    """

    name: str
    class_names: list[str]
    prompts: list[list[str]]
    train: AnySet
    val: AnySet | None
    test: AnySet
    ood: dict[str, Any]  # dict[str, AnySet]; Any keeps dict[str, ImageSet] assignable
    text_features: Tensor | None = None
    logit_scale: float | None = None
    spaces: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := RESERVED & set(self.ood):
            raise DataError(f"{self.name}: an OOD set cannot be called {min(taken)!r}; give it another name")
        check_class_names(self.name, self.class_names)
        check_sets(self.name, len(self.class_names), self.sets())
        if len(self.prompts) != len(self.class_names) or not all(self.prompts):
            raise DataError(
                f"{self.name}: every one of the {len(self.class_names)} classes needs at least one prompt"
            )
        check_text_features(self.name, self.text_features, len(self.class_names))

    def sets(self) -> dict[str, AnySet]:
        """Every set by role or OOD name."""
        own: dict[str, AnySet] = {"train": self.train, "test": self.test}
        return own | ({"val": self.val} if self.val is not None else {}) | self.ood


def occurring_classes(labels: Tensor) -> list[int]:
    """The sorted labels that occur."""
    return sorted(set(labels.tolist()))


def label_space(rule: str, labels: Tensor, classes: int) -> list[int]:
    """The labels that a set is scored over, ascending: the mask on its logits.

    Args:
        rule: "occurring", those that occur in it, as is usual for ImageNet-A, -R and ObjectNet, which lack
            most of ImageNet's; or "all".
        labels: of the set.
        classes: how many there are.
    """
    return list(range(classes)) if rule == "all" else occurring_classes(labels)


def _positions(indices: Sequence[int] | Tensor, size: int) -> list[int]:
    chosen = [int(i) for i in (indices.tolist() if isinstance(indices, Tensor) else indices)]
    if chosen and not (min(chosen) >= 0 and max(chosen) < size):
        raise IndexError(f"indices must be in 0..{size - 1}")
    return chosen


def pick(decode: Decoder, chosen: list[int]) -> Decoder:
    """The decoder of the positions `chosen`; picks of picks do not pile up."""
    if isinstance(decode, _Picked):
        return _Picked(decode.decode, [decode.positions[i] for i in chosen])
    return _Picked(decode, chosen)
