"""Tables of images: columns, splits by condition, domains, the WILDS layouts, and tables not to be trusted."""

import csv

import pytest

from clipkal.config import compose
from clipkal.data import draw_task, load_dataset
from clipkal.data.table import select
from clipkal.errors import ConfigError, DataError


@pytest.fixture
def table(tmp_path, write_image):
    """Writes a table and (by default) an image for every row, named by its first column or by `name`."""

    def write(rows, file="toy/list.csv", image=lambda row, i: row["path"], images=True):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for i, row in enumerate(rows if images else []):
            write_image(path.parent / image(row, i), seed=i)
        return path

    return write


@pytest.fixture
def load(config, tmp_path):
    def load(path="toy/list.csv", **fields):
        return load_dataset(config("table", path=path, **fields), tmp_path)

    return load


def rows_of(*cells):
    return [dict(zip(("path", "label", "split", "domain"), cell, strict=False)) for cell in cells]


def plain(count=4, splits=("train", "val", "test")):
    names = (
        (f"{split}/{label}-{i}.png", label, split) for split in splits for label in "ba" for i in range(count)
    )
    return rows_of(*names)


def sizes(dataset):
    return {role: len(one) for role, one in dataset.sets().items()}


def test_a_table_with_the_usual_columns_needs_no_settings(table, load):
    table(plain())
    dataset = load()
    assert (dataset.class_names, sizes(dataset)) == (["a", "b"], {"train": 8, "val": 8, "test": 8})
    assert (dataset.train.ids[0], dataset.train.labels.tolist()) == ("train/b-0.png", [1] * 4 + [0] * 4)
    assert dataset.train.decode(0).size == (9, 7)
    assert len(draw_task(dataset, 2, 1, "fewshot").shots) == 4


def test_without_a_split_column_test_and_val_are_held_out(table, load):
    table([{key: row[key] for key in ("path", "label")} for row in plain(20, ["all"])])
    dataset = load()
    assert sizes(dataset) == {"train": 20, "val": 4, "test": 16}
    ids = [set(one.ids) for one in dataset.sets().values()]
    assert len(set.union(*ids)) == 40
    assert sizes(load(val_fraction=0.0)) == {"train": 24, "test": 16}


def test_labels_that_are_numbers_are_sorted_as_numbers_and_gaps_do_not_matter(table, load):
    table(rows_of(*((f"{split}{n}.png", n, split) for split in ("train", "test") for n in (10, 2, 7))))
    dataset = load(class_names={"2": "two", "7": "seven", "10": "ten", "11": "eleven"}, val_fraction=0.0)
    assert dataset.class_names == ["two", "seven", "ten"]
    assert dataset.test.labels.tolist() == [2, 0, 1]


def test_other_domains_are_ood(table, load):
    cells = [
        (f"{d}/{s}{label}{i}.png", label, s, d)
        for d in ("photo", "sketch")
        for s in ("train", "test")
        for label in "ab"
        for i in range(3)
    ]
    table(rows_of(*cells, ("edge/0.png", "b", "test", "edge")))
    dataset = load(val_fraction=0.0)
    assert sizes(dataset) == {"train": 6, "test": 6, "sketch": 6, "edge": 1}
    assert set(dataset.train.ids) == {f"photo/train{label}{i}.png" for label in "ab" for i in range(3)}
    turned = load(id_domain="sketch", ood=["edge", "jpeg@1"], val_fraction=0.0)
    assert list(turned.ood) == ["edge", "jpeg@1"]
    with pytest.raises(DataError, match="did you mean 'sketch'"):
        load(id_domain="sketsch")
    with pytest.raises(DataError, match="did you mean 'edge'"):
        load(ood=["edges"])


def test_rows_are_chosen_by_values_lists_and_ranges():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "split": ["a", "b", "c", "a"],
            "day": ["2011-05", "2013-01", "2016-02", "2020"],
            "n": ["2", "10", "3", "1"],
        }
    )
    assert select(frame, {}) == [0, 1, 2, 3]
    assert select(frame, {"split": "a"}) == [0, 3]
    assert select(frame, {"split": ["a", "c"], "n": "..3"}) == [0, 3]
    assert select(frame, {"day": "2013..2020"}) == [1, 2]
    assert select(frame, {"day": "2020.."}) == [3]
    assert select(frame, {"n": "2..10"}) == [0, 2]
    assert select(frame, {"n": 3}) == [2]
    with pytest.raises(ConfigError, match="did you mean 'split'"):
        select(frame, {"splits": "a"})


