"""Small finished runs on a folder of coloured images, each made once for all tests that use it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkal.app import run
from clipkal.config import compose

CLASSES = ("circle", "star", "moon")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two domains of three classes of six images that colour tells apart."""
    root = tmp_path_factory.mktemp("images")
    for domain, light in (("day", 60), ("night", 0)):
        for index, name in enumerate(CLASSES):
            for i in range(6):
                path = root / domain / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(10 * index + i).integers(0, 90, (24, 24, 3))
                noise[..., index] += 60 + light
                Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="session")
def finished(images, tmp_path_factory):
    """A function from settings to the directory of their run, and from none of them to a copy that may be spoilt."""
    made: dict[tuple[str, ...], Path] = {}
    common = ["dataset=folder", f"dataset.path={images}", "dataset.id_domain=day", "tracking=disabled"]
    common += ["data.progress=false", "figures=false", "fewshot.shots=2", "fewshot.validation=fewshot"]

    def directory(*settings: str, own: bool = True) -> Path:
        if settings not in made:
            out = tmp_path_factory.mktemp("runs")
            run(compose([*(common if own else common[3:]), f"output_dir={out}", *settings]))
            (results,) = out.rglob("results.json")
            made[settings] = results.parent
        return made[settings]

    return directory


@pytest.fixture
def spoilt(finished, tmp_path):
    """A copy of a run that a test may spoil."""
    return Path(shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run"))
