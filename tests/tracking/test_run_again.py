"""A whole run whose images change: done again where that is noticed; and names that no figure could take."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipkal.app import run
from clipkal.config import compose
from clipkal.recording.places import places
from clipkal.tracking import RunDirectory


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Red ants, blue bees: BMP, so that every image has as many bytes as the next."""
    for split in ("train", "val", "test", "$x_{$"):
        for name, colour in (("red ant", "red"), ("blue bee", "blue")):
            folder = tmp_path / "birds" / ("" if split[0] != "$" else "..") / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (32, 32), colour).save(folder / f"{i}.bmp")
    return tmp_path / "birds"


def command(birds: Path, *more: str) -> list[str]:
    root = birds.parent
    data = ["dataset=folder", "dataset.path=birds", f"data.root={root}", f"data.cache={root}/cache"]
    quick = ["tracking=disabled", "method=zeroshot", "fewshot.shots=1", "data.progress=false"]
    return [*data, *quick, f"output_dir={root}/out", *more]


def folders(birds: Path) -> list[Path]:
    return sorted(path.parent for path in (birds.parent / "out").rglob("finished.json"))


def paint(path: Path, colour: str) -> None:
    """Other pixels, same size, same time of change."""
    status = path.stat()
    Image.new("RGB", (32, 32), colour).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("verify", ["false", "true"])
def test_pixels_rewritten_in_place_are_noticed_with_verify_and_others_always(
    birds: Path, verify: str
) -> None:
    given = command(birds, f"data.verify={verify}")
    run(compose(given))
    run(compose(given))
    (first,) = folders(birds)
    test = next(birds.glob("test/blue bee/0.bmp"))
    paint(test, "black")
    run(compose(given))
    assert len(folders(birds)) == (2 if verify == "true" else 1)
    os.utime(test)
    run(compose(given))
    assert len(folders(birds)) == 2
    now, old = (path / "predictions.parquet" for path in folders(birds))
    assert now.parent == first and now.read_bytes() != old.read_bytes()  # not from the feature cache
    run(compose(given))
    assert len(folders(birds)) == 2


def test_a_domain_with_two_dollars_finishes(birds: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(compose(command(birds, f"dataset.ood=['{birds.parent}/$x_{{$']")))
    (path,) = folders(birds)
    assert (path / "figures" / "reliability.png").is_file() and "no figure" not in caplog.text


def test_a_figure_that_fails_does_not_keep_a_run_from_finishing(
    birds: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(RunDirectory, "save_figure", broken)
    run(compose(command(birds)))
    assert "no figure could be drawn (no fonts)" in caplog.text and len(folders(birds)) == 1


class Task:
    """The sets of a task, of which only the ids count."""

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)
        self.shots = self.test = self
        self.val, self.ood, self.transfer = None, {}, {}


def names(root: Path, task: Task, *overrides: str) -> list[str]:
    found = places(compose([f"data.root={root}", *overrides]), task)  # type: ignore[arg-type]
    return [path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name for path in found]


def test_the_places_that_a_run_reads(tmp_path: Path) -> None:
    for name in ("set/a/1.png", "set/b/1.png", "list.csv", "names.json", "shots.json", "w.pt", "flat/list.csv",
                 "flat/1.png", "far_data.npy", "far_labels.npy", "zip.npz", "dir/open_clip_config.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"a": "A", "b": "B"}')
    mini, task = ["merges.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"], Task("a/1.png")
    assert names(tmp_path, task, "dataset=digits") == mini
    assert names(tmp_path, task, "dataset=folder", "dataset.path=set") == ["set", *mini]
    listed = ["dataset=table", "dataset.path=list.csv"]
    assert names(tmp_path, Task("set/a/1.png"), *listed) == ["list.csv", "set", *mini]  # not all of data.root
    assert names(tmp_path, Task("1.png"), "dataset=table", "dataset.path=flat/list.csv")[:2] == [
        *("flat/list.csv", "flat")
    ]
    files = [
        *("dataset=archive", "dataset.path=zip.npz", "dataset.class_names=names.json"),
        *("dataset.ood=[x:far_data.npy]", f"fewshot.shot_list={tmp_path}/shots.json"),
    ]
    more = ["zip.npz", "far_data.npy", "far_labels.npy", "names.json", "shots.json"]
    assert names(tmp_path, task, *files, "backbone=open_clip", "backbone.model=RN50",
                 f"backbone.pretrained={tmp_path}/w.pt") == [*more, "w.pt"]  # fmt: skip
    local = ["backbone=open_clip", f"backbone.model=local-dir:{tmp_path}/dir"]
    assert names(tmp_path, task, "dataset=digits", *local) == ["dir"]
    transfer = ["dataset=digits", "fewshot.transfer=['folder:set',rendered]"]
    assert names(tmp_path, task, *transfer) == ["set", *mini]
