"""Reading another's list of images: formats, and every way in which it may not fit."""

import json

import pytest

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
        ("{", "is no shot list"),
        ("[]", "is no shot list"),
        ('{"train": [{"x": 1}]}', "is no shot list"),
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


def test_missing_files_and_pickles_are_refused(dataset, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        draw_task(dataset, 1, 1, shot_list=tmp_path / "absent.json")
    (tmp_path / "shot_1-seed_1.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="pickle can run code"):
        draw_task(dataset, 1, 1, shot_list=tmp_path / "shot_1-seed_1.pkl")
