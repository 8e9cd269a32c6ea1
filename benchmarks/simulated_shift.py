"""Beds of simulated shift, on which constants may be chosen: no test image of any bed is in them.

    python -m benchmarks.simulated_shift --data ../shared/data --out outputs/simulated [--beds grocery cars …]

Each bed becomes one `.npz` of precomputed features (docs: `clipkal/data/features.py`) that `dataset=features` reads. It
is made of the bed's own train and val images alone:

* domain "clean": about half of the train images of each class, and at least SHOTS where there are as many, are its train
  split; the other train images and the val images, at most DEVELOPMENT a class, are the development images, its test split;
* every other domain holds the development images, changed: corrupted as `kind@severity` (`clipkal/data/corruptions.py`)
  where there are images, moved as `shift@1` to `shift@3` where there are only features f.

A moved feature is

    f' = norm(f + s δ + s ε)

with norm(v) = v / |v|, δ one draw for the whole domain and ε one for each image, both normal with the covariance of the
clean features, so that they lie in directions in which images differ. The strength s is the least at which the zero-shot
accuracy falls to KEPT times that of the clean images.

Images of a real bed go through `benchmarks/encoder.py`, those of the project's own sets through the embedded mini-CLIP.
A bed whose files are not there is left out with a line. Standard output gets the zero-shot accuracy of every domain.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.encoder import MAP, WEIGHTS, Encoder
from clipkal import files
from clipkal.backbones import image_features, load_backbone, text_features
from clipkal.config.compose import compose
from clipkal.data import ImageSet, load_dataset
from clipkal.data.corruptions import corrupted

KINDS = ("gaussian_noise", "defocus_blur", "contrast", "brightness", "pixelate", "jpeg")
SEVERITIES = (2, 4)
KEPT = (0.97, 0.88, 0.7)
SHOTS, DEVELOPMENT = 16, 20  # images a class
Encode = Callable[[ImageSet], Tensor]
Domains = Iterator[tuple[str, Tensor]]  # name, features of the development images


class Absent(Exception):
    """A bed that cannot be made here, and why."""


@dataclass(frozen=True)
class Bed:
    """What is written, but for the shifted domains.

    train, development: unit features [n, d] of the clean images. labels, ids: of both, one after the other.
    """

    classes: list[str]
    text: Tensor
    scale: float
    train: Tensor
    development: Tensor
    labels: Tensor
    ids: list[str]

    def accuracy(self, development: Tensor) -> float:
        """Zero-shot, of these features in the place of the development images'."""
        found = (development @ self.text.T).argmax(dim=1)
        return float((found == self.labels[len(self.train) :]).float().mean())


