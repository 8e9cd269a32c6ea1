"""Whether a dataset is there and whole: its files, counts against what is known of it, every image decoded once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from clipkal import files
from clipkal.data import Dataset, ImageSet
from clipkal.data.aircraft import is_aircraft
from clipkal.data.catalogue import EMBEDDED, Entry
from clipkal.data.coop import split_file
from clipkal.data.sets import AnySet, occurring_classes
from clipkal.data.spec import read_spec
from clipkal.data.threads import in_threads
from clipkal.errors import DataError
from clipkal.inventory.facts import FACTS, Facts

LISTED = 5  # broken images of a set that are named
CHUNK = 16  # images a thread takes at a time
Size = tuple[int, int]  # width and height in pixels
Advance = Callable[[int], None]


@dataclass
class SetReport:
    """One set as it was found.

    Attributes:
        role: train, val, test, or the name of the OOD set.
        images, classes: how many there are.
        decoded: how many of its images could be read; None where none was tried.
        smallest, largest: sizes of the images with the fewest and the most pixels.
        broken: what is wrong with each image that cannot be read.
    """

    role: str
    images: int
    classes: int
    decoded: int | None = None
    smallest: Size | None = None
    largest: Size | None = None
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """What a check found: its sets, remarks that are worth knowing, and problems to mend."""

    name: str
    classes: int
    sets: list[SetReport]
    notes: list[str]
    problems: list[str]


def to_decode(dataset: Dataset) -> dict[str, ImageSet]:
    """The sets whose images come from somewhere: no features, and no corrupted copies of the test set."""
    return {
        role: one for role, one in dataset.sets().items() if isinstance(one, ImageSet) and "@" not in role
    }


def missing(one: Entry, root: str | Path) -> list[str]:
    """What of a dataset is not below `root`, in words; empty where it looks whole. Looks at no image.

    A dataset of which nothing is there gives its path alone.
    """
    config, path = one.config, one.path(root)
    if config.source in EMBEDDED:
        return []
    if not path.exists():
        return [str(path)]
    lacking = _lacking_split(path) if config.source == "coop" else []
    known = FACTS.get(one.name)
    places = [path / domain for domain in known.domains] if known and config.get("id_domain") else []
    places += read_spec(OmegaConf.merge(config, {"class_names": None}), root).elsewhere.values()
    if isinstance(config.get("class_names"), str):
        places.append(files.expanded(root) / config.class_names)
    return lacking + [str(place) for place in places if not place.exists()]


def _lacking_split(path: Path) -> list[str]:
    if is_aircraft(path):
        return []
    try:
        split_file(path)
    except DataError as error:
        return [str(error).split(";")[0]]
    return []


def inspect(
    dataset: Dataset,
    expected: Facts | None,
    id_domain: str | None,
    *,
    decode: bool,
    workers: int | None,
    advance: Advance,
) -> Findings:
    """Checks a loaded dataset.

    Args:
        dataset: as `load_dataset` gives it, which has looked at layout, checksums and missing files.
        expected: what a whole copy holds, where that is known.
        id_domain: the domain that the dataset learns from, to find its count in `expected`.
        decode: whether every image is decoded.
        workers: threads that decode; None takes one for each core.
        advance: told how many images have been decoded since the last call.
    """
    order = {"train": 0, "val": 1, "test": 2}
    ordered = sorted(dataset.sets().items(), key=lambda item: order.get(item[0], 3))
    sets = [SetReport(role, len(one), len(occurring_classes(one.labels))) for role, one in ordered]
    problems = list(_miscounts(dataset, expected, id_domain)) if expected else []
    if decode:
        own = to_decode(dataset)
        for report in sets:
            if report.role in own:
                decode_all(report, own[report.role], workers, advance)
                problems += _broken(report)
    return Findings(dataset.name, len(dataset.class_names), sets, list(_notes(dataset)), problems)


def decode_all(report: SetReport, images: ImageSet, workers: int | None, advance: Advance) -> None:
    """Decodes every image of a set in threads (Pillow decodes outside Python's lock) and fills the report.

    No image is kept, so that memory does not grow with the set.
    """

    def one_chunk(start: int) -> tuple[list[Size], list[str]]:
        sizes, broken = [], []
        for i in range(start, min(start + CHUNK, len(images))):
            try:
                sizes.append(images.decode(i).size)
            except DataError as error:
                broken.append(str(error))
        return sizes, broken

    report.decoded = 0
    threads = workers or os.cpu_count() or 1
    for sizes, broken in in_threads(one_chunk, range(0, len(images), CHUNK), threads, ahead=2 * threads):
        report.decoded += len(sizes)
        report.broken += broken
        report.smallest = min(filter(None, (report.smallest, *sizes)), key=_pixels, default=None)
        report.largest = max(filter(None, (report.largest, *sizes)), key=_pixels, default=None)
        advance(len(sizes) + len(broken))


def _pixels(size: Size) -> int:
    return size[0] * size[1]


def _broken(report: SetReport) -> Iterator[str]:
    yield from report.broken[:LISTED]
    if (rest := len(report.broken) - LISTED) > 0:
        yield f"{report.role}: {rest} more of its {report.images} images cannot be read"


def _miscounts(dataset: Dataset, expected: Facts, id_domain: str | None) -> Iterator[str]:
    sizes = {role: len(one) for role, one in dataset.sets().items()}
    if len(dataset.class_names) != expected.classes:
        yield f"{len(dataset.class_names)} classes where {expected.classes} are known"
    for roles, known in expected.counts.items():
        found = sum(sizes.get(role, 0) for role in roles.split("+"))
        if found != known:
            yield f"{roles.replace('+', ' and ')}: {found:,} images where {known:,} are known"
    own = sum(sizes.get(role, 0) for role in ("train", "val", "test"))
    found_in = sizes | ({id_domain: own} if id_domain else {})
    for domain, known in expected.domains.items():
        if domain in found_in and found_in[domain] != known:
            yield f"{domain}: {found_in[domain]:,} images where {known:,} are known"


def _notes(dataset: Dataset) -> Iterator[str]:
    """How many shots the smallest class allows, names that two classes share, OOD sets that lack classes."""
    names = dataset.class_names
    fewest, label = fewest_of_a_class(dataset.train.labels, len(names))
    yield f"the smallest class, {names[label]!r}, has {fewest} training images: at most {fewest} shots a class"
    if dataset.val is None:
        yield "no validation images: runs need fewshot.validation=none"
    if shared := sorted(name for name, count in Counter(names).items() if count > 1):
        yield f"classes that share a name: {', '.join(map(repr, shared))}; zero-shot cannot tell them apart"
    yield from (
        f"{role} has {found} of the {len(names)} classes and is scored over those"
        for role, one in dataset.ood.items()
        if (found := _classes(one)) < len(names)
    )


def _classes(one: AnySet | Any) -> int:
    return len(occurring_classes(one.labels))


def fewest_of_a_class(labels: Tensor, classes: int) -> tuple[int, int]:
    """The size of the smallest class, and its label."""
    counts = labels.bincount(minlength=classes)
    label = int(counts.argmin())
    return int(counts[label]), label
