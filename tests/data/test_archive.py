"""Packed archives: round trip, damaged files, and the real ones where they are at hand."""

import io

import numpy as np
import pytest
from PIL import Image

from clipkal.data import load_dataset
from clipkal.errors import DataError


def pack(path, **changes):
    """Twelve images, two domains x three splits x two classes; the red value of image i is 20 i."""
    blobs = []
    for i in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(buffer, format="PNG")
        blobs.append(buffer.getvalue())
    columns = np.stack(np.meshgrid(range(2), range(3), range(2), indexing="ij")).reshape(3, -1)
    content = {
        "blob": np.frombuffer(b"".join(blobs), np.uint8),
        "offset": np.cumsum([0, *map(len, blobs)]),
        "domain": columns[0],
        "split": columns[1],
        "label": columns[2],
        "source": np.frombuffer("\n".join(f"ä/{i}.png" for i in range(12)).encode(), np.uint8),
        "classes": np.array(["cup", "pen"]),
        "domains": np.array(["photo", "sketch"]),
        "splits": np.array(["train", "val", "test"]),
    } | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


@pytest.fixture
def load(config, tmp_path):
    def load(fields=None, **changes):
        pack(tmp_path / "a.npz", **changes)
        return load_dataset(config("archive", path="a.npz", **(fields or {})), tmp_path)

    return load


def test_images_come_back_under_their_original_names(load):
    dataset = load()
    assert (dataset.train.ids, dataset.ood["sketch"].ids) == (
        ["ä/0.png", "ä/1.png"],
        ["ä/10.png", "ä/11.png"],
    )
    assert dataset.ood["sketch"].decode(1).getpixel((0, 0)) == (220, 0, 0)
    assert dataset.ood["sketch"].labels.tolist() == [0, 1]


def test_archives_without_sources_number_their_images(load):
    assert load(source=None).val.ids == ["photo/val/00002", "photo/val/00003"]


def test_a_source_without_val_rows_has_no_val_set(load):
    assert load(split=np.repeat([0, 0, 2], 4)[[0, 1, 2, 3, 8, 9] * 2]).val is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blob": None}, "lacks the arrays blob"),
        ({"offset": np.arange(13)[::-1]}, "offset must rise"),
        ({"offset": np.arange(13) * 10**6}, "offset must rise"),
        ({"blob": np.zeros(9, np.float32)}, "expected uint8"),
        ({"source": np.frombuffer(b"one", np.uint8)}, "names 1 files but there are 12"),
        ({"source": np.frombuffer(b"\xff\n" * 11, np.uint8)}, "source, .*, cannot be read"),
        ({"source": np.arange(12)}, r"source, .* \(is int64, expected uint8"),
        ({"offset": np.arange(13.0)}, "'offset' is float64"),
        ({"splits": np.array(["train", "val", "eval"])}, "not known: 'eval'"),
        ({"label": np.full(12, -1)}, "'label' has a value outside"),
    ],
)
def test_archives_that_do_not_hold_what_they_must_are_refused(load, changes, said):
    with pytest.raises(DataError, match=said):
        load(**changes)


def test_a_broken_image_inside_is_named_when_it_is_decoded(load):
    dataset = load(blob=np.zeros(10**5, np.uint8))
    with pytest.raises(DataError, match=r"a\.npz: ä/0\.png: cannot be read as an image"):
        dataset.train.decode(0)


@pytest.mark.parametrize(
    ("file", "id_domain", "sizes"),
    [
        (
            "officecaltech10_96",
            "webcam",
            {"train": 149, "val": 28, "test": 118, "amazon": 386, "caltech10": 448, "dslr": 63},
        ),
        ("caltech101_96", None, {"train": 4128, "val": 1649, "test": 2465}),
    ],
)
def test_the_real_archives_have_the_documented_sizes(shared_data, config, file, id_domain, sizes):
    dataset = load_dataset(config("archive", path=f"{file}.npz", id_domain=id_domain), shared_data)
    assert {role: len(one) for role, one in dataset.sets().items()} == sizes
    image = dataset.test.decode(len(dataset.test) - 1)
    assert (image.mode, min(image.size)) == ("RGB", 96)
