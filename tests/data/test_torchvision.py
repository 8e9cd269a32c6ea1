"""Torchvision's datasets, from tiny files in their formats; nothing is downloaded."""

import pickle
import urllib.error

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from clipkal import files
from clipkal.config import compose
from clipkal.data import draw_task, load_dataset
from clipkal.errors import ConfigError, DataError

CLASSES = ["airplane", "automobile", "bird"]


def batch(count, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [i % len(CLASSES) for i in range(count)]}


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder in CIFAR-10's format, with 12 + 12 training and 6 test images; the checksums are its own."""
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    content = {"data_batch_1": batch(12, 1), "data_batch_2": batch(12, 2), "test_batch": batch(6, 3)}
    content["batches.meta"] = {"label_names": CLASSES}
    for name, part in content.items():
        (folder / name).write_bytes(pickle.dumps(part))

    def md5(name):
        return torchvision.datasets.utils.calculate_md5(folder / name)

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, md5(name)] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5("test_batch")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5("batches.meta")})
    return tmp_path


def cifar_config(*overrides):
    return compose(["dataset=cifar10", "dataset.ood=[]", *overrides]).dataset


def test_cifar_is_read_with_its_class_names_and_val_is_held_out_of_train(cifar):
    dataset = load_dataset(cifar_config(), cifar)
    assert dataset.class_names == CLASSES
    assert {role: len(one) for role, one in dataset.sets().items()} == {"train": 21, "val": 3, "test": 6}
    assert dataset.test.ids[:2] == ["test/00000", "test/00001"]
    assert set(dataset.val.ids).isdisjoint(dataset.train.ids)
    pixels = batch(6, 3)["data"][4].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (np.asarray(dataset.test.decode(4)) == pixels).all()
    assert dataset.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(draw_task(dataset, 4, 1, "fewshot").shots) == 12


def test_corruptions_are_copies_of_the_test_set(cifar):
    dataset = load_dataset(cifar_config("dataset.ood=[jpeg@3]"), cifar)
    assert dataset.ood["jpeg@3"].decode(0).tobytes() != dataset.test.decode(0).tobytes()


def test_the_digest_follows_the_pixels(cifar, monkeypatch):
    before = load_dataset(cifar_config(), cifar).test.digest
    path = cifar / "cifar10/cifar-10-batches-py/test_batch"
    path.write_bytes(pickle.dumps(batch(6, 4)))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", None]])
    assert load_dataset(cifar_config(), cifar).test.digest != before


def cifar_10_1(folder, labels=(2, 0, 1, 0)):
    folder.mkdir()
    pixels = np.random.default_rng(9).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "cifar10.1_v6_data.npy", pixels)
    np.save(folder / "cifar10.1_v6_labels.npy", np.array(labels, dtype=np.int32))
    return pixels


def test_cifar_10_1_is_the_ood_set_of_cifar_10(cifar):
    pixels = cifar_10_1(cifar / "cifar10.1")
    shifted = load_dataset(cifar_config("dataset.ood=[cifar10_1]"), cifar).ood["cifar10_1"]
    assert shifted.labels.tolist() == [0, 0, 1, 2]
    assert shifted.ids == [f"cifar10_1/0000{i}" for i in (1, 3, 2, 0)]
    assert (np.asarray(shifted.decode(3)) == pixels[0]).all()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cifar10.1_v6_data.npy", np.zeros((4, 32, 32), np.uint8), r"holds uint8 \[4, 32, 32\]"),
        ("cifar10.1_v6_labels.npy", np.zeros(3, int), r"has 4 images but the labels are int64 \[3\]"),
        ("cifar10.1_v6_labels.npy", np.full(4, 7), "classes that ID lacks: 7"),
        ("cifar10.1_v6_labels.npy", None, "labels.npy: no such file"),
        ("cifar10.1_v6_data.npy", b"\x93NUMPY", "is not a readable .npy file"),
        ("cifar10.1_v6_labels.npy", np.array([{}] * 4), "is not a readable .npy file"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(cifar, name, content, said):
    cifar_10_1(cifar / "cifar10.1")
    path = cifar / "cifar10.1" / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=said):
        load_dataset(cifar_config("dataset.ood=[cifar10_1]"), cifar)


