"""Trees that are not what they seem: splits of other names, classes called like splits, links, odd files and names."""

import os
import unicodedata

import pytest

from clipkal import files
from clipkal.data import draw_task, load_dataset
from clipkal.errors import ConfigError, DataError

SPLIT = {"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 2}


@pytest.fixture
def load(config, tmp_path, make_tree):
    def load(counts, **fields):
        make_tree(tmp_path / "toy", counts)
        return load_dataset(config("folder", **{"val_fraction": 0.0, "path": "toy", **fields}), tmp_path)

    return load


def sizes(dataset):
    return {role: len(one) for role, one in dataset.sets().items()}


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [("training", "Testing", "dev"), ("TRAIN", "TEST", "Validation"), ("train", "test", "valid")],
)
def test_the_usual_words_for_splits_are_understood(load, train, test, val):
    counts = {
        f"{split}/{label}": n for split, n in ((train, 3), (test, 2), (val, 1)) for label in ("cat", "dog")
    }
    assert sizes(load(counts)) == {"train": 6, "test": 4, "val": 2}


@pytest.mark.parametrize("word", ["eval", "query", "gallery", "trainval", "images"])
def test_a_folder_beside_splits_is_refused_until_its_role_is_said(load, word, tmp_path):
    counts = SPLIT | {f"{word}/cat": 3, f"{word}/dog": 3}
    with pytest.raises(
        DataError, match=rf"not known: '{word}' .*dataset\.splits=\{{train: train, test: test\}}"
    ):
        load(counts)
    (tmp_path / "toy/notes").mkdir()
    (tmp_path / "toy/notes/readme.txt").write_text("no images, so nothing is left out")
    assert sizes(load({}, splits={"train": "train", "test": word})) == {"train": 8, "test": 6}
    assert sizes(load({}, ood=[word])) == {"train": 8, "test": 4, word: 6}


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"train": "train", "test": "tests"}, "did you mean 'test'"),
        ({"train": "train", "far": "test"}, "'far' is unknown"),
        ({"train": "train", "test": "train"}, "'train' has two roles"),
        ({"train": ["train", "test"]}, "are all train"),
    ],
)
def test_splits_that_do_not_fit_the_tree_are_refused(load, splits, said):
    with pytest.raises(ConfigError, match=said):
        load(SPLIT, splits=splits)


def test_two_folders_for_one_split_are_refused(load):
    with pytest.raises(DataError, match="both 'val' and 'valid' are val"):
        load(SPLIT | {"val/cat": 1, "valid/cat": 1})


@pytest.mark.parametrize("name", ["train", "val", "test", "Valid"])
def test_a_class_called_like_a_split_is_a_class_where_it_holds_images(load, name):
    """DomainNet has a class train."""
    domains = {f"{domain}/{label}": 5 for domain in ("real", "sketch") for label in ("bus", "car", name)}
    assert set(load(domains, id_domain="real").class_names) == {"bus", "car", name}
    assert load({}, id_domain="real").ood["sketch"].labels.bincount().tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"train": 3, "test": 3}, "toy/test: holds no class folders; expected .*/toy/test/<class>/"),
        (SPLIT | {"val": 2}, "toy/val: holds no class folders"),
        (SPLIT | {"train": 2}, r"toy/train: holds images \(000.png, 001.png\) beside folders \(cat, dog\)"),
    ],
)
def test_splits_without_class_folders_are_refused(load, counts, said):
    with pytest.raises(DataError, match=said):
        load(counts)


@pytest.mark.parametrize(
    "counts", [{"birds/crow": 4, "birds/duck": 4}, {f"birds/{k}": n for k, n in SPLIT.items()}]
)
def test_a_zip_unpacked_one_folder_too_deep_is_noticed(load, counts):
    with pytest.raises(
        DataError, match=r"toy/birds: is the only class, .*: it holds the folders .*one folder deeper"
    ):
        load(counts)
    assert len(load({}, path="toy/birds").class_names) == 2


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("toy", ".", "toy/toy: is a link that leads back"),
        ("cat/all", "..", "toy/cat/all: is a link that leads back"),
        ("up", "../..", "is a link that leads back"),
        ("kitten", "cat", "cat/000.png and kitten/000.png are the same file"),
        ("dog/old", "../cat", "cat/000.png and dog/old/000.png are the same file"),
        ("dog/cat.png", "../cat/001.png", "cat/001.png and dog/cat.png are the same file"),
        ("dog/lost.png", "nowhere.png", "no regular files .*: dog/lost.png"),
    ],
)
def test_links_that_show_images_twice_are_refused(load, make_tree, tmp_path, link, target, said):
    make_tree(tmp_path / "toy", {"cat": 4, "dog": 4})
    (tmp_path / "toy" / link).symlink_to(target)
    with pytest.raises(DataError, match=said):
        load({})


def test_val_may_not_be_a_link_to_test(load, make_tree, tmp_path):
    make_tree(tmp_path / "toy", SPLIT)
    (tmp_path / "toy/val").symlink_to("test")
    with pytest.raises(DataError, match="are the same file"):
        load({})


