"""Hugging Face datasets: with a stand-in for the library everywhere, and with the library itself where it is installed."""

import importlib.util
import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipkal.data import draw_task, load_dataset
from clipkal.errors import ConfigError, DataError

NAMES = ["crane", "dog", "crane"]  # two classes may share a name, as in ImageNet-1k there


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class FakeSplit:
    """The few methods of datasets.Dataset that are used, over a list of rows."""

    def __init__(self, rows, features):
        self.rows, self.features = rows, features
        self._fingerprint = f"{len(rows)}-{rows[0]['image']['bytes']!r}"

    @property
    def column_names(self):
        return list(self.features)

    def select_columns(self, names):
        return FakeSplit([{**row} for row in self.rows], {name: self.features[name] for name in names})

    def to_pandas(self):
        return pd.DataFrame(self.rows)[list(self.features)]

    def cast_column(self, name, feature):
        assert feature.decode is False
        if not isinstance(self.rows[0][name], dict):
            raise TypeError("Couldn't cast")
        return self

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def split(labels, start=0, names=NAMES, **columns):
    rows = [
        {"image": {"bytes": png(start + i), "path": None}, "label": label}
        | {k: v[i] for k, v in columns.items()}
        for i, label in enumerate(labels)
    ]
    features = {"image": None, "label": SimpleNamespace(names=names)} | dict.fromkeys(columns)
    return FakeSplit(rows, features)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library: hub[name, config] is what load_dataset gives; hub.asked what it was asked."""

    class Hub(dict):
        asked = ()

    found = Hub()
    library = ModuleType("datasets")

    def load_dataset(name, config=None, download_config=None):
        found.asked = (*found.asked, (name, config, download_config and download_config.local_files_only))
        if (name, config) not in found:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nwith more lines")
        return found[name, config]

    library.load_dataset = load_dataset
    library.load_from_disk = lambda path: found[path, None]
    library.Image = lambda decode: SimpleNamespace(decode=decode)
    library.DownloadConfig = lambda local_files_only: SimpleNamespace(local_files_only=local_files_only)
    monkeypatch.setitem(sys.modules, "datasets", library)
    return found


def sizes(dataset):
    return {role: len(one) for role, one in dataset.sets().items()}


def test_splits_class_names_and_images_come_from_the_hub(hub, config, tmp_path):
    hub["org/birds", None] = {
        "train": split([2, 0, 1, 2, 0, 1]),
        "validation": split([0], 50),
        "test": split([1, 2], 90),
    }
    cfg = config("huggingface", repository="org/birds")
    dataset = load_dataset(cfg, tmp_path)
    assert (dataset.class_names, sizes(dataset)) == (NAMES, {"train": 6, "val": 1, "test": 2})
    assert dataset.train.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert (dataset.test.ids, dataset.test.decode(1).getpixel((0, 0))[0]) == (
        ["test/00000", "test/00001"],
        91,
    )
    assert dataset.val.decode(0).getpixel((0, 0))[0] == 50
    assert len(draw_task(dataset, 2, 1).shots) == 6
    assert hub.asked == (("org/birds", None, True),), "nothing is fetched without dataset.download"
    load_dataset(config("huggingface", repository="org/birds", download=True), tmp_path)
    assert hub.asked[-1] == ("org/birds", None, False)


def test_other_splits_and_columns_are_named_in_the_config(hub, config, tmp_path):
    whole = split([0, 1, 2, 0, 1, 2, 0, 1], style=list("ppppdddd"))
    hub["org/pacs", None] = {"train": whole}
    splits = {"train": {"split": "train", "style": "p"}, "drawn": {"style": "d"}}
    fields = {"repository": "org/pacs", "val_fraction": 0.0}
    dataset = load_dataset(config("huggingface", splits=splits, **fields), tmp_path)
    assert (sizes(dataset)["drawn"], dataset.ood["drawn"].labels.tolist()) == (4, [1, 2, 0, 1])
    by_domain = load_dataset(
        config("huggingface", columns={"domain": "style"}, id_domain="d", **fields), tmp_path
    )
    assert (list(by_domain.ood), len(by_domain.ood["p"])) == (["p"], 4)
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        load_dataset(config("huggingface", columns={"domain": "styles"}, **fields), tmp_path)


def test_configurations_can_be_domains(hub, config, tmp_path):
    hub["org/digits", "plain"] = {"train": split([0, 1, 2, 0, 1, 2]), "test": split([0, 1, 2], 20)}
    hub["org/digits", "noisy"] = {"train": split([0]), "test": split([2, 1], 40)}
    fields = {"repository": "org/digits", "configs": ["plain", "noisy"], "columns": {"domain": "config"}}
    dataset = load_dataset(config("huggingface", val_fraction=0.0, **fields), tmp_path)
    assert sizes(dataset) == {"train": 6, "test": 3, "noisy": 2}
    noisy = dataset.ood["noisy"]
    assert (noisy.ids[0], noisy.decode(1).getpixel((0, 0))[0]) == ("noisy/test/00000", 41)


def test_what_is_not_there_is_one_line(hub, config, tmp_path):
    with pytest.raises(
        DataError,
        match=r"org/no: cannot be loaded \(Couldn't reach 'org/no' on the Hub\); set dataset\.download",
    ):
        load_dataset(config("huggingface", repository="org/no"), tmp_path)
    with pytest.raises(DataError, match="check the name and the network, or fetch it elsewhere"):
        load_dataset(config("huggingface", repository="org/no", download=True), tmp_path)
    with pytest.raises(DataError, match=r"toy: no such folder; set dataset\.repository"):
        load_dataset(config("huggingface"), tmp_path)
    hub["org/x", None] = {"train": split([0, 1]), "test": split([0, 1])}
    with pytest.raises(DataError, match=r"org/x: has no column 'image' .*set dataset\.columns\.image"):
        hub["org/x", None]["train"].features.pop("image")
        load_dataset(config("huggingface", repository="org/x"), tmp_path)


@pytest.mark.parametrize("missing", [-1, None, float("nan"), np.float64("nan")])
@pytest.mark.parametrize("names", [NAMES, None])
def test_a_missing_label_is_one_line_and_no_class(hub, config, tmp_path, missing, names):
    hub["org/x", None] = {"train": split([0, 1, 2, 0], names=names), "test": split([0, missing], names=names)}
    said = r"org/x: 1 of the 2 images of 'test' have no label \(null, empty or -1\); .*dataset\.splits="
    with pytest.raises(DataError, match=said):
        load_dataset(config("huggingface", repository="org/x"), tmp_path)
    fields = {"repository": "org/x", "splits": {"train": "train"}, "class_names": ["a", "b", "c"]}
    dataset = load_dataset(config("huggingface", **fields), tmp_path)
    assert sorted({*dataset.train.labels.tolist(), *dataset.test.labels.tolist()}) == [0, 1, 2]


def test_labels_that_are_text_are_the_names_and_blank_ones_are_missing(hub, config, tmp_path):
    words = ["crow", "duck", "crow ", "duck"]
    hub["org/x", None] = {"train": split(words, names=None), "test": split(["duck"], names=None)}
    assert load_dataset(config("huggingface", repository="org/x"), tmp_path).class_names == ["crow", "duck"]
    hub["org/x", None]["test"] = split(["duck", " "], names=None)
    with pytest.raises(DataError, match="1 of the 2 images of 'test' have no label"):
        load_dataset(config("huggingface", repository="org/x"), tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 1, [2, 0]], [0], r"the label column 'label' holds \[2, 0\]; one whole number or text"),
        ([0, 1, 0.5], [0], r"holds \[0\.5\]"),
        ([0, 1, 7], [0], "'train' has the label 7 but there are 3 classes"),
    ],
)
def test_labels_of_another_kind_are_refused(hub, config, tmp_path, train, test, said):
    hub["org/x", None] = {"train": split(train), "test": split(test)}
    with pytest.raises(DataError, match=said):
        load_dataset(config("huggingface", repository="org/x"), tmp_path)


def test_numbers_without_names_ask_for_class_names(hub, config, tmp_path):
    hub["org/x", None] = {"train": split([0, 1, 2] * 3, names=None), "test": split([0, 1], names=None)}
    with pytest.raises(
        ConfigError, match=r"org/x: its 3 classes are called 0, 1, 2, .*dataset\.class_names="
    ):
        load_dataset(config("huggingface", repository="org/x"), tmp_path)


def test_splits_whose_use_is_not_plain_are_listed(hub, config, tmp_path):
    pytest.importorskip("clipkal.data.splits", reason="the vocabulary of splits comes with the tables")
    hub["org/x", None] = {"train": split([0, 1, 2] * 3), "Test": split([0, 1]), "gallery": split([2])}
    with pytest.raises((ConfigError, DataError), match=r"org/x: .*'gallery'.*dataset\.splits="):
        load_dataset(config("huggingface", repository="org/x"), tmp_path)
    splits = {"train": "train", "test": "gallery"}
    assert (
        sizes(load_dataset(config("huggingface", repository="org/x", splits=splits), tmp_path))["test"] == 1
    )


def test_configurations_with_other_class_names_cannot_be_joined(hub, config, tmp_path):
    hub["org/x", "a"], hub["org/x", "b"] = (
        {"train": split([0])},
        {"train": split([0], names=[*NAMES[::-1], "x"])},
    )
    with pytest.raises(
        DataError, match="'b/train' has other class names, or in another order, than 'a/train'"
    ):
        load_dataset(config("huggingface", repository="org/x", configs=["a", "b"]), tmp_path)


def test_a_column_that_holds_no_images_is_refused(hub, config, tmp_path):
    hub["org/x", None] = {"train": split([0, 1], text=["a", "b"]), "test": split([0], text=["c"])}
    with pytest.raises(ConfigError, match=r"columns\.image=text: is no column of images"):
        load_dataset(config("huggingface", repository="org/x", columns={"image": "text"}), tmp_path)


def test_without_the_library_the_extra_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipkal\[huggingface\]'"):
        load_dataset(config("huggingface", repository="org/x"), tmp_path)


@pytest.fixture
def library():
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the library datasets is not installed")
    return pytest.importorskip("datasets")


def real_split(library, labels, start=0):
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": png(start + i), "path": None} for i in range(len(labels))]
    return library.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_a_folder_of_save_to_disk_is_read_by_the_real_library(library, config, tmp_path):
    content = {"train": real_split(library, [1, 0] * 5), "test": real_split(library, [1, 0, 1], 100)}
    library.DatasetDict(content).save_to_disk(tmp_path / "toy")
    dataset = load_dataset(config("huggingface", val_fraction=0.0), tmp_path)
    assert (dataset.class_names, sizes(dataset)) == (["cat", "dog"], {"train": 10, "test": 3})
    assert dataset.test.labels.tolist() == [1, 0, 1]
    assert [dataset.test.decode(i).getpixel((0, 0))[0] for i in range(3)] == [100, 101, 102]
    again = load_dataset(config("huggingface", val_fraction=0.0), tmp_path)
    assert again.test.digest == dataset.test.digest
    real_split(library, [1, 0] * 10).save_to_disk(tmp_path / "one")
    alone = load_dataset(config("huggingface", path="one"), tmp_path)
    assert sizes(alone) == {"train": 10, "val": 2, "test": 8}


def test_a_folder_of_images_is_read_by_the_real_library(library, config, tmp_path, make_tree, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_tree(tmp_path / "toy", {"train/cat": 6, "train/dog": 6, "test/cat": 2, "test/dog": 1})
    dataset = load_dataset(config("huggingface"), tmp_path)
    assert (dataset.class_names, sizes(dataset)) == (["cat", "dog"], {"train": 10, "val": 2, "test": 3})
    with Image.open(tmp_path / "toy/test/dog/000.png") as image:
        assert (np.asarray(dataset.test.decode(2)) == np.asarray(image)).all()


def test_a_repository_that_was_never_fetched_is_one_line(library, config, tmp_path):
    with pytest.raises(
        DataError, match=r"repository=nobody/nothing: cannot be loaded .*set dataset\.download=true"
    ):
        load_dataset(config("huggingface", repository="nobody/nothing"), tmp_path)
