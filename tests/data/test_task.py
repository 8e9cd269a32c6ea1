"""Drawing a task: choices, bad input, base-to-new, and a record from which the same task can be drawn
again.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from clipkal import files
from clipkal.data import draw_task, load_dataset
from clipkal.data.protocol import coop
from clipkal.errors import ConfigError, DataError

TRAIN = [2, 0, 2, 1, 0, 2, 1, 0, 2, 1, 1, 0]
VAL = [1, 0, 2, 1, 0, 2, 1, 0, 2, 0]


@pytest.fixture
def dataset(feature_dataset):
    return feature_dataset(TRAIN, VAL)


def test_the_shots_are_those_of_the_protocol(dataset):
    task = draw_task(dataset, 2, 1, "fewshot", "coop")
    train, val = coop(TRAIN, VAL, 2, 1)
    assert task.shots.ids == [dataset.train.ids[i] for i in train]
    assert task.val.ids == [dataset.val.ids[i] for i in val]
    assert task.test is dataset.test
    assert task.text_features.shape == (3, 5)
    assert draw_task(dataset, 2, 1, "none", "cliplora").shots.ids != task.shots.ids


@pytest.mark.parametrize(("validation", "size"), [("none", None), ("fewshot", 6), ("full", 10)])
def test_validation_is_an_explicit_choice(dataset, validation, size):
    task = draw_task(dataset, 2, 1, validation)
    assert (None if task.val is None else len(task.val)) == size


def test_all_shots_are_all_images(dataset):
    task = draw_task(dataset, "all", 1, "fewshot")
    assert (len(task.shots), len(task.val), task.record["shots"]) == (12, 10, "all")


@pytest.mark.parametrize("seed", [2**63, 2**64, 10**40])
def test_the_draw_takes_a_seed_of_any_size(dataset, seed):
    assert draw_task(dataset, 2, seed).record["seed"] == seed


@pytest.mark.parametrize("shots", [0, -1, -3, "some", "3", 1.5, 2.0, True, None, [3]])
def test_a_number_of_shots_that_means_nothing_is_refused(dataset, shots):
    with pytest.raises(ConfigError, match=r"fewshot\.shots"):
        draw_task(dataset, shots, 1)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"validation": "fewshots"}, "did you mean 'fewshot'"),
        ({"protocol": "coops"}, "did you mean 'coop'"),
        ({"subset": "bases"}, "did you mean 'base'"),
        ({"short_class": "keeep"}, "did you mean 'keep'"),
        ({"seed": -1}, "seeds count from 0"),
    ],
)
def test_unknown_choices_name_the_nearest(dataset, choice, said):
    with pytest.raises(ConfigError, match=said):
        draw_task(**({"dataset": dataset, "shots": 1, "seed": 1} | choice))


def test_fewer_images_than_shots_is_an_error_that_names_class_count_and_way_out(dataset, feature_dataset):
    with pytest.raises(
        DataError, match=r"'class 0' has 4 training images.*=5 \(and 2 more.*short_class=keep"
    ):
        draw_task(dataset, 5, 1)
    kept = draw_task(dataset, 5, 1, short_class="keep")
    assert sorted(kept.shots.ids) == sorted(dataset.train.ids)
    with pytest.raises(DataError, match="'class 3' has 0 training images"):
        draw_task(feature_dataset([0, 1, 2], classes=4), 1, 1)


def test_a_dataset_without_val_images_says_so(feature_dataset):
    with pytest.raises(DataError, match=r"no validation images; set fewshot\.validation=none"):
        draw_task(feature_dataset(TRAIN), 1, 1, "fewshot")
    assert draw_task(feature_dataset(TRAIN), 1, 1, "none").val is None


def test_base_to_new_filters_after_drawing_and_counts_labels_from_zero(dataset):
    whole = draw_task(dataset, 2, 1, "fewshot")
    base = draw_task(dataset, 2, 1, "fewshot", subset="base")
    new = draw_task(dataset, 2, 1, "fewshot", subset="new")
    assert (base.class_names, new.class_names) == (["class 0", "class 1"], ["class 2"])
    assert sorted(base.shots.ids + new.shots.ids) == sorted(whole.shots.ids)
    assert set(new.shots.labels.tolist()) == set(new.test.labels.tolist()) == {0}
    assert (base.text_features.shape[0], len(base.prompts), len(base.test)) == (2, 2, 4)
    assert (list(base.ood), list(new.ood)) == (["shift"], [])  # the shift has no image of class 2
    assert torch.equal(new.text_features[0], dataset.text_features[2])


def test_learning_the_base_half_leaves_the_new_half_for_transfer(dataset):
    base, new = (draw_task(dataset, 2, 1, subset=half) for half in ("base", "new"))
    transfer = base.transfer["new"]
    assert (transfer.class_names, transfer.prompts) == (new.class_names, new.prompts)
    assert (transfer.test.ids, transfer.test.labels.tolist()) == (new.test.ids, [0, 0])
    assert torch.equal(transfer.text_features, new.text_features)
    assert set(base.test.ids) | set(transfer.test.ids) == set(dataset.test.ids)
    assert base.record["transfer"] == {"new": {"images": 2, "classes": 1}}
    assert draw_task(dataset, 2, 1).transfer == new.transfer == {}


def test_another_dataset_is_tested_with_its_own_classes(dataset, feature_dataset):
    other = feature_dataset([0, 1, 2, 3, 4])
    transfer = draw_task(dataset, 2, 1, others={"far": other}).transfer["far"]
    assert (transfer.class_names, transfer.test) == (other.class_names, other.test)
    assert transfer.text_features is other.text_features
    with pytest.raises(DataError, match="'shift' is the name of an OOD set and of a transfer set"):
        draw_task(dataset, 2, 1, others={"shift": other})


def test_a_set_is_scored_over_the_classes_that_occur_in_it_or_over_all(dataset):
    assert draw_task(dataset, 1, 1).label_spaces == {"shift": [0, 1]}
    wide = replace(dataset, spaces={"shift": "all"})
    task = draw_task(wide, 1, 1)
    assert task.label_spaces == {"shift": [0, 1, 2]}
    assert task.record["label_spaces"] == {"shift": {"rule": "all", "classes": 3}}
    assert draw_task(wide, 1, 1, subset="base").label_spaces == {"shift": [0, 1]}


def test_the_record_is_json_and_names_every_image(dataset):
    task = draw_task(dataset, 2, 0, "fewshot")
    record = json.loads(json.dumps(task.record))
    assert [item["id"] for item in record["train"]] == task.shots.ids
    assert record["train"][0] == {"id": task.shots.ids[0], "label": 2, "class_name": "class 2"}
    assert (record["protocol"], record["seed"], record["shots"], record["validation"]) == (
        "coop",
        0,
        2,
        "fewshot",
    )
    assert record["label_spaces"] == {"shift": {"rule": "occurring", "classes": 2}}
    assert record["sha256"] == draw_task(dataset, 2, 0, "fewshot").record["sha256"]
    assert record["sha256"] != draw_task(dataset, 2, 1, "fewshot").record["sha256"]


def test_a_recorded_list_draws_the_same_images_again(dataset, tmp_path):
    task = draw_task(dataset, 2, 3, "fewshot")
    files.write_json(tmp_path / "shots.json", task.record)
    again = draw_task(dataset, 2, 8, "fewshot", shot_list=tmp_path / "shots.json")
    assert (again.shots.ids, again.val.ids) == (task.shots.ids, task.val.ids)
    assert again.record["sha256"] == task.record["sha256"]
    assert again.record["list"]["file"] == "shots.json"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_features_give_the_same_shots_under_base_to_new(shared_data, seed):
    fields = {"name": "office", "source": "features", "path": "officecaltech10.npz", "id_domain": "amazon"}
    dataset = load_dataset(SimpleNamespace(**fields), shared_data / "features")
    task = draw_task(dataset, 16, seed, "fewshot")
    assert (len(task.shots), len(task.val), len(task.test)) == (160, 40, 386)
    assert torch.bincount(task.shots.labels).tolist() == [16] * 10
    base = draw_task(dataset, 16, seed, subset="base")
    assert base.shots.ids == [i for i, y in zip(task.shots.ids, task.shots.labels, strict=True) if y < 5]
