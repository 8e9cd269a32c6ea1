"""What becomes of every kind of image file, and of what is none."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipkal.data.images import FileDecoder, open_image, to_rgb
from clipkal.errors import DataError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pixel(data, at=(0, 0)):
    image = open_image(data, "x")
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_greyscale_alpha_palette_and_cmyk_become_rgb():
    assert pixel(encoded(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (2, 2), (50, 0)))) == (50, 50, 50)
    # Alpha is dropped, not blended
    assert pixel(encoded(Image.new("RGBA", (2, 2), (1, 2, 3, 0)))) == (1, 2, 3)
    assert pixel(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)
    palette = Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(encoded(palette)) == (10, 200, 30)


def test_a_palette_with_transparency_gives_no_warning(recwarn):
    palette = Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert pixel(encoded(palette, transparency=b"\x80" * 4)) == (10, 200, 30)
    assert not recwarn.list


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    image = open_image(encoded(Image.fromarray(values)), "x")
    assert [image.getpixel((i, 0))[0] for i in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 300.0]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0.0, np.nan, -1.0]], dtype=np.float32), [0, 0, 0]),
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], dtype=np.int32), [0, 100, 255]),
    ],
)
def test_wide_pixels_are_scaled_by_what_they_hold(pixels, expected):
    assert [to_rgb(Image.fromarray(pixels)).getpixel((i, 0))[0] for i in range(3)] == expected


def test_exif_rotation_is_ignored_as_in_torchvision():
    image = Image.new("RGB", (6, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    assert open_image(encoded(image, "JPEG", exif=exif), "x").size == (6, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_animation_gives_its_first_frame(kind, mode):
    frames = [Image.new("RGB", (8, 8), colour).convert(mode) for colour in ((255, 0, 0), (0, 255, 0))]
    frames = [frame.convert("RGB") for frame in frames] if kind == "MPO" else frames
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as found:
        assert found.n_frames == 2
    image = open_image(data, "x")
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert np.abs(np.asarray(image.resize((4, 4)), dtype=int) - (255, 0, 0)).max() <= 2


def test_a_cmyk_jpeg_has_its_colours():
    """Adobe's convention, which Pillow and nearly every file follow: the four inks are stored inverted."""
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data[:200]
    assert np.abs(np.subtract(pixel(data), (255, 0, 0))).max() <= 3


def test_sixteen_bits_a_channel_keep_the_upper_eight():
    rows = b"\0" + struct.pack(">3H", 0xFFFF, 0x8123, 0x0100)
    assert pixel(png(1, 16, 2, rows)) == (255, 129, 1)
    assert pixel(png(1, 16, 4, b"\0" + struct.pack(">2H", 0x8123, 0))) == (129, 129, 129)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_pixels_are_those_of_torchvisions_loader(tmp_path, mode, kind):
    from torchvision.datasets.folder import pil_loader

    if (kind, mode) in {("JPEG", "P"), ("PNG", "CMYK"), ("BMP", "CMYK")}:
        pytest.skip(f"{kind} has no {mode}")
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(pixels).convert(mode), kind))
    ours = np.asarray(open_image(path, "x"))
    np.testing.assert_array_equal(ours, np.asarray(pil_loader(str(path))))
    path.unlink()
    np.testing.assert_array_equal(np.asarray(open_image(encoded(Image.fromarray(ours)), "x")), ours)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"not an image", "cannot identify image file"),
        (encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:700], "truncated"),
        (encoded(Image.effect_noise((64, 64), 90).convert("RGB"))[:900], ""),
    ],
    ids=["empty", "text", "cut jpeg", "cut png"],
)
def test_a_bad_file_is_named_together_with_the_way_out(tmp_path, content, said):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"bad\.jpg: cannot be read as an image \(.*{said}.*on_bad_image=skip"
    ) as caught:
        FileDecoder(tmp_path, ["bad.jpg"])(0)
    assert "\n" not in str(caught.value)


def test_a_file_that_vanished_and_a_folder_in_its_place_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: .*no such file"):
        open_image(tmp_path / "gone.png", "gone.png")
    with pytest.raises(DataError, match="cannot be read"):
        open_image(tmp_path, str(tmp_path))


def png(side, depth, colour, rows=b""):
    """A PNG that claims to be a square of `side` pixels, and holds `rows` of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 30_000])  # Pillow itself only warns of the first
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(DataError, match=r"bomb\.png: cannot be read as an image \(.*exceed"):
        open_image(png(side, 8, 2), "bomb.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00"]),
)
def test_arbitrary_bytes_are_an_image_or_a_data_error(tail, head):
    with contextlib.suppress(DataError):
        assert open_image(head + tail, "x").mode == "RGB"