def test_iwildcam_has_the_layout_of_wilds(table, tmp_path):
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 4 + ["id_val"] * 2 + ["id_test"] * 5
    rows = [
        {"split": split, "location_remapped": i, "y": i % 3, "filename": f"{i:03d}.jpg"}
        for i, split in enumerate(splits)
    ]
    table(rows, "iwildcam_v2.0/metadata.csv", lambda row, _: f"train/{row['filename']}")
    dataset = load_dataset(compose(["dataset=iwildcam"]).dataset, tmp_path)
    assert sizes(dataset) == {"train": 6, "test": 5, "val": 2, "ood_val": 3, "ood_test": 4}
    assert dataset.class_names == ["empty", "White-lipped peccary", "Central American agouti"]
    assert dataset.train.ids[0] == "train/000.jpg"
    only = load_dataset(compose(["dataset=iwildcam", "dataset.ood=[ood_test]"]).dataset, tmp_path)
    assert list(only.ood) == ["ood_test"]
    with pytest.raises(DataError, match="did you mean 'ood_test'"):
        load_dataset(compose(["dataset=iwildcam", "dataset.ood=[oodtest]"]).dataset, tmp_path)


def test_fmow_is_split_by_year_as_in_wilds(table, tmp_path):
    cells = [
        ("train", "2012-12-31T23:59:59Z"),
        ("train", "2013-01-01T00:00:00Z"),  # after the first years: in no set
        ("val", "2004-03-01T10:00:00Z"),
        ("val", "2013-01-01T00:00:00Z"),
        ("val", "2016-01-01T00:00:00Z"),  # in no set
        ("seq", "2010-01-01T00:00:00Z"),  # in no set
        ("test", "2012-06-01T00:00:00Z"),
        ("test", "2015-12-31T23:59:59Z"),  # in no set
        ("test", "2016-01-01T00:00:00Z"),
        ("test", "2017-01-01T00:00:00Z"),
        ("train", "2002-01-01T00:00:00Z"),
    ]
    rows = [
        {"split": split, "category": ("zoo", "fire_station")[i % 2], "timestamp": time}
        for i, (split, time) in enumerate(cells)
    ]
    table(rows, "fmow_v1.1/rgb_metadata.csv", lambda _, i: f"images/rgb_img_{i}.png")
    dataset = load_dataset(compose(["dataset=fmow"]).dataset, tmp_path)
    numbers = {
        role: [int(i[len("images/rgb_img_") : -4]) for i in one.ids] for role, one in dataset.sets().items()
    }
    assert numbers == {"train": [0, 10], "val": [2], "test": [6], "ood_val": [3], "ood_test": [8, 9]}
    assert dataset.class_names == ["fire_station", "zoo"]
    assert dataset.prompts[0][0] == "a satellite photo of a fire station."


def test_a_table_elsewhere_is_an_ood_set(table, load):
    table(plain())
    table(rows_of(("x.png", "B", "test"), ("y.png", "a", "train"), ("z.png", "a", "test")), "far/list.csv")
    shifted = load(ood=["far:far/list.csv"]).ood["far"]
    assert (shifted.ids, shifted.labels.tolist()) == (["z.png", "x.png"], [0, 1])


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.png", "a/../../b.png", "a\\..\\b.png", "C:/x.png", ""], ids=repr
)
def test_paths_that_lead_out_of_the_folder_are_refused(table, load, path):
    table(rows_of((path, "a", "train"), ("b.png", "a", "test")), images=False)
    with pytest.raises(DataError, match="leads out of the dataset"):
        load()


def test_missing_images_and_files_are_named(table, load, tmp_path):
    table(plain())
    (tmp_path / "toy/val/a-1.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 8 images of val are missing: val/a-1\.png"):
        load()
    with pytest.raises(DataError, match=r"absent\.csv: no such file; dataset\.path must be the \.csv"):
        load("toy/absent.csv")