def halves(train: Tensor, val: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the train images that stay, of those that become development images, and of the val images that do.

    train, val: labels int64 [n].
    """
    generator = torch.Generator().manual_seed(0)
    stay, second, third = [], [], []
    for label in train.unique():
        own, others = (
            places[torch.randperm(len(places), generator=generator)]
            for places in ((train == label).nonzero()[:, 0], (val == label).nonzero()[:, 0])
        )
        half = (len(own) + 1) // 2
        kept = max(half, SHOTS) if len(own) >= SHOTS else half
        others = others[:DEVELOPMENT]
        stay.append(own[:kept])
        second.append(own[kept : kept + DEVELOPMENT - len(others)])
        third.append(others)
    return torch.cat(stay), torch.cat(second), torch.cat(third)


# Beds of images


def corrupted_bed(
    names: tuple[list[str], Tensor, float], train: ImageSet, val: ImageSet, encode: Encode
) -> tuple[Bed, Domains]:
    """names: the classes, their text features, the logit scale."""
    stay, second, third = halves(train.labels, val.labels)
    kept, development = train.subset(stay), [train.subset(second), val.subset(third)]
    every = [part for part in (kept, *development) if len(part)]
    seen = lambda parts: torch.cat([encode(part) for part in parts])
    labels, ids = torch.cat([part.labels for part in every]), [name for part in every for name in part.ids]
    bed = Bed(*names, encode(kept), seen(every[1:]), labels, ids)
    changed = (
        (f"{kind}@{severity}", seen(corrupted(part, kind, severity) for part in every[1:]))
        for kind in KINDS
        for severity in SEVERITIES
    )
    return bed, changed


def packed(images: str, features: str, domain: str, data: Path) -> tuple[Bed, Domains]:
    """Packed JPEG files; classes, class names' features and scale are those of a file of features."""
    stored, seen = _arrays(data / f"{images}.npz"), _arrays(data / "features" / f"{features}.npz")
    folder = data / "models"
    for name in (WEIGHTS, MAP):
        _there(folder / name)
    encoder = _encoder(folder)
    classes = seen["classes"].tolist()
    of_row = stored["classes"][stored["label"]]
    chosen = np.isin(of_row, classes) & (stored["domains"][stored["domain"]] == domain)

    def of_split(split: str) -> ImageSet:
        rows = np.flatnonzero(chosen & (stored["splits"][stored["split"]] == split))
        ids = [f"{images}/{split}/{row:05d}" for row in rows]
        labels = torch.tensor([classes.index(name) for name in of_row[rows]])

        def decode(i: int) -> Image.Image:
            start, end = stored["offset"][rows[i] : rows[i] + 2]
            return Image.open(io.BytesIO(stored["blob"][start:end].tobytes())).convert("RGB")

        return ImageSet(f"{images}/{split}", ids, labels, decode, files.digest(*ids))

    names = (classes, torch.from_numpy(seen["text_features"]), float(seen["logit_scale"]))
    encode = lambda one: encoder(one.decode(i) for i in range(len(one)))
    return corrupted_bed(names, of_split("train"), of_split("val"), encode)


def embedded(name: str, data: Path) -> tuple[Bed, Domains]:
    """One of the project's own sets through the mini-CLIP; `data` is not needed."""
    cfg = compose([f"dataset={name}", "backbone=mini", "tracking=disabled"])
    backbone, dataset = load_backbone(cfg.backbone), load_dataset(cfg.dataset, Path(cfg.data.root))
    assert backbone is not None
    assert isinstance(dataset.train, ImageSet)
    assert isinstance(dataset.val, ImageSet)
    text = text_features(backbone, dataset.prompts, cache_dir=False, progress=False)
    encode = lambda one: image_features(backbone, one, cache_dir=False, progress=False)[0].inputs
    return corrupted_bed(
        (dataset.class_names, text, backbone.logit_scale), dataset.train, dataset.val, encode
    )


# Beds of features


def moved_bed(features: str, domain: str, data: Path) -> tuple[Bed, Domains]:
    """The train and val rows of a domain of a file of features."""
    stored = _arrays(data / "features" / f"{features}.npz")
    own = stored["domains"][stored["domain"]] == domain
    splits = stored["splits"][stored["split"]]
    rows = [np.flatnonzero(own & (splits == split)) for split in ("train", "val")]
    unit = F.normalize(torch.from_numpy(stored["image_features"].astype(np.float32)), dim=1)
    labels = torch.from_numpy(stored["label"].astype(np.int64))
    stay, second, third = halves(labels[rows[0]], labels[rows[1]])
    train = torch.from_numpy(rows[0])[stay]
    development = torch.cat([torch.from_numpy(rows[0])[second], torch.from_numpy(rows[1])[third]])
    both = torch.cat([train, development])
    bed = Bed(
        stored["classes"].tolist(),
        F.normalize(torch.from_numpy(stored["text_features"]), dim=1),
        float(stored["logit_scale"]),
        unit[train],
        unit[development],
        labels[both],
        [f"{features}/{splits[row]}/{row:05d}" for row in both.tolist()],
    )
    return bed, ((f"shift@{i}", moved(bed, kept, seed=i)) for i, kept in enumerate(KEPT, 1))


def moved(bed: Bed, kept: float, seed: int) -> Tensor:
    """The development images' features, moved until `kept` of their zero-shot accuracy is left."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.cat([bed.train, bed.development])
    root = (clean - clean.mean(dim=0)) / (len(clean) - 1) ** 0.5  # root.T @ root is the covariance
    draws = torch.randn(1 + len(bed.development), len(root), generator=generator) @ root
    by = lambda strength: F.normalize(bed.development + strength * (draws[:1] + draws[1:]), dim=1)
    goal = kept * bed.accuracy(bed.development)
    for strength in torch.arange(0, 10, 0.01).tolist():
        if bed.accuracy(by(strength)) <= goal:
            return by(strength)
    raise ValueError("no strength below 10 lowers the zero-shot accuracy so far")


# What is made of them

BEDS: dict[str, Callable[[Path], tuple[Bed, Domains]]] = {
    "grocery": partial(packed, "grocery_96", "grocery", "store"),
    **{
        f"office_{domain}": partial(packed, "officecaltech10_96", "officecaltech10", domain)
        for domain in ("amazon", "caltech10", "dslr", "webcam")
    },
    "rendered": partial(embedded, "rendered"),
    "digits": partial(embedded, "digits"),
    "caltech53": partial(packed, "caltech101_96", "caltech53", "caltech101"),
    "cifar9": partial(moved_bed, "cifar9_shift_vitb32", "imagenet"),
    "caltech_inet": partial(moved_bed, "caltech_inet_vitb32", "caltech101"),
    "cars": partial(moved_bed, "stanford_cars_vitb32", "cars"),
}


def write(path: Path, bed: Bed, shifted: dict[str, Tensor]) -> None:
    """One `.npz` in the format of `clipkal/data/features.py`."""
    n, m = len(bed.train), len(bed.development)
    features = torch.cat([bed.train, bed.development, *shifted.values()])
    labels = torch.cat([bed.labels, *[bed.labels[n:]] * len(shifted)])
    domains = ["clean", *shifted]
    arrays = {
        "image_features": features.half().numpy(),
        "text_features": bed.text.numpy(),
        "logit_scale": np.float32(bed.scale),
        "label": labels.short().numpy(),
        "domain": np.array([0] * n + [i for i in range(len(domains)) for _ in range(m)], dtype=np.int8),
        "split": np.array([0] * n + [2] * m * len(domains), dtype=np.int8),
        "id": np.array([f"clean/{one}" for one in bed.ids] + [f"{d}/{i}" for d in shifted for i in bed.ids[n:]]),
        "classes": np.array(bed.classes),
        "domains": np.array(domains),
        "splits": np.array(["train", "val", "test"]),
    }  # fmt: skip
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def make(name: str, data: Path, out: Path) -> None:
    """Writes one bed and prints its table."""
    bed, changed = BEDS[name](data)
    counts = bed.labels[: len(bed.train)].bincount(minlength=len(bed.classes))
    print(
        f"{name}: {len(bed.classes)} classes, train images a class {counts.min()} to {counts.max()} (median "
        f"{counts.median()}), {len(bed.development)} development images; zero-shot accuracy in %:"
    )
    print(f"    {'clean':<20}{100 * bed.accuracy(bed.development):5.1f}", flush=True)
    shifted = {}
    for domain, features in changed:
        shifted[domain] = features
        print(f"    {domain:<20}{100 * bed.accuracy(features):5.1f}", flush=True)
    write(out / f"{name}.npz", bed, shifted)


@cache
def _encoder(folder: Path) -> Encoder:
    return Encoder(folder)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(_there(path)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise Absent(f"there is no {path}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of packed images, features and models"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for one .npz a bed")
    names = list(BEDS)
    parser.add_argument(
        "--beds", nargs="+", choices=names, default=names, metavar="BED", help=", ".join(names)
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.beds:
        try:
            make(name, options.data, options.out)
        except Absent as reason:
            print(f"{name}: left out, {reason}", flush=True)


if __name__ == "__main__":
    main()