def test_missing_files_are_one_line_that_says_how_to_get_them(tmp_path, cifar):
    with pytest.raises(
        DataError, match=r"x: torchvision's CIFAR10 is not there.*dataset\.download=true.*cifar-10-python"
    ):
        load_dataset(cifar_config("dataset.path=x"), tmp_path)
    with pytest.raises(
        DataError, match=r"v6_data\.npy: no such file.*download=true.*github.*leave 'cifar10_1' out"
    ):
        load_dataset(cifar_config("dataset.ood=[cifar10_1]"), cifar)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **more):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def test_a_download_without_network_is_one_line(tmp_path, cifar, no_network):
    with pytest.raises(
        DataError, match=r"x: cannot download https\S+cifar-10-python.*no route to host.*put it there"
    ):
        load_dataset(cifar_config("dataset.path=x", "dataset.download=true"), tmp_path)
    with pytest.raises(
        DataError, match=r"cifar10\.1: cannot download https\S+v6_data\.npy.*no route to host"
    ):
        load_dataset(cifar_config("dataset.ood=[cifar10_1]", "dataset.download=true"), cifar)
    assert not list((cifar / "cifar10.1").iterdir())


def test_what_is_downloaded_is_checked_and_only_kept_whole(cifar, tmp_path):
    source = tmp_path / "server"
    pixels = cifar_10_1(source)
    sums = {name: files.sha256(source / f"cifar10.1_v6_{name}.npy") for name in ("data", "labels")}

    def config(sums):
        urls = {(source / f"cifar10.1_v6_{name}.npy").as_uri(): sha for name, sha in sums.items()}
        dataset = cifar_config("dataset.ood=[cifar10_1]", "dataset.download=true")
        dataset.shifts.cifar10_1.urls = urls
        return dataset

    with pytest.raises(DataError, match=r"gives a file with sha256 .*it was not kept"):
        load_dataset(config({**sums, "labels": "0" * 64}), cifar)
    assert [path.name for path in (cifar / "cifar10.1").iterdir()] == ["cifar10.1_v6_data.npy"]
    shifted = load_dataset(config(sums), cifar).ood["cifar10_1"]
    assert (np.asarray(shifted.decode(3)) == pixels[0]).all()


def test_a_damaged_file_is_refused(cifar):
    path = cifar / "cifar10/cifar-10-batches-py/test_batch"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="not there, or damaged"):
        load_dataset(cifar_config(), cifar)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", pickle.dumps([1, 2]), pickle.dumps({"data": 3})])
def test_a_file_of_another_kind_is_refused(cifar, monkeypatch, content):
    (cifar / "cifar10/cifar-10-batches-py/test_batch").write_bytes(content)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", None]])
    with pytest.raises((DataError, ConfigError), match=r"torchvision.*CIFAR10"):
        load_dataset(cifar_config(), cifar)


def test_labels_that_are_no_whole_numbers_are_refused(config, tmp_path, monkeypatch):
    stand_in(monkeypatch, y=[0.5, 1.0] * 20, classes=["one", "two"])
    with pytest.raises(ConfigError, match="is no dataset of one label an image"):
        load_dataset(config("torchvision", torchvision="Dots"), tmp_path)


def test_datasets_with_named_splits_keep_them(config, tmp_path, make_tree, monkeypatch):
    class Leaves(torchvision.datasets.ImageFolder):
        def __init__(self, root, split="train", download=False):
            if split not in ("train", "valid"):
                raise ValueError(split)
            super().__init__(f"{root}/{split}")

    monkeypatch.setattr(torchvision.datasets, "Leaves", Leaves, raising=False)
    make_tree(tmp_path / "toy", {"train/oak": 20, "train/elm": 20, "valid/elm": 3, "valid/oak": 2})
    dataset = load_dataset(config("torchvision", torchvision="Leaves"), tmp_path)
    assert {role: len(one) for role, one in dataset.sets().items()} == {"train": 36, "val": 4, "test": 5}
    assert (dataset.class_names, dataset.test.decode(0).size) == (["elm", "oak"], (9, 7))
    (tmp_path / "toy/valid/elm/000.png").write_bytes(b"")
    broken = load_dataset(config("torchvision", torchvision="Leaves"), tmp_path)
    with pytest.raises(DataError, match="val/00000: cannot be read as an image"):
        broken.test.decode(0)


