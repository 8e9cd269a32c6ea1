"""OOD sets from another place: archives, features and folders under a class map, borders, and what is refused."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from clipkal.config import compose
from clipkal.data import load_dataset
from clipkal.data.class_files import CLASS_MAPS
from clipkal.data.spec import read_spec
from clipkal.errors import ConfigError, DataError


@pytest.fixture
def load(config, tmp_path, make_tree):
    """ID is a folder with the classes cat and dog; `shift` describes the OOD set "far" at tmp_path/far."""

    def load(shift=None, ood=("far",), **fields):
        make_tree(tmp_path / "toy", {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 1})
        shifts = {} if shift is None else {"shifts": {"far": {"path": "far", **shift}}}
        return load_dataset(config("folder", ood=list(ood), val_fraction=0.0, **shifts, **fields), tmp_path)

    return load


def test_a_class_map_names_the_classes_and_leaves_the_others_out(load, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"wolf": 2, "poodle": 1, "house": 3, "tiger": 1})
    animals = {"wolf": "dog", "poodle": "dog", "tiger": "cat"}
    far = load({"class_map": animals}).ood["far"]
    assert [i.split("/")[1] for i in far.ids] == ["tiger", "poodle", "wolf", "wolf"]
    assert far.labels.tolist() == [0, 1, 1, 1]
    (tmp_path / "map.json").write_text(json.dumps(animals))
    assert load({"class_map": "map.json"}).ood["far"].ids == far.ids


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        (None, r"has classes that ID lacks: wolf \(ID has: cat, dog\).*dataset\.shifts\.far\.class_map"),
        ({"class_map": {"wolf": "dogs"}}, "did you mean 'dog'"),
        (
            {"class_map": {"wolf": "dog", "fox": "dog"}},
            r"1 of the 2 classes .* are not there: fox; is it unpacked whole",
        ),
        ({"class_map": "absent.json"}, "no class map can be read there"),
        (
            {"class_map": {"wolf": ["dog", "cat"]}},
            r"far\.class_map: 'wolf' must be given one name as text, not \['dog', 'cat'\]",
        ),
        ({"class_map": {}}, "must map each class"),
        (
            {"path": "nowhere"},
            r"nowhere: no such file or folder; check dataset\.ood, or leave 'far' out of it",
        ),
        ({"path": "toy/train/cat/000.png"}, r"must be a folder of class folders or one of \.npz \.npy \.csv"),
        ({"border": 4, "class_map": {"wolf": "dog"}}, "9 x 7 pixels have no room for a border of 4"),
    ],
)
def test_what_does_not_fit_is_one_line(load, make_tree, tmp_path, shift, said):
    make_tree(tmp_path / "far", {"wolf": 1})
    with pytest.raises(DataError, match=said):
        load(shift, ood=["far:far"] if shift is None else ["far"]).ood["far"].decode(0)


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ({"path": None}, r"dataset\.shifts\.far\.path must be set"),
        ({"border": -1}, r"border=-1"),
        ({"classes": "some"}, "'some' is unknown"),
    ],
)
def test_settings_that_mean_nothing_are_refused(load, shift, said):
    with pytest.raises(ConfigError, match=said):
        load(shift)


def test_a_border_is_cut_off_and_another_digest(load, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"dog": 1})
    whole, cut = load({}).ood["far"], load({"border": 2}).ood["far"]
    assert (np.asarray(whole.decode(0))[2:-2, 2:-2] == np.asarray(cut.decode(0))).all()
    assert cut.digest != whole.digest


def test_the_rule_of_the_label_space_comes_with_the_dataset(load, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"dog": 1})
    assert load({}).spaces == {"far": "occurring"}
    assert load({"classes": "all"}).spaces == {"far": "all"}


def archive(path, classes=("wolf", "tiger"), domains=("drawn", "painted")):
    """One test image a domain and class; the red value says which."""
    blobs, columns = [], []
    for d in range(len(domains)):
        for c in range(len(classes)):
            image = path.with_suffix(".png")
            Image.new("RGB", (8, 8), (100 * d + c, 0, 0)).save(image)
            blobs.append(image.read_bytes())
            columns.append((d, c))
    domain, label = np.array(columns).T
    np.savez(
        path,
        blob=np.frombuffer(b"".join(blobs), np.uint8),
        offset=np.cumsum([0, *map(len, blobs)]),
        label=label,
        domain=domain,
        split=np.zeros(len(label), int),
        classes=np.array(classes),
        domains=np.array(domains),
        splits=np.array(["test"]),
    )


def test_a_domain_of_an_archive_is_the_one_named_or_called_like_the_set(load, tmp_path):
    archive(tmp_path / "far.npz")
    described = {"path": "far.npz", "class_map": {"wolf": "dog", "tiger": "cat"}}
    far = load({**described, "domain": "painted"}).ood["far"]
    assert far.labels.tolist() == [0, 1]
    assert [far.decode(i).getpixel((0, 0))[0] for i in range(2)] == [101, 100]
    with pytest.raises(DataError, match=r"several domains \(drawn, painted\).*dataset\.shifts\.far\.domain"):
        load(described)
    with pytest.raises(DataError, match="did you mean 'drawn'"):
        load({**described, "domain": "draw"})
    archive(tmp_path / "same.npz", classes=("dog", "cat"))
    assert load(ood=["drawn:same.npz"]).ood["drawn"].decode(1).getpixel((0, 0))[0] == 0
    archive(tmp_path / "one.npz", classes=("dog",), domains=("drawn",))
    assert load(ood=["far:one.npz"]).ood["far"].labels.tolist() == [1]


def test_an_archive_can_have_an_ood_archive(config, tmp_path):
    archive(tmp_path / "id.npz", ("cat", "dog"), ("photo",))
    content = dict(np.load(tmp_path / "id.npz"))
    blob = content["blob"][: content["offset"][2]]
    content |= {"blob": np.tile(blob, 2), "offset": np.cumsum([0, *np.tile(np.diff(content["offset"]), 2)])}
    content |= {
        "label": np.tile(content["label"], 2),
        "domain": np.zeros(4, int),
        "split": np.array([0, 0, 1, 1]),
    }
    np.savez(tmp_path / "id.npz", **content | {"splits": np.array(["train", "test"])})
    archive(tmp_path / "far.npz")
    shifts = {"drawn": {"path": "far.npz", "class_map": {"wolf": "dog"}}}
    dataset = load_dataset(config("archive", path="id.npz", ood=["drawn"], shifts=shifts), tmp_path)
    assert dataset.ood["drawn"].labels.tolist() == [1]


def features(path, width=4, classes=("cat", "dog"), domains=("photo",), splits=("train", "test")):
    count = len(classes) * len(domains) * len(splits)
    columns = np.stack(np.meshgrid(*map(range, map(len, (domains, splits, classes))), indexing="ij")).reshape(
        3, -1
    )
    np.savez(
        path,
        image_features=np.eye(count, width, dtype=np.float32)
        + np.eye(count, width, -width, dtype=np.float32),
        text_features=np.eye(len(classes), width, dtype=np.float32),
        logit_scale=np.float32(10),
        domain=columns[0],
        split=columns[1],
        label=columns[2],
        classes=np.array(classes),
        domains=np.array(domains),
        splits=np.array(splits),
    )


def test_features_can_have_ood_features_of_another_file(config, tmp_path):
    features(tmp_path / "id.npz")
    features(tmp_path / "far.npz", classes=("wolf", "house", "tiger"), splits=("test",))

    def load(**shift):
        shifts = {"far": {"path": "far.npz", "class_map": {"wolf": "dog", "tiger": "cat"}, **shift}}
        return load_dataset(config("features", path="id.npz", ood=["far"], shifts=shifts), tmp_path)

    far = load().ood["far"]
    assert (far.labels.tolist(), far.inputs.argmax(dim=1).tolist()) == ([1, 0], [0, 2])
    with pytest.raises(DataError, match="classes that ID lacks: house, tiger, wolf"):
        load(class_map=None)
    features(tmp_path / "far.npz", width=5, splits=("test",))
    with pytest.raises(DataError, match="its features are 5 wide, those of ID 4"):
        load(class_map=None)
    with pytest.raises(DataError, match=r"absent\.npz: no such file or folder"):
        load(path="absent.npz")


def test_the_class_map_of_objectnet_has_113_classes_of_imagenet():
    content = json.loads((CLASS_MAPS / "objectnet.json").read_text())
    assert len(content) == len(set(content.values())) == 113
    assert all(len(wnid) == 9 and wnid[0] == "n" for wnid in content.values())
    assert content["banana"] == "n07753592"


def test_objectnet_is_read_with_its_map_and_without_its_frame(tmp_path, make_tree, write_image):
    content = json.loads((CLASS_MAPS / "objectnet.json").read_text())
    wnids = [*content.values(), "n01440764"]
    make_tree(
        tmp_path / "imagenet/images", {f"{split}/{wnid}": 2 for split in ("train", "val") for wnid in wnids}
    )
    (tmp_path / "imagenet/classnames.txt").write_text("".join(f"{wnid} name of {wnid}\n" for wnid in wnids))
    make_tree(tmp_path / "objectnet-1.0/images", dict.fromkeys([*content, "air_freshener"], 1))
    cfg = compose(["dataset=imagenet", "dataset.ood=[objectnet]"]).dataset
    dataset = load_dataset(cfg, tmp_path)
    assert (len(dataset.class_names), len(dataset.ood["objectnet"])) == (114, 113)
    banana = dataset.ood["objectnet"].ids.index("objectnet/banana/000.png")
    assert dataset.class_names[dataset.ood["objectnet"].labels[banana]] == "name of n07753592"
    assert dataset.ood["objectnet"].decode(banana).size == (5, 3)


def test_named_shifts_are_used_where_ood_names_them(tmp_path):
    cfg = compose(
        ["dataset=imagenet", "dataset.ood=[imagenet_a,other:far,jpeg@1]", "dataset.class_names=null"]
    )
    spec = read_spec(cfg.dataset, tmp_path)
    assert spec.elsewhere == {
        "imagenet_a": tmp_path / "imagenet-adversarial/imagenet-a",
        "other": tmp_path / "far",
    }
    added = compose(
        ["dataset=folder", "+dataset.shifts={far: {path: x.npz, class_map: {a: b}}}", "dataset.ood=[far]"]
    )
    assert read_spec(added.dataset, tmp_path).shifts["far"].class_map == {"a": "b"}
    assert OmegaConf.select(added, "dataset.shifts.far.border") == 0


CUES = {"airplane": "airplane", "chair": "chair", "elephant": "elephant"}


def test_real_photographs_have_real_cue_conflicts_as_ood(shared_data, config):
    shifts = {"silhouette": {"path": "cueconflict16_112.npz", "class_map": CUES}}
    cfg = config("archive", path="caltech101_96.npz", ood=["silhouette"], shifts=shifts)
    dataset = load_dataset(cfg, shared_data)
    one = dataset.ood["silhouette"]
    assert {dataset.class_names[label] for label in one.labels.tolist()} == set(CUES.values())
    assert torch.bincount(one.labels).max() == 10
    assert one.decode(0).size == (112, 112)


@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 1.0]), "labels are float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, -1]), r"images without a label \(-1\), the first: 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.int64(0), r"labels are int64 \[\]"),
        (np.zeros((2, 0, 4, 3), np.uint8), np.array([0, 1]), r"holds uint8 \[2, 0, 4, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]), "classes that ID lacks: 0, 2"),
    ],
)
def test_arrays_that_do_not_hold_what_they_must_are_refused(load, tmp_path, data, labels, said):
    np.save(tmp_path / "far_data.npy", data)
    np.save(tmp_path / "far_labels.npy", labels)
    with pytest.raises(DataError, match=said):
        load(ood=["far:far_data.npy"])


def test_several_arrays_in_place_of_one_are_refused(load, tmp_path):
    np.savez(tmp_path / "far.npz", data=np.zeros(2))
    (tmp_path / "far.npz").rename(tmp_path / "far_data.npy")
    with pytest.raises(DataError, match=r"is not a \.npy file but an \.npz"):
        load(ood=["far:far_data.npy"])


def test_numbers_stand_for_the_classes_in_order_only_where_none_of_them_is_a_class(
    config, make_tree, tmp_path
):
    """Folders 1, 2, 3 of ID beside 0, 1, 2 of the OOD set: 0 cannot be told to be 1 when 1 is there too."""
    make_tree(tmp_path / "toy", {f"{split}/{n}": 2 for split in ("train", "test") for n in (1, 2, 3)})
    make_tree(tmp_path / "far", {"0": 1, "1": 1, "2": 1})
    with pytest.raises(DataError, match=r"classes that ID lacks: 0 \(ID has: 1, 2, 3\)"):
        load_dataset(config("folder", ood=["far:far"], val_fraction=0.0), tmp_path)


def test_a_table_elsewhere_speaks_the_same_words_for_splits(load, make_tree, tmp_path):
    make_tree(tmp_path / "far", {"cat": 2})
    text = "path,label,split\ncat/000.png,cat,Testing\ncat/001.png,cat,"
    for word, count in (("train", 1), ("TESTING", 2)):
        (tmp_path / "far/far.csv").write_text(text + word + "\n")
        assert len(load(ood=["far:far/far.csv"]).ood["far"]) == count
    (tmp_path / "far/far.csv").write_text(text + "query\n")
    with pytest.raises(DataError, match="role is not known: 'query'"):
        load(ood=["far:far/far.csv"])