def spread(label="{}", path="{}", head="path,label", count=4):
    """Text of a table of the images cat/0.png, … and dog/0.png, …"""
    names = [(f"{name}/{i}.png", name) for name in ("cat", "dog") for i in range(count)]
    return "\n".join([head, *(f"{path.format(p)},{label.format(n)}" for p, n in names)]) + "\n"


@pytest.fixture
def written(tmp_path, write_image, load):
    """Loads a table whose text is given; its images are there."""
    for name in ("cat", "dog"):
        for i in range(4):
            write_image(tmp_path / f"toy/{name}/{i}.png", seed=i)

    def written(text, encoding="utf-8", **fields):
        (tmp_path / "toy/list.csv").write_bytes(text.encode(encoding))
        return load(val_fraction=0.0, **fields)

    return written


@pytest.mark.parametrize(
    "text",
    [
        spread(),
        "\ufeff" + spread('"{}"', '"{}"', '"path","label"').replace("\n", "\r\n"),
        spread(" {} ", "{}", "path, label "),
        spread(' "{}"', '"{}"', '"path", "label"'),
        spread("{},", "{}"),
        spread("{},", "{}", "path,label,"),
        spread().replace("/", "\\"),
        spread("{},7", "{}", "path,label,"),
        spread() + "\n,\n",
    ],
    ids=["plain", "mark", "blanks", "quotes", "commas", "column", "windows", "unnamed", "empty lines"],
)
def test_tables_as_people_and_programs_write_them(written, text):
    dataset = written(text)
    assert (dataset.class_names, sizes(dataset)) == (["cat", "dog"], {"train": 4, "test": 4})
    assert set(dataset.train.ids + dataset.test.ids) == {
        f"{n}/{i}.png" for n in ("cat", "dog") for i in range(4)
    }
    assert dataset.train.labels.tolist() == [n.startswith("dog") for n in dataset.train.ids]


def test_absolute_paths_inside_the_folder_are_shortened(written, tmp_path):
    assert written(spread(path=f"{tmp_path}/toy/{{}}")).train.ids[0].startswith("cat/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (spread(label="{},7"), "line 2: 3 cells where the header names 2"),
        (spread().replace("cat/1.png,cat", "cat/1.png"), "line 3: 1 cells where the header names 2"),
        (spread("{},x", head="path,label,label"), "two columns are called 'label'"),
        (spread().replace("cat/1.png,cat", "cat/1.png,c\0t"), "line 3: a NUL in a cell"),
        (spread(label='"{}'), "line .*: "),
        (
            spread().replace(",", ";"),
            r"no column 'path' \(it has path;label\); separate its columns with commas",
        ),
        (
            spread().replace("0.png,cat", "0.png,"),
            r"1 of 8 rows have no label \(''\), the first: row 0 \(cat/0.png\)",
        ),
        (spread().replace(",dog", ",NaN"), "4 of 8 rows have no label"),
        (spread().replace(",dog", ",-1"), "4 of 8 rows have no label"),
        (spread().replace("1.png,cat", "1.png,Cat"), "are the classes 'Cat' and 'cat' one"),
        (spread().replace(",cat", ",1").replace(",dog", ",1.0"), "are the classes '1' and '1.0' one"),
        (spread(label="bird"), "has 1 class"),
        (spread().replace("cat/1.png", "cat/./0.png"), "cat/0.png and cat/./0.png are the same file"),
        (spread().replace("cat/1.png", "cat"), "no regular files .*: cat"),
    ],
)
def test_tables_whose_cells_are_not_what_they_seem_are_refused(written, text, said):
    with pytest.raises(DataError, match=said):
        written(text)


def test_a_table_in_another_encoding_is_refused(written):
    with pytest.raises(DataError, match="it is no UTF-8; save it as UTF-8"):
        written(spread(), "utf-16")


def test_a_label_that_looks_like_none_is_a_class_where_it_has_a_name(written):
    dataset = written(
        spread().replace(",cat", ",-1").replace(",dog", ",1"), class_names={"-1": "off", "1": "on"}
    )
    assert dataset.class_names == ["off", "on"]
    assert written(spread().replace(",cat", ",NA").replace(",dog", ",None")).class_names == ["NA", "None"]


