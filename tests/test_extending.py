"""Every example of docs/extending.md: its files pass the test that stands beside them, and its command runs."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from clipkal.app import run
from clipkal.config import check, compose
from clipkal.tracking.tensors import read_tensors

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
SECTIONS = PAGE.read_text(encoding="utf-8").split("\n## ")[1:] if PAGE.exists() else []
CASES = {section.splitlines()[0]: section for section in SECTIONS}


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
    """A folder with the files of a case, on Python's path and the working directory."""
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", CASES[request.param], re.S)
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run_tests(folder):
    """The test that stands in a folder; how many functions it has."""
    (path,) = folder.glob("test_*.py")
    tests = [function for name, function in runpy.run_path(str(path)).items() if name.startswith("test_")]
    for test in tests:
        test()
    return len(tests)


def test_the_page_has_the_five_cases():
    assert list(CASES) == ["An optimiser", "A covariance", "An adapter", "A predictive", "A dataset"]


@pytest.mark.parametrize("folder", CASES, indirect=True)
def test_the_files_of_an_example_pass_its_test(folder):
    assert run_tests(folder) == 1


@pytest.mark.parametrize(("case", "folder"), list(zip(CASES, CASES, strict=True)), indirect=["folder"])
def test_the_command_of_an_example_runs(case, folder):
    if case == "A dataset":
        run_tests(folder)  # it makes the images
    (command,) = re.findall(r"```sh\nclipkal --config-dir mine (.*?)\n```", CASES[case])
    cfg = compose([*shlex.split(command), "tracking=disabled", "output_dir=out"], config_dir="mine")
    check(cfg)
    run(cfg)
    (finished,) = folder.glob("out/**/finished.json")
    if case == "A predictive":
        tensors, about = read_tensors(finished.with_name("predictive.safetensors"))
        results = json.loads(finished.with_name("results.json").read_text(encoding="utf-8"))
        assert not tensors and about["state"]["weight"] in (0, 0.25, 0.5, 0.75, 1)
        assert {"blend", "blend_scaled", "plugin"} <= set(results["sets"]["test"]["predictive"])
        assert "predictive.safetensors" in json.loads(finished.read_text(encoding="utf-8"))["files"]
