"""Tiny image trees and datasets, made on the fly."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from clipkal.data import Dataset, FeatureSet

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")


def _write_image(path: Path, seed: int = 0, size: tuple[int, int] = (9, 7)) -> Path:
    """A small noise image; the suffix of `path` decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def _make_tree(root: Path, counts: dict[str, int]) -> Path:
    """For each folder name that many PNG files."""
    for folder, count in counts.items():
        for i in range(count):
            _write_image(root / folder / f"{i:03d}.png", seed=i)
    return root


def _config(source: str, **fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"name": "toy", "source": source, "path": None, **fields})


def _feature_dataset(train: list[int], val: list[int] | None = None, classes: int | None = None) -> Dataset:
    """Features of random directions; train and val have the given labels, every class has two test images."""
    n = classes or max(train) + 1
    generator = torch.Generator().manual_seed(0)

    def rows(name: str, labels: list[int]) -> FeatureSet:
        features = torch.randn(len(labels), 5, generator=generator)
        ids = [f"{name}/{i:04d}" for i in range(len(labels))]
        return FeatureSet(name, ids, torch.tensor(labels), torch.nn.functional.normalize(features, dim=1))

    text = torch.nn.functional.normalize(torch.randn(n, 5, generator=generator), dim=1)
    names = [f"class {c}" for c in range(n)]
    ood = {"shift": rows("shift", list(range(n // 2 + 1)))}
    test = rows("test", [c for c in range(n) for _ in range(2)])
    pool = None if val is None else rows("val", val)
    prompts = [[f"a {name}"] for name in names]
    return Dataset("toy", names, prompts, rows("train", train), pool, test, ood, text, 10.0)


@pytest.fixture(scope="session")
def write_image():
    return _write_image


@pytest.fixture(scope="session")
def make_tree():
    return _make_tree


@pytest.fixture(scope="session")
def config():
    return _config


@pytest.fixture(scope="session")
def feature_dataset():
    return _feature_dataset