def test_labels_with_decimals_are_in_the_order_of_their_numbers(written):
    assert written(spread().replace(",cat", ",10.0").replace(",dog", ",2.0")).class_names == ["2.0", "10.0"]


def test_labels_whose_accents_are_written_in_two_ways_are_one_class(written):
    text = spread().replace("0.png,cat", "0.png,e\u0301").replace(",cat", ",\u00e9")
    assert written(text).class_names == ["dog", "\u00e9"]


def test_files_are_found_whichever_way_the_disk_writes_accents(table, load, tmp_path):
    table(plain())
    rows = (tmp_path / "toy/list.csv").read_text().replace("b-0", "e\u0301-0")
    for image in (tmp_path / "toy").glob("*/b-0.png"):
        image.rename(image.with_name("\u00e9-0.png"))
    (tmp_path / "toy/list.csv").write_text(rows, encoding="utf-8")
    dataset = load()
    assert dataset.train.ids[0] == "train/e\u0301-0.png"
    assert dataset.train.decode(0).size == (9, 7)


@pytest.mark.parametrize("words", [("Training", "validation", "TESTING"), ("train", "dev", "test")])
def test_the_usual_words_for_splits_are_understood(table, load, words):
    table(plain(4, words))
    assert sizes(load()) == {"train": 8, "val": 8, "test": 8}


def test_rows_of_an_unknown_split_are_never_left_out_without_a_word(table, load):
    table(plain(4, ("train", "query", "gallery")))
    with pytest.raises(
        DataError, match=r"'split' whose role is not known: 'query', 'gallery' .*dataset\.splits"
    ):
        load()
    assert sizes(load(splits={"train": "train", "test": ["query", "gallery"]}, val_fraction=0.0)) == {
        "train": 8,
        "test": 16,
    }
    table(plain(4, ("train", "val", "dev")))
    with pytest.raises(DataError, match="both 'val' and 'dev' are val"):
        load()
    table(plain(4, ("train", "")))
    with pytest.raises(DataError, match="role is not known: ''"):
        load()


def test_sets_that_share_images_with_train_are_refused(table, load):
    table(plain())
    with pytest.raises(DataError, match=r"8 images are both in train and in test \(train/a-0\.png"):
        load(splits={"train": "train", "test": ["train", "test"]})
    with pytest.raises(DataError, match="both in train and in far"):
        load(splits={"train": "train", "test": "test", "far": "train"})


def test_rows_without_a_domain_are_refused(table, load):
    table(rows_of(*((f"{i}.png", "ab"[i % 2], "train", "sky" if i else "") for i in range(4))))
    with pytest.raises(DataError, match=r"1 of 4 rows have no domain .*: 0;"):
        load()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a table"),
        (b"path,label\n\xff\xfe\n", "cannot be read as a table"),
        (b"path,label\na.png\nb.png,1,2,3,4\n", "cannot be read as a table"),
        (b"file,label\na.png,1\n", r"has no column 'path' \(it has file, label\); set dataset.columns.path"),
        (b"path,label\n", "has no training images"),
        (b"path,label,split\na.png,x,test\n", "has no training images"),
    ],
)
def test_files_that_are_no_such_table_are_refused(load, tmp_path, write_image, content, said):
    write_image(tmp_path / "toy/a.png")
    (tmp_path / "toy/list.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"columns": {"label": "labels"}}, "did you mean 'label'"),
        ({"columns": {"lable": "label"}}, "did you mean 'label'"),
        ({"columns": {"path": "{pth}.png"}}, "did you mean 'path'"),
        ({"columns": {"path": "{path"}}, "no pattern of columns"),
        ({"columns": {"path": "{path:d}"}}, "no pattern of columns"),
        ({"columns": {"path": "{}"}}, "'' is unknown"),
        ({"splits": {"train": {"year": "2012"}}}, "column 'year' is unknown"),
    ],
)
def test_settings_that_do_not_fit_the_table_name_the_nearest(table, load, fields, said):
    table(plain())
    with pytest.raises(ConfigError, match=said):
        load(**fields)


def test_a_domain_without_images_is_an_error(table, load):
    table(plain())
    with pytest.raises(DataError, match="'far' holds no image"):
        load(splits={"train": "train", "test": "test", "far": "farr"}, val_fraction=0.0)
