"""Small finished runs on a folder of coloured images, each made once for all tests that use it."""

import shutil
from pathlib import Path

import pytest
from whole_runs import coloured_images, execute


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two domains of three classes of six images that colour tells apart."""
    root = tmp_path_factory.mktemp("images")
    coloured_images(root, {"day": 120, "night": 60}, ("circle", "star", "moon"), each=6)
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
            made[settings], _ = execute(out, *(common if own else common[3:]), *settings)
        return made[settings]

    return directory


@pytest.fixture
def spoilt(finished, tmp_path):
    """A copy of a run that a test may spoil."""
    return Path(shutil.copytree(finished("method=kalman", "predictive=sampled"), tmp_path / "run"))
