"""Image trees: the three layouts, holding out, domains, and everything that may be wrong with a folder."""

import os

import pytest

from clipkal.data import load_dataset
from clipkal.data.rows import hold_out
from clipkal.errors import ConfigError, DataError


@pytest.fixture
def load(config, tmp_path, make_tree):
    def load(counts, **fields):
        make_tree(tmp_path / "toy", counts)
        return load_dataset(config("folder", **fields), tmp_path)

    return load


def sizes(dataset):
    return {role: len(one) for role, one in dataset.sets().items()}


def test_split_folders_are_taken_as_they_are(load):
    dataset = load({"train/cat": 3, "train/dog": 2, "valid/dog": 1, "test/cat": 2})
    assert (dataset.class_names, sizes(dataset)) == (["cat", "dog"], {"train": 5, "val": 1, "test": 2})
    assert dataset.train.ids == [
        f"train/{i}.png" for i in ("cat/000", "cat/001", "cat/002", "dog/000", "dog/001")
    ]
    assert (dataset.val.labels.tolist(), dataset.train.decode(0).size) == ([1], (9, 7))


def test_class_folders_are_split_by_the_digest_of_the_file_names(load):
    dataset = load({"cat": 20, "dog": 10})
    assert sizes(dataset) == {"train": 15, "test": 12, "val": 3}
    parts = [set(s.ids) for s in dataset.sets().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30
    again = load({"cat": 20, "dog": 10, "owl": 4})
    assert set(dataset.test.ids) < set(again.test.ids), "a new class must not move old images between splits"


def test_a_held_out_file_stays_held_out_when_files_are_added():
    few, many = [f"a/{i}.png" for i in range(20)], [f"a/{i}.png" for i in range(30)]
    before, after = hold_out({"a": few}, 0.4)[1]["a"], hold_out({"a": many}, 0.4)[1]["a"]
    ranks = {p: i for i, p in enumerate(sorted(few, key=lambda p: p in before, reverse=True))}
    assert len(after) == 12
    assert {p for p in after if p in ranks} <= set(before)
    assert [len(part["a"]) for part in hold_out({"a": ["x", "y"]}, 0.1)] == [1, 1]
    assert [len(part["a"]) for part in hold_out({"a": ["x", "y"]}, 0.0)] == [2, 0]
    assert hold_out({"a": ["x"]}, 0.9) == ({"a": ["x"]}, {"a": []})


def test_where_train_and_val_are_all_val_is_the_test_set(load):
    dataset = load({"train/a": 10, "train/b": 10, "val/a": 2, "val/b": 2})
    assert sizes(dataset) == {"train": 18, "test": 4, "val": 2}
    assert load({}, val_fraction=0.0).val is None


def test_domains_side_by_side(load):
    counts = {f"{domain}/{name}": 5 for domain in ("photo", "art", "sketch") for name in ("cat", "dog")}
    with pytest.raises(
        DataError, match=r"holds several domains; set dataset\.id_domain to one of art, photo, sketch"
    ):
        load(counts)
    dataset = load({}, id_domain="photo")
    assert sizes(dataset) == {"train": 4, "val": 2, "test": 4, "art": 10, "sketch": 10}
    assert list(dataset.ood) == ["art", "sketch"]
    assert dataset.train.ids[0].startswith("photo/cat/")
    assert list(load({}, id_domain="photo", ood=["sketch"]).ood) == ["sketch"]
    with pytest.raises(DataError, match="did you mean 'photo'"):
        load({}, id_domain="photos")
    with pytest.raises(DataError, match="did you mean 'sketch'"):
        load({}, id_domain="photo", ood=["sketsch"])


def test_ood_sets_may_lie_elsewhere_and_lack_classes(load, make_tree, tmp_path):
    make_tree(tmp_path / "far" / "drawings", {"test/dog": 2, "train/cat": 4})
    make_tree(tmp_path / "numbered", {"0": 1, "1": 2})
    dataset = load({"cat": 5, "dog": 5}, ood=["far/drawings", "v2:numbered"])
    drawings, numbered = dataset.ood["drawings"], dataset.ood["v2"]
    assert (drawings.ids[0], drawings.labels.tolist()) == ("drawings/test/dog/000.png", [1, 1])
    assert numbered.labels.tolist() == [0, 1, 1]


def test_class_names_that_do_not_fit_are_listed(load, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"cat": 1, "wolf": 1, "lynx": 1})
    with pytest.raises(DataError, match=r"'far' has classes that ID lacks: lynx, wolf \(ID has: cat, dog\)"):
        load({"cat": 5, "dog": 5}, ood=["far:far"])
    make_tree(tmp_path / "own", {"train/cat": 2, "train/dog": 2, "test/wolf": 1, "test/cat": 1})
    with pytest.raises(
        DataError, match=r"'toy/test' has classes that train lacks: wolf \(train has: cat, dog\)"
    ):
        load({}, path="own")


