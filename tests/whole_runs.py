"""Whole runs for the tests: a run by its settings, what it left behind, and images that colour tells apart."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipkal.app import run
from clipkal.config import compose

QUICK = ["tracking=disabled", "fewshot.shots=2", "predictive.samples=8", "data.progress=false"]


def from_here() -> dict[str, str]:
    """The environment of a process that a test starts."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def execute(folder: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """Does a run below `folder`; its directory and results.json."""
    run(compose([f"output_dir={folder}", *overrides]))
    return results_in(folder)


def results_in(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The directory of the only run below a folder, and its results.json."""
    (path,) = folder.rglob("results.json")
    return path.parent, json.loads(path.read_text(encoding="utf-8"))


def coloured_images(
    root: Path, light: Mapping[str, int], classes: Iterable[str], each: int, noise: int = 90, seed: int = 0
) -> None:
    """`each` noisy images a class in root/domain/class, in which one colour is brighter by the domain's `light`."""
    for domain, brighter in light.items():
        for index, name in enumerate(classes):
            (root / domain / name).mkdir(parents=True)
            for i in range(each):
                pixels = np.random.default_rng(seed + 10 * index + i).integers(0, noise, (24, 24, 3))
                pixels[..., index] += brighter
                Image.fromarray(pixels.astype(np.uint8)).save(root / domain / name / f"{i}.png")