def test_links_to_images_and_folders_elsewhere_are_followed(load, make_tree, tmp_path):
    make_tree(tmp_path / "store", {"cat": 4, "pool": 4})
    make_tree(tmp_path / "toy", {"dog": 0})
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/dog").mkdir()
    (tmp_path / "toy/cat").symlink_to("../store/cat")
    for i in range(4):
        (tmp_path / f"toy/dog/{i}.png").symlink_to(tmp_path / f"store/pool/00{i}.png")
    assert sum(sizes(load({})).values()) == 8


def test_a_pipe_among_the_images_is_named(load, make_tree, tmp_path):
    make_tree(tmp_path / "toy", {"cat": 4, "dog": 4})
    os.mkfifo(tmp_path / "toy/cat/pipe.png")
    with pytest.raises(DataError, match=r"no regular files .*: cat/pipe\.png"):
        load({})


def test_a_folder_that_may_not_be_read_is_named(load, make_tree, tmp_path, monkeypatch):
    make_tree(tmp_path / "toy", {"cat/shut": 1, "cat": 4, "dog": 4})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cat/shut: permission denied"):
        load({})


def test_what_is_no_image_is_counted_in_one_line(load, make_tree, tmp_path, caplog):
    make_tree(tmp_path / "toy", SPLIT)
    for name in (
        "train/cat/a.HEIC",
        "train/dog/b.heic",
        "test/cat/notes",
        "test/cat/Thumbs.db",
        "train/cat/.DS_Store",
    ):
        (tmp_path / "toy" / name).write_bytes(b"")
    load({})
    assert [record.message.split(": ", 1)[1] for record in caplog.records] == [
        "files left out since they are not read as images: .heic (2), without a suffix (1)"
    ]


def test_jfif_is_read_as_the_jpeg_that_it_is(load, make_tree, tmp_path):
    make_tree(tmp_path / "toy", SPLIT)
    jpeg = tmp_path / "x.jpg"
    load({}).train.decode(0).save(jpeg)
    jpeg.rename(tmp_path / "toy/test/cat/x.JFIF")
    dataset = load({})
    assert dataset.test.decode(dataset.test.ids.index("test/cat/x.JFIF")).size == (9, 7)


def test_accents_may_be_written_in_two_ways_in_train_and_test(load):
    composed, split = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    dataset = load({f"train/{composed}": 2, "train/tea": 2, f"test/{split}": 2, "test/tea": 1})
    assert (dataset.class_names, dataset.test.labels.tolist()) == ([composed, "tea"], [0, 0, 1])
    with pytest.raises(DataError, match="holds two folders"):
        load({f"train/{split}": 1})


def test_classes_that_differ_only_by_case_need_names(load):
    letters = {"A": 4, "a": 4, "b": 4}
    with pytest.raises(DataError, match="are the classes 'A' and 'a' one"):
        load(letters)
    names = {"A": "capital A", "a": "small a"}
    assert load({}, class_names=names).class_names == ["capital A", "small a", "b"]


def test_numbered_folders_are_in_the_order_of_their_numbers_and_shots_stay_what_they_were(load, tmp_path):
    numbers = [str(i) for i in range(1, 12)]
    dataset = load(dict.fromkeys(numbers, 6), class_names=[f"n{i}" for i in numbers])
    assert dataset.class_names == [f"n{i}" for i in numbers]
    assert all(
        i.split("/")[0] == numbers[label]
        for i, label in zip(dataset.test.ids, dataset.test.labels, strict=True)
    )
    task = draw_task(dataset, 1, 1)
    # the images of seed 1 before labels were in the order of numbers, when classes were listed as they are now
    assert [i.split("/")[0] for i in task.shots.ids] == sorted(numbers)
    files.write_json(tmp_path / "shots.json", task.record)
    assert draw_task(dataset, 1, 9, shot_list=tmp_path / "shots.json").shots.ids == task.shots.ids
    as_text = load({}, class_names={key: f"n{i}" for key, i in zip(sorted(numbers), numbers, strict=True)})
    with pytest.raises(DataError, match=r"lists '10/.*' as 'n10' but the dataset has it as 'n2'"):
        draw_task(as_text, 1, 9, shot_list=tmp_path / "shots.json")


def test_a_domain_may_be_called_anything(load):
    odd = ["a:b", "a, b", "a [1]", "o'brien", "a=b", "$x$"]
    dataset = load(
        {f"{domain}/{label}": 5 for domain in odd for label in ("cat", "dog")}, id_domain="a=b", ood=odd[:3]
    )
    assert list(dataset.ood) == odd[:3]


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 5000, "\ud800", "~nobody-of-that-name/x"], ids=["nul", "long", "half", "home"]
)
def test_paths_that_no_disk_can_hold_are_refused(load, path):
    for fields in (
        {"path": path},
        {"ood": [f"far:{path}"]},
        {"ood": ["far"], "shifts": {"far": {"path": path}}},
    ):
        with pytest.raises(ConfigError, match="is no path"):
            load(SPLIT, **fields)
