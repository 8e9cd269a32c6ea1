"""A list of very many images is read, signed and drawn from without looking into one of them."""

import json
import os
import time
import tracemalloc

import pytest

from clipkal.config import compose
from clipkal.data import draw_task, images, load_dataset


def write_index(root, classes, per_class):
    """A dataset in CoOp's layout whose class folders are links to one folder of empty files."""
    home = root / "food-101"
    (home / "images").mkdir(parents=True)
    (root / "store").mkdir()
    for i in range(per_class):
        (root / f"store/{i}.jpg").touch()
    for label in range(classes):
        (home / f"images/c{label}").symlink_to(root / "store")
    rows = [
        [f"c{label}/{i}.jpg", label, f"class {label}"] for label in range(classes) for i in range(per_class)
    ]
    parts = {"train": rows[::2], "val": rows[1::4], "test": rows[3::4]}
    (home / "split_zhou_Food101.json").write_text(json.dumps(parts))
    return compose(["dataset=food101", f"data.root={root}"])


def load_and_draw(cfg):
    task = draw_task(load_dataset(cfg.dataset, cfg.data.root), 16, 1, "fewshot")
    assert len(task.test.digest) == 64
    return task


def test_a_hundred_thousand_images_are_looked_at_once_and_never_opened(tmp_path, monkeypatch):
    cfg, looked, stat = write_index(tmp_path, 100, 1000), [], os.stat

    def counted(path, *args, **kwargs):
        looked.append(path)
        return stat(path, *args, **kwargs)

    def refuse(*args):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(images, "open_image", refuse)
    monkeypatch.setattr(os, "stat", counted)
    task = load_and_draw(cfg)
    assert (len(task.shots), len(task.val), len(task.test)) == (1600, 400, 25_000)
    assert 100_000 <= len(looked) <= 200_100


def test_memory_of_an_index_is_a_few_strings_an_image(tmp_path):
    cfg = write_index(tmp_path, 20, 1000)
    load_dataset(cfg.dataset, cfg.data.root)  # imports
    tracemalloc.start()
    try:
        load_dataset(cfg.dataset, cfg.data.root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 20_000


@pytest.mark.slow
def test_an_index_of_imagenets_size_loads_in_seconds(tmp_path):
    cfg = write_index(tmp_path, 1000, 1280)
    start = time.process_time()
    task = load_and_draw(cfg)
    assert time.process_time() - start < 60  # about 15 s on an idle core; generous for a busy one
    assert (len(task.shots), len(task.test)) == (16_000, 320_000)