def test_folder_names_match_with_other_case_and_underscores(load, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"Polar_Bear": 2})
    assert load({"polar bear": 5, "cat": 5}, ood=["far:far"]).ood["far"].labels.tolist() == [1, 1]


def test_class_names_shown_may_differ_from_folder_names(load):
    dataset = load({"n01": 5, "n02": 5}, class_names={"n02": "tabby cat"}, templates=["a {}"])
    assert (dataset.class_names, dataset.prompts[1]) == (["n01", "tabby cat"], ["a tabby cat"])


@pytest.mark.parametrize(
    ("counts", "fields", "said"),
    [
        ({"train/a": 1}, {}, "toy: has no test images"),
        ({"test/a": 1}, {}, "toy: has no train folder"),
        ({"a": 1}, {}, "has no test images"),
        ({"a": 4}, {"test_fraction": 0.0}, "test_fraction above 0"),
        ({"a": 4}, {}, "toy/a: is the only class, and at least two are needed$"),
        ({"a": 4, "b": 4}, {"ood": ["x:nowhere"]}, "nowhere: no such file or folder"),
    ],
)
def test_missing_parts_are_named(load, counts, fields, said):
    with pytest.raises(DataError, match=said):
        load(counts, **fields)


def test_missing_and_empty_folders_are_named(config, tmp_path, make_tree):
    with pytest.raises(DataError, match=r"toy: no such folder; check dataset\.path"):
        load_dataset(config("folder", path="toy"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"dataset\.path is not set, .*, the place of your folder of images"
    ):
        load_dataset(config("folder"), tmp_path)
    (tmp_path / "toy").mkdir()
    with pytest.raises(DataError, match="toy: has no subfolders"):
        load_dataset(config("folder"), tmp_path)
    make_tree(tmp_path / "toy", {"cat": 3})
    (tmp_path / "toy" / "dog").mkdir()
    (tmp_path / "toy" / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="dog: holds no image"):
        load_dataset(config("folder"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: not a directory"):
        load_dataset(config("folder", path="file"), tmp_path)


def test_hidden_and_foreign_files_are_no_images_and_subfolders_are_searched(load, tmp_path, make_tree):
    make_tree(
        tmp_path / "toy", {"train/a/deep": 1, "train/a": 1, "train/.hidden": 1, "test/a": 1, "train/b": 1}
    )
    make_tree(tmp_path / "toy", {"train/a/.ipynb_checkpoints": 1})
    (tmp_path / "toy/train/a/._000.png").write_bytes(b"")
    (tmp_path / "toy/train/a/readme.md").write_bytes(b"")
    assert load({}, val_fraction=0.0).train.ids == [f"train/{i}/000.png" for i in ("a", "a/deep", "b")]


def test_the_digest_follows_the_files_and_not_their_place(config, tmp_path, make_tree):
    dataset = load_dataset(config("folder", path=str(make_tree(tmp_path / "x", {"a": 5, "b": 5}))), tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    moved = load_dataset(config("folder", path=str(tmp_path / "y")), tmp_path)
    assert moved.train.digest == dataset.train.digest
    os.utime(tmp_path / "y" / moved.train.ids[0], (1, 1))
    changed = load_dataset(config("folder", path=str(tmp_path / "y")), tmp_path)
    assert changed.train.digest != dataset.train.digest
    assert changed.test.digest == dataset.test.digest
