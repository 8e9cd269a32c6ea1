"""Reading another's list of images: formats, and every way in which it may not fit."""

import json
from dataclasses import replace

import pytest
import torch

from clipkal import files
from clipkal.data import draw_task
from clipkal.errors import DataError


@pytest.fixture
def dataset(feature_dataset):
    return feature_dataset([0, 0, 1, 1, 2, 2], [0, 1, 2])


def index_file(path, train, val=()):
    """The format of cross_modal_adaptation: paths with leading folders."""

    def part(rows):
        entries = [{"impath": f"./data/toy/images/{p}", "label": 9, "classname": c} for p, c in rows]
        return {"data": entries, "indices": []}

    path.write_text(json.dumps({"train": part(train), "val": part(val)}))
    return path


def test_index_files_with_other_leading_folders_are_matched_by_their_endings(dataset, tmp_path):
    file = index_file(
        tmp_path / "i.json", [("train/0003", "class_1"), ("train/0000", "Class 0")], [("val/0002", "class 2")]
    )
    task = draw_task(dataset, 1, 1, "fewshot", shot_list=file)
    assert (task.shots.ids, task.val.ids) == (["train/0003", "train/0000"], ["val/0002"])
    assert task.record["protocol"] == "list"


def test_plain_lists_of_ids_are_read(dataset, tmp_path):
    file = tmp_path / "ids.json"
    file.write_text(json.dumps({"train": ["train/0005"], "val": []}))
    assert draw_task(dataset, 1, 1, shot_list=file).shots.ids == ["train/0005"]


def test_val_of_a_list_may_come_from_train_where_there_is_no_val_pool(feature_dataset, tmp_path):
    dataset = feature_dataset([0, 0, 1, 1])
    file = tmp_path / "ids.json"
    file.write_text(json.dumps({"train": ["train/0000"], "val": ["train/0001"]}))
    assert draw_task(dataset, 1, 1, "fewshot", shot_list=file).val.ids == ["train/0001"]
    file.write_text(json.dumps({"train": ["train/0000"], "val": ["train/0000"]}))
    with pytest.raises(DataError, match="both for training and for validation"):
        draw_task(dataset, 1, 1, "fewshot", shot_list=file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no shot list can be read there .*line 1 column 2"),
        ("[]", "is no shot list"),
        ('{"train": [{"x": 1}]}', r"train\[0\]: is no entry of a shot list: {'x': 1}"),
        ('{"train": 3}', "train: is no list"),
        ('{"train": ["train/0000", null]}', r"train\[1\]: is no entry of a shot list: None"),
        ('{"train": [{"id": ["a"]}]}', r"train\[0\]: is no entry"),
        ('{"train": [{"id": "train/0000", "class_name": 3}]}', r"train\[0\]: the class name must be a text"),
        ('{"train": [{"id": "train/0000", "label": "0"}]}', r"train\[0\]: .*the label a number"),
        ('{"train": ["train/0000"], "sha256": "0"}', "do not fit the sha256"),
        (
            '{"train": ["train/0000"], "schema_version": 2}',
            "schema_version 2 is not 1; another clipkal wrote it",
        ),
        (
            '{"train": ["train/0000"], "subset": "half"}',
            r"shots, subset \(all, base, new\) or classes are not",
        ),
        ('{"train": ["train/0000"], "shots": "many"}', "are not what clipkal writes there"),
        ('{"train": ["train/0000"], "classes": true}', "are not what clipkal writes there"),
        ('{"train": []}', "lists no training image"),
        ('{"train": ["train/9999"]}', "'train/9999' is not among the 6"),
        ('{"train": ["train/0000", "train/0000"]}', "lists 'train/0000' twice"),
        (
            '{"train": [{"id": "train/0000", "class_name": "dog"}]}',
            "as 'dog' but the dataset has it as 'class 0'",
        ),
        ('{"train": [{"id": "train/0000"}], "val": [], "sha256": "0"}', "do not fit the sha256"),
        ('{"train": ["train/0000"]}', "lists no val images"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(dataset, tmp_path, content, said):
    file = tmp_path / "list.json"
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        draw_task(dataset, 1, 1, "fewshot", shot_list=file)


def renamed(dataset, order, names=None):
    """The dataset with its classes in another order: class i is the old class order[i]."""

    def moved(one):
        return one.with_labels(torch.tensor([order.index(label) for label in one.labels.tolist()]))

    sets = {"train": moved(dataset.train), "val": moved(dataset.val), "test": moved(dataset.test), "ood": {}}
    return replace(dataset, class_names=names or [dataset.class_names[i] for i in order], **sets)


def test_a_list_of_ours_is_refused_where_the_classes_have_changed_since(dataset, feature_dataset, tmp_path):
    """Numbered folders once sorted as text; a list of then has other labels, or with a list of names other names."""
    file = tmp_path / "shots.json"
    files.write_json(file, draw_task(dataset, 1, 1).record)
    assert draw_task(dataset, 1, 7, shot_list=file).shots.ids == draw_task(dataset, 1, 1).shots.ids
    with pytest.raises(
        DataError, match=r"label 1, but its class 'class 1' has label 2 now: .*order; draw the shots again"
    ):
        draw_task(renamed(dataset, [0, 2, 1]), 1, 1, shot_list=file)
    with pytest.raises(DataError, match="as 'class 1' but the dataset has it as 'class 2'"):
        draw_task(renamed(dataset, [0, 2, 1], dataset.class_names), 1, 1, shot_list=file)
    more = feature_dataset([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3])
    with pytest.raises(DataError, match="was drawn from 3 classes, but dataset 'toy' has 4 now"):
        draw_task(more, 1, 1, shot_list=file)


@pytest.mark.parametrize("subset", ["base", "new"])
def test_a_list_of_half_of_the_classes_fits_its_dataset(dataset, tmp_path, subset):
    """Its labels count from 0 within the half."""
    file = tmp_path / "shots.json"
    task = draw_task(dataset, 1, 1, subset=subset)
    files.write_json(file, task.record)
    again = draw_task(dataset, 1, 7, subset=subset, shot_list=file)
    assert (again.shots.ids, again.record["train"]) == (task.shots.ids, task.record["train"])


def test_a_list_of_another_number_of_shots_is_warned_of(dataset, tmp_path, caplog):
    files.write_json(tmp_path / "shots.json", draw_task(dataset, 1, 1).record)
    draw_task(dataset, 1, 1, shot_list=tmp_path / "shots.json")
    assert not caplog.records
    draw_task(dataset, 16, 1, shot_list=tmp_path / "shots.json")
    assert "lists 1 shots a class, but the run is recorded with fewshot.shots=16" in caplog.text


def test_missing_files_and_pickles_are_refused(dataset, tmp_path):
    with pytest.raises(
        DataError, match=r"absent\.json: no shot list can be read there \(no such file\); check fewshot"
    ):
        draw_task(dataset, 1, 1, shot_list=tmp_path / "absent.json")
    (tmp_path / "shot_1-seed_1.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="pickle can run code"):
        draw_task(dataset, 1, 1, shot_list=tmp_path / "shot_1-seed_1.pkl")
