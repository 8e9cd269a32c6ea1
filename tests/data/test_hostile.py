"""Names that file systems and class lists really have: Unicode, very long paths, two classes of one name."""

import json
import unicodedata

import numpy as np
import pytest

from clipkal import files
from clipkal.data import draw_task, load_dataset
from clipkal.errors import DataError

UNICODE = ["naïve café", "日本語 🦉", "Ж_щ", "a\u200bb", "tab\there"]


def test_unicode_names_survive_from_disk_to_the_shot_list_and_back(config, make_tree, tmp_path):
    make_tree(tmp_path / "tøy", {f"{split}/{name}/ü ö" for split in ("train", "test") for name in UNICODE})
    dataset = load_dataset(config("folder", path="tøy", val_fraction=0.0), tmp_path)
    assert set(dataset.class_names) == set(UNICODE)
    task = draw_task(dataset, 2, 1)
    files.write_json(tmp_path / "shots.json", task.record)
    again = draw_task(dataset, 2, 9, shot_list=tmp_path / "shots.json")
    assert again.shots.ids == task.shots.ids
    assert again.record["sha256"] == task.record["sha256"]
    assert again.shots.decode(0).size == (9, 7)


@pytest.fixture
def make_tree(make_tree):
    """Three images in every folder."""
    return lambda root, folders: make_tree(root, dict.fromkeys(folders, 3))


def test_accents_written_in_two_ways_are_one_class(config, make_tree, tmp_path):
    composed, split = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    assert composed != split
    make_tree(
        tmp_path / "toy", [f"{part}/{name}" for part in ("train", "test") for name in (composed, "bar")]
    )
    make_tree(tmp_path / "far", [split])
    dataset = load_dataset(config("folder", ood=["far:far"], val_fraction=0.0), tmp_path)
    assert dataset.ood["far"].labels.tolist() == [dataset.class_names.index(composed)] * 3


def test_very_long_paths_are_read_and_drawn(config, write_image, tmp_path):
    deep = "/".join(["d" * 200] * 12)
    assert len(deep) > 2400
    for split in ("train", "test"):
        for name in ("a" * 250, "b" * 250):
            write_image(tmp_path / "toy" / split / name / deep / ("i" * 240 + ".png"))
    dataset = load_dataset(config("folder", val_fraction=0.0), tmp_path)
    assert dataset.class_names == ["a" * 250, "b" * 250]
    task = draw_task(dataset, 1, 1)
    assert task.shots.decode(1).size == (9, 7)
    assert json.loads(json.dumps(task.record))["train"][0]["id"].endswith("i.png")


def split_file(folder, names):
    rows = {part: [[f"{part}{i}.png", i, name] for i, name in enumerate(names)] for part in ("train", "test")}
    (folder / "split_zhou_Toy.json").write_text(json.dumps(rows))


def coop_of(tmp_path, write_image, config, names, **fields):
    for part in ("train", "test"):
        for i in range(len(names)):
            write_image(tmp_path / f"toy/{part}{i}.png", seed=10 * i)
    split_file(tmp_path / "toy", names)
    return load_dataset(config("coop", **fields), tmp_path)


def test_two_classes_of_one_name_stay_two_classes(config, write_image, make_tree, tmp_path):
    """ImageNet has two pairs: missile and sunglasses."""
    dataset = coop_of(tmp_path, write_image, config, ["missile", "mug", "missile"])
    assert (dataset.class_names, dataset.train.labels.tolist()) == (["missile", "mug", "missile"], [0, 1, 2])
    assert dataset.prompts[0] == dataset.prompts[2]
    task = draw_task(dataset, 1, 1)
    files.write_json(tmp_path / "shots.json", task.record)
    again = draw_task(dataset, 1, 5, shot_list=tmp_path / "shots.json")
    assert again.shots.labels.tolist() == task.shots.labels.tolist()
    make_tree(tmp_path / "mugs", ["mug"])
    make_tree(tmp_path / "missiles", ["missile"])
    again = coop_of(tmp_path, write_image, config, ["missile", "mug", "missile"], ood=["mugs:mugs"])
    assert again.ood["mugs"].labels.tolist() == [1] * 3
    with pytest.raises(DataError, match="has 'missile', but ID has two classes of that name"):
        coop_of(tmp_path, write_image, config, ["missile", "mug", "missile"], ood=["x:missiles"])


def test_folders_of_two_wnids_may_be_shown_under_one_name(config, make_tree, tmp_path):
    make_tree(
        tmp_path / "toy",
        [f"{part}/{wnid}" for part in ("train", "test") for wnid in ("n03773504", "n04008634")],
    )
    make_tree(tmp_path / "far", ["n04008634"])
    names = {"n03773504": "missile", "n04008634": "missile"}
    cfg = config("folder", class_names=names, ood=["far:far"], val_fraction=0.0)
    dataset = load_dataset(cfg, tmp_path)
    assert dataset.class_names == ["missile", "missile"]
    assert dataset.ood["far"].labels.tolist() == [1] * 3, "matched by folder, not by name"


def test_a_half_extracted_archive_is_noticed(config, tmp_path):
    """A packed file that was cut off while it was copied."""
    np.savez(
        tmp_path / "whole.npz", blob=np.arange(10**5, dtype=np.uint32).view(np.uint8), offset=np.arange(3)
    )
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.npz: is not a readable \.npz file"):
        load_dataset(config("archive", path="cut.npz"), tmp_path)
