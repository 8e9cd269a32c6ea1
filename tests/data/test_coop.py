"""CoOp's layout: order, checksums, and split files that must not be trusted."""

import json

import pytest

from clipkal import files
from clipkal.data import draw_task, load_dataset
from clipkal.data.coop import read_split
from clipkal.errors import DataError

SPLIT = {
    "train": [["b/1.png", 1, "pen"], ["a/1.png", 0, "mug"], ["b/2.png", 1, "pen"]],
    "val": [["a/2.png", 0, "mug"]],
    "test": [["a/3.png", 0, "mug"], ["b/3.png", 1, "pen"]],
}


@pytest.fixture
def coop(tmp_path, write_image, config):
    """A loader of a dataset folder with the images of SPLIT."""
    for rows in SPLIT.values():
        for path, _, _ in rows:
            write_image(tmp_path / "toy" / "images" / path)

    def load(split=SPLIT, name="split_zhou_Toy.json", **fields):
        text = split if isinstance(split, str) else json.dumps(split)
        (tmp_path / "toy" / name).write_text(text)
        return load_dataset(config("coop", **fields), tmp_path)

    return load


def test_the_order_of_the_file_is_kept_and_the_images_are_found_below(coop):
    dataset = coop()
    assert (dataset.train.ids, dataset.train.labels.tolist()) == (
        ["b/1.png", "a/1.png", "b/2.png"],
        [1, 0, 1],
    )
    assert (dataset.class_names, len(dataset.val), len(dataset.test)) == (["mug", "pen"], 1, 2)
    assert dataset.train.decode(0).size == (9, 7)
    assert draw_task(dataset, 1, 1).shots.labels.tolist() == [1, 0]


def test_ood_folders_are_matched_by_class_name(coop, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"Pen": 2})
    assert coop(ood=["far:far"]).ood["far"].labels.tolist() == [1, 1]
    make_tree(tmp_path / "far", {"cow": 1})
    with pytest.raises(DataError, match="lacks: cow"):
        coop(ood=["far:far"])
    with pytest.raises(DataError, match="sketch: CoOp data have no domains"):
        coop(ood=["sketch"])


def test_a_checksum_that_fails_is_refused_and_a_published_one_warned_of(coop, tmp_path, caplog):
    with pytest.raises(DataError, match=r"not dataset\.split_sha256=0000"):
        coop(split_sha256="0000")
    good = files.sha256(tmp_path / "toy" / "split_zhou_Toy.json")
    assert len(coop(split_sha256=good).train) == 3
    (tmp_path / "toy" / "split_zhou_Toy.json").unlink()
    coop(name="split_zhou_OxfordPets.json")
    assert "is not the published split file" in caplog.text


def test_a_split_file_from_windows_is_read(coop, tmp_path):
    """With a byte order mark, and backslashes in its paths."""
    windows = {
        part: [[path.replace("/", "\\"), *rest] for path, *rest in rows] for part, rows in SPLIT.items()
    }
    assert coop("\ufeff" + json.dumps(windows)).train.ids == [path for path, _, _ in SPLIT["train"]]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.png", "a/../../b.png", "a\\..\\b.png", "C:/x.png", ""], ids=repr
)
def test_paths_that_lead_out_of_the_dataset_are_refused(coop, path):
    with pytest.raises(DataError, match="leads out of the dataset"):
        coop({**SPLIT, "test": [[path, 0, "mug"]]})


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("{", "no split file can be read there .*line 1 column 2"),
        ("[]", "is no split file: expected lists of"),
        ({"train": 3}, "train: is no list"),
        (
            {"train": [["b.png", 0, "mug"], ["a.png", 0]]},
            r"train\[1\]: is no entry of a split file: \['a.png', 0\]",
        ),
        ({"train": [["a.png", "0", "mug"]]}, r"train\[0\]: is no entry"),
        ({"train": [["a.png", True, "mug"]]}, r"train\[0\]: is no entry"),
        ({"train": [["a.png", 0, " "]]}, r"train\[0\]: is no entry"),
        ({"train": [["a\0.png", 0, "mug"]]}, r"train\[0\]\[0\]: text with a NUL"),
        ({"train": [["a.png", 0, "mug\ud800"]]}, r"train\[0\]\[2\]: text with .* half a surrogate pair"),
        (
            {"train": [["a" * 5000, 0, "mug"]], "test": SPLIT["test"]},
            "1 of the 1 images of toy/train are missing",
        ),
        ({"train": SPLIT["train"], "test": []}, "lists no test images"),
        ({**SPLIT, "val": [["a/2.png", 0, "cup"]]}, "label 0 is called both 'mug' and 'cup'"),
        ({**SPLIT, "test": [["a/3.png", 3, "cow"]]}, "without gaps, found 0, 1, 3"),
        ({**SPLIT, "train": [*SPLIT["train"], ["a/1.png", 0, "mug"]]}, "'a/1.png' appears twice"),
        ({**SPLIT, "test": [["a/7.png", 0, "mug"]]}, r"1 of the 1 images of toy/test are missing: a/7\.png"),
    ],
)
def test_split_files_that_do_not_fit_are_refused(coop, split, said):
    with pytest.raises(DataError, match=said):
        coop(split)


def test_a_missing_split_file_says_how_to_get_it(config, tmp_path):
    with pytest.raises(DataError, match="toy: no such folder"):
        load_dataset(config("coop"), tmp_path)
    (tmp_path / "toy").mkdir()
    with pytest.raises(DataError, match=r"holds no split_zhou_\*\.json; get it from .*DATASETS\.md"):
        load_dataset(config("coop"), tmp_path)
    for name in "ab":
        (tmp_path / "toy" / f"split_zhou_{name}.json").write_text("{}")
    with pytest.raises(DataError, match="several split files"):
        load_dataset(config("coop"), tmp_path)


def test_fgvc_aircraft_is_read_from_its_own_lists(config, tmp_path, write_image):
    home = tmp_path / "toy"
    for number in ("001", "002", "003", "004"):
        write_image(home / "images" / f"{number}.jpg")
    (home / "variants.txt").write_text("Boeing 707-320\nA320\n")
    lists = {"train": "002 A320\n001 Boeing 707-320\n", "val": "003 A320\n", "test": "004 Boeing 707-320\n"}
    for part, text in lists.items():
        (home / f"images_variant_{part}.txt").write_text(text)
    dataset = load_dataset(config("coop"), tmp_path)
    assert dataset.class_names == ["Boeing 707-320", "A320"]
    assert (dataset.train.ids, dataset.train.labels.tolist()) == (["002.jpg", "001.jpg"], [1, 0])
    (home / "images_variant_val.txt").write_text("003 Concorde\n")
    with pytest.raises(DataError, match="'Concorde' of image '003' is not in variants"):
        load_dataset(config("coop"), tmp_path)
    (home / "images_variant_val.txt").unlink()
    with pytest.raises(
        DataError, match=r"images_variant_val\.txt: no list can be read there \(no such file\)"
    ):
        load_dataset(config("coop"), tmp_path)


def test_the_real_split_file_has_the_documented_counts(shared_data):
    file = shared_data / "meta" / "split_zhou_Caltech101.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is absent")
    parts, classes = read_split(file)
    assert {part: len(rows.paths) for part, rows in parts.items()} == {
        "train": 4128,
        "val": 1649,
        "test": 2465,
    }
    assert (len(classes), classes[:2]) == (100, ["face", "leopard"])
