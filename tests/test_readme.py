"""The README's table is what the command finds, and its markers are where `make readme` looks for them."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.readme import BEGIN, END, between, chosen, table
from clipkal.app import run
from clipkal.config import compose
from clipkal.report.aggregate import aggregate
from clipkal.report.collect import collect

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_rows_of_the_full_filter_on_digits_are_what_the_demo_finds(tmp_path):
    """One of the six rows, anew: the mean over three seeds to the printed digit, give or take one of the last."""
    common = [
        "dataset=digits",
        "fewshot.shots=4",
        "method=kalman",
        "tracking=disabled",
        "data.progress=false",
    ]
    for seed in (1, 2, 3):
        run(compose([*common, f"seed={seed}", f"output_dir={tmp_path}"]))
    found = table(chosen(aggregate(collect([tmp_path]).runs))).splitlines()[-1]
    printed = next(line for line in README.read_text().splitlines() if line.startswith("| digits | `kalman`"))
    for now, there in zip(numbers(found), numbers(printed), strict=True):
        assert now == pytest.approx(there, rel=0.01), f"{found}\n{printed}\nrun `make readme`"


def numbers(line: str) -> list[float]:
    """The means in a row of the table."""
    return [float(cell.split(" ± ")[0]) for cell in line.strip("| ").split(" | ")[4:]]


def test_the_table_stands_between_its_markers():
    text = README.read_text()
    middle = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert len(middle.splitlines()) == 2 + 6
    assert between(text, middle) == text
    with pytest.raises(ValueError, match="lacks the markers"):
        between("no table", "rows")


def test_the_example_of_the_library_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    _, code = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["draws"].shape == (100, 32, 3)
    right = names["draws"].softmax(-1).mean(0).argmax(1) == names["labels"]
    assert right.float().mean() > 0.6
    assert (tmp_path / "optimiser.pt").exists()


def test_the_example_of_a_finished_run_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(compose(["fewshot.shots=1", "tracking=disabled", "data.progress=false", "dataset.ood=[]"]))
    (there,) = tmp_path.glob("outputs/rendered/mini/kalman/1shot*")
    there.rename(there.with_name("16shot-seed1"))
    for i in range(3):
        path = tmp_path / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (90 * i, 10, 10)).save(path)
    code, _ = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert len(names["found"]) == 3
    columns = re.search(r"to_pandas\(\)\)  # (.*)", code)
    assert columns is not None
    assert list(names["found"].to_pandas()) == columns[1].split(", ")
    assert "photos/2.png" in capsys.readouterr().out