def test_a_dataset_without_splits_is_divided_like_a_folder(config, tmp_path, monkeypatch):
    class Dots(torchvision.datasets.VisionDataset):
        classes = ("one", "two")

        def __init__(self, root, transform=None):
            super().__init__(root)
            self.labels = torch.arange(40) % 2

        def __getitem__(self, i):
            return Image.new("L", (5, 4), i), int(self.labels[i])

    monkeypatch.setattr(torchvision.datasets, "Dots", Dots, raising=False)
    dataset = load_dataset(config("torchvision", torchvision="Dots"), tmp_path)
    assert {role: len(one) for role, one in dataset.sets().items()} == {"train": 20, "val": 4, "test": 16}
    number = int(dataset.test.ids[3].removeprefix("train/"))
    assert dataset.test.decode(3).getpixel((0, 0)) == (number,) * 3


def stand_in(monkeypatch, **attributes):
    """A torchvision dataset of 40 images of four classes that says what its classes are called by `attributes`."""

    class Dots(torchvision.datasets.VisionDataset):
        def __init__(self, root, transform=None):
            super().__init__(root)
            self.y = [i % 4 for i in range(40)]
            vars(self).update(attributes)

        def __getitem__(self, i):
            return Image.new("L", (5, 4), i), self.y[i]

    monkeypatch.setattr(torchvision.datasets, "Dots", Dots, raising=False)


@pytest.mark.parametrize(
    "attributes",
    [
        {
            "classes": [("tench", "Tinca tinca"), ("cock",), ("church",), ("gas pump", "petrol pump")]
        },  # Imagenette
        {"categories": ["tench", "cock", "church", "gas pump"]},  # Caltech101
        {"class_to_idx": {"gas pump": 3, "church": 2, "tench": 0, "cock": 1}},  # LFWPeople
    ],
)
def test_class_names_are_found_wherever_torchvision_keeps_them(config, tmp_path, monkeypatch, attributes):
    stand_in(monkeypatch, **attributes)
    cfg = config("torchvision", torchvision="Dots", templates=["a {}."])
    dataset = load_dataset(cfg, tmp_path)
    assert dataset.class_names == ["tench", "cock", "church", "gas pump"]
    further = (
        [["a tench.", "a Tinca tinca."], ["a cock."]]
        if "classes" in attributes
        else [["a tench."], ["a cock."]]
    )
    assert dataset.prompts[:2] == further
    cfg.class_names = ["w", "x", "y", "z"]
    assert load_dataset(cfg, tmp_path).prompts == [["a w."], ["a x."], ["a y."], ["a z."]]


@pytest.mark.parametrize("attributes", [{}, {"classes": ["too", "few"]}])  # GTSRB has none
def test_a_dataset_with_numbers_only_asks_for_class_names(config, tmp_path, monkeypatch, attributes):
    stand_in(monkeypatch, **attributes)
    said = r"torchvision's Dots: its 4 classes are called 0, 1, 2 and 1 more.*'dataset\.class_names=\["
    with pytest.raises(ConfigError, match=said):
        load_dataset(config("torchvision", torchvision="Dots"), tmp_path)
    named = config("torchvision", torchvision="Dots", class_names=["0", "1", "2", "3"])
    assert load_dataset(named, tmp_path).class_names == ["0", "1", "2", "3"], "whoever says so may"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "must be set to a class of torchvision.datasets"),
        ({"torchvision": "cifar-10"}, "did you mean 'CIFAR10'"),
        ({"torchvision": "EMNIST"}, "no split called train"),
        ({"torchvision": "CocoDetection"}, "cannot be opened by its folder alone"),
    ],
)
def test_names_that_are_no_such_dataset_are_refused(config, tmp_path, fields, said):
    with pytest.raises(ConfigError, match=said):
        load_dataset(config("torchvision", **fields), tmp_path)


def test_domains_are_refused(config, tmp_path):
    with pytest.raises(DataError, match="'sketch': CIFAR10 has no domains"):
        load_dataset(config("torchvision", torchvision="CIFAR10", ood=["sketch"]), tmp_path)
