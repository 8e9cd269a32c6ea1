"""Precomputed features: what a file must hold, and the real ones where they are at hand."""

import numpy as np
import pytest
import torch

from clipkal.data import FeatureSet, load_dataset
from clipkal.errors import DataError


def arrays(**changes):
    """Two domains x three splits x two classes, one row each."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, 8))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    text = np.eye(2, 8, dtype=np.float32)
    columns = np.stack(np.meshgrid(range(2), range(3), range(2), indexing="ij")).reshape(3, -1)
    content = {
        "image_features": features,
        "text_features": text,
        "logit_scale": np.float32(13),
        "domain": columns[0].astype(np.int8),
        "split": columns[1].astype(np.int8),
        "label": columns[2].astype(np.int16),
        "classes": np.array(["cup", "pen"]),
        "domains": np.array(["photo", "sketch"]),
        "splits": np.array(["train", "val", "test"]),
    } | changes
    return {key: value for key, value in content.items() if value is not None}


@pytest.fixture
def load(config, tmp_path):
    def load(fields=None, **changes):
        np.savez(tmp_path / "f.npz", **arrays(**changes))
        return load_dataset(config("features", path="f.npz", **(fields or {})), tmp_path)

    return load


def test_rows_are_float32_of_length_one_although_the_file_has_half_precision(load):
    dataset = load()
    assert isinstance(dataset.train, FeatureSet)
    assert dataset.train.inputs.dtype == torch.float32
    for one in dataset.sets().values():
        assert (one.inputs.norm(dim=1) - 1).abs().max() < 1e-6
    assert (dataset.logit_scale, dataset.class_names, dataset.prompts[0]) == (
        13.0,
        ["cup", "pen"],
        ["a photo of a cup."],
    )


def test_the_first_domain_is_id_and_the_others_are_ood_unless_said(load):
    assert (load().train.ids[0], list(load().ood)) == ("photo/train/00000", ["sketch"])
    turned = load({"id_domain": "sketch", "ood": ["photo"]})
    assert (turned.train.ids[0], list(turned.ood)) == ("sketch/train/00006", ["photo"])
    assert load({"ood": []}).ood == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id_domain": "foto"}, "did you mean 'photo'"),
        ({"ood": ["sketches"]}, "did you mean 'sketch'"),
        ({"ood": ["photo"]}, "'photo' is unknown"),  # the ID domain is no shift
        ({"ood": ["jpeg@3"]}, "holds features, not images"),
    ],
)
def test_unknown_domains_name_the_nearest(load, fields, said):
    with pytest.raises(DataError, match=said):
        load(fields)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logit_scale": None}, "lacks the arrays logit_scale"),
        ({"domains": None}, "lacks the arrays domains"),
        ({"label": np.full(12, 2)}, "'label' has a value outside 0..1"),
        ({"split": np.zeros(3, int)}, r"'split' has shape \[3\], expected \[12\]"),
        ({"split": np.zeros(12, int)}, "'photo' has no test rows"),
        ({"split": np.full(12, 2)}, "'photo' has no train rows"),
        ({"image_features": np.zeros((12, 8), np.float16)}, "row 0 has length 0"),
        ({"image_features": np.full((12, 8), np.nan, np.float16)}, "row 0 has length nan"),
        ({"image_features": np.full((12, 8), 2.0, np.float32)}, "row 0 has length 5.657"),
        ({"image_features": np.ones((12, 8), np.int64)}, "expected floats"),
        ({"text_features": np.eye(2, 7, dtype=np.float32)}, r"text_features are \[2, 7\], expected \[2, 8\]"),
        ({"logit_scale": np.float32(-1)}, "logit_scale must be one positive number"),
        ({"classes": np.array([object()], dtype=object)}, "not a readable .npz"),
        ({"label": np.full(12, 0.7)}, "'label' is float64 .*, expected whole numbers"),
        (
            {"label": np.array([0, 1, -1] * 4)},
            "'label' has a value outside 0..1, .*: -1 in row 2 and in 4 of 12",
        ),
        ({"label": np.int64(3)}, r"'label' has shape \[\], expected \[12\]"),
        ({"classes": np.array(["cup", ""])}, "'classes' has '' at 1, which is no name"),
        ({"classes": np.array(["cup", "nan"])}, "'classes' has 'nan' at 1, which is no name"),
        ({"classes": np.array("cup")}, r"'classes' is <U3 \[\], expected texts"),
        ({"classes": np.array(["cup", "a\0b"])}, "which is no name"),
        ({"classes": np.array(["cup", "\ud800"])}, r"'classes' has '\\ud800' at 1"),
        ({"domains": np.array(["photo", "photo"])}, "'domains' has a name twice"),
        ({"splits": np.array(["train", "val", "query"])}, "not known: 'query' .*dataset.splits"),
        ({"splits": np.array(["train", "testing", "test"])}, "both 'testing' and 'test' are test"),
        ({"logit_scale": np.array(["13"])}, "logit_scale must be one positive number"),
        ({"id": np.arange(12.0)}, r"'id' is float64 \[12\], expected texts"),
    ],
)
def test_files_that_do_not_hold_what_they_must_are_refused(load, changes, said):
    with pytest.raises(DataError, match=said):
        load(**changes)


def test_missing_and_damaged_files_are_named(config, tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        load_dataset(config("features", path="absent.npz"), tmp_path)
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04" + bytes(40))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: is not a readable"):
            load_dataset(config("features", path=name), tmp_path)


@pytest.mark.parametrize(
    ("file", "id_domain", "sizes"),
    [
        (
            "officecaltech10",
            "amazon",
            {"train": 479, "val": 93, "test": 386, "caltech10": 448, "dslr": 63, "webcam": 118},
        ),
        ("caltech53", None, {"train": 2140, "val": 854, "test": 1282}),
        (
            "caltech8_cues",
            "caltech101",
            {"train": 873, "val": 349, "test": 522, "cue_conflict": 640, "silhouette": 80, "edges": 80},
        ),
    ],
)
def test_the_real_files_have_the_documented_sizes(shared_data, config, file, id_domain, sizes):
    dataset = load_dataset(
        config("features", path=f"{file}.npz", id_domain=id_domain), shared_data / "features"
    )
    assert {role: len(one) for role, one in dataset.sets().items()} == sizes


@pytest.mark.parametrize(("domain", "accuracy"), [("amazon", 80.5), ("dslr", 71.3), ("webcam", 74.2)])
def test_the_real_features_classify_as_documented(shared_data, config, domain, accuracy):
    fields = config("features", path="officecaltech10.npz", id_domain=domain, ood=[])
    dataset = load_dataset(fields, shared_data / "features")
    sets = list(dataset.sets().values())
    features, labels = torch.cat([s.inputs for s in sets]), torch.cat([s.labels for s in sets])
    right = (features @ dataset.text_features.T).argmax(dim=1) == labels
    assert abs(100 * right.double().mean().item() - accuracy) < 0.06


def test_a_real_file_without_train_rows_says_so(shared_data, config):
    with pytest.raises(DataError, match="'cue_conflict' has no train rows"):
        load_dataset(config("features", path="cueconflict16.npz"), shared_data / "features")


def test_the_words_of_the_splits_are_those_of_every_source(load):
    usual = load(splits=np.array([b"Training", b"dev", b"testing"]), classes=np.array([b"cup", b"pen"]))
    assert {role: len(one) for role, one in usual.sets().items()} == {
        "train": 2,
        "val": 2,
        "test": 2,
        "sketch": 2,
    }
    assert usual.class_names == ["cup", "pen"]
    words = np.array(["train", "query", "gallery"])
    said = load({"splits": {"train": "train", "test": ["query", "gallery"]}}, splits=words)
    assert {role: len(one) for role, one in said.sets().items()} == {"train": 2, "test": 4, "sketch": 4}
    assert load(splits=np.array(["train", "val", "test", "extra"])).val is not None, "a word without rows"
