"""What people give for images: paths, folders, patterns, PIL images, arrays, tensors, and what is none of these."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipkal.errors import DataError
from clipkal.inference.images import gather

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "deep/c.webp", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(path, "PNG")
    return tmp_path


def test_paths_folders_and_patterns_give_files_in_order(folder):
    names = lambda found: [name.removeprefix(f"{folder}/") for name in found.ids]
    assert names(gather(folder)) == ["a.jpg", "b.png", "deep/c.webp"]
    assert names(gather([folder / "b.png", str(folder / "notes.txt")])) == ["b.png", "notes.txt"]
    assert names(gather(f"{folder}/**/*.[pw]*")) == ["b.png", "deep/c.webp"]
    assert names(gather(f"{folder}/d*")) == ["deep/c.webp"]
    assert gather(folder / "notes.txt").decode(0).size == (7, 9)  # what a file is its content says


@pytest.mark.parametrize(
    "given",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS.astype(np.int64),
        PIXELS / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], 2), "RGBA"),
        np.concatenate([PIXELS, PIXELS[..., :1]], 2),
    ],
    ids=["PIL", "bytes", "int64", "floats", "tensor", "float tensor", "RGBA", "array with alpha"],
)
def test_one_image_in_any_form_is_the_same_image(given):
    found = gather(given)
    assert found.ids == ["image 0"]
    assert np.array_equal(np.asarray(found.decode(0)), PIXELS)


def test_many_at_once_and_mixed():
    assert len(gather(np.stack([PIXELS] * 4))) == 4
    assert len(gather(torch.zeros(5, 3, 8, 8))) == 5
    mixed = gather(iter([PIXELS, [Image.new("L", (3, 3)), torch.zeros(2, 1, 4, 4)]]))
    assert mixed.ids == ["image 0", "image 1", "image 2", "image 3"]
    assert all(mixed.decode(i).mode == "RGB" for i in range(4))
    assert gather(np.zeros((5, 6), bool)).decode(0).size == (6, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=0, max_size=5), st.booleans())
def test_an_array_is_taken_for_images_only_where_its_shape_says_so(shape, as_tensor):
    """Channels last for arrays and first for tensors; anything else is one line that says which shape it has."""
    array = np.zeros(shape, np.uint8)
    channels = shape[-3 if as_tensor else -1] if len(shape) in (3, 4) else None
    images = 0 not in shape and (len(shape) == 2 or channels in (1, 3, 4))
    if images:
        found = gather(torch.from_numpy(array) if as_tensor else array)
        assert len(found) == (shape[0] if len(shape) == 4 else 1)
        assert found.decode(0).mode == "RGB"
    else:
        with pytest.raises(DataError, match=r"of shape \[.*\] is no image"):
            gather(torch.from_numpy(array) if as_tensor else array)


def test_what_is_no_image_is_told(folder):
    for wrong, message in (
        ([], "no image was given"),
        (folder / "absent.png", "absent.png: no such file or folder"),
        (f"{folder}/*.tif", "no file is named like this pattern"),
        (3, "int is no image"),
        ({"a": 1}, "dict is no image"),
        (b"bytes", "bytes is no image"),
    ):
        with pytest.raises(DataError, match=message):
            gather(wrong)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        gather(folder / "empty")
    (folder / "broken.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"broken.png: cannot be read as an image \(cannot identify[^;]*$"):
        gather(folder / "broken.png").decode(0)
    for values in (PIXELS * 2.0, -(PIXELS / 255), np.full((2, 2, 3), np.nan), np.full((2, 2), 300)):
        with pytest.raises(DataError, match=r"image 0: its values go from .* before any normalisation"):
            gather(values).decode(0)
    for wrong in (PIXELS.astype(object), PIXELS.astype(complex)):
        with pytest.raises(DataError, match=r"image 0: its numbers are of type (object|complex128)"):
            gather(wrong).decode(0)


def test_half_precision_tensors_are_images_too():
    pixels = torch.from_numpy(PIXELS > 127).permute(2, 0, 1)
    for kind in (torch.float16, torch.bfloat16):
        found = np.asarray(gather(pixels.to(kind)).decode(0))
        assert np.array_equal(found, (PIXELS > 127) * np.uint8(255))


def test_what_a_folder_holds_beside_images_is_told_and_its_linked_folders_are_read(
    folder, tmp_path_factory, caplog
):
    """Telephones write .heic, which Pillow does not read: half of somebody's photographs must not vanish in silence."""
    (folder / "photo.HEIC").touch()
    (folder / "Thumbs.db").touch()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.fromarray(PIXELS).save(elsewhere / "far.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "deep" / "back").symlink_to(folder)
    names = [name.removeprefix(f"{folder}/") for name in gather(folder).ids]
    assert names == ["a.jpg", "b.png", "deep/c.webp", "linked/far.png"]
    assert ".heic (1), .txt (1)" in caplog.text and ".db" not in caplog.text
