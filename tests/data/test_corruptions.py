"""Corruptions: deterministic per image, stronger with severity, sensible at any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipkal.data import ImageSet
from clipkal.data.corruptions import KINDS, STRENGTHS, corrupt, corrupted, parse
from clipkal.errors import DataError


def scene(width: int, height: int) -> Image.Image:
    """A coloured disc on a gradient, the same picture at every size."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = (y + 0.5) / height, (x + 0.5) / width
    inside = ((y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.09)[..., None]
    ground = np.stack([0.3 + 0.4 * x, 0.6 - 0.3 * y, 0.4 + 0 * x], axis=-1)
    return Image.fromarray((255 * np.where(inside, [0.8, 0.3, 0.2], ground)).astype(np.uint8))


def change(kind: str, severity: int, image: Image.Image) -> float:
    """Root mean square change, of a full range of 1."""
    after = np.asarray(corrupt(image, kind, severity, "x"), dtype=float)
    return float(np.sqrt(((after - np.asarray(image, dtype=float)) ** 2).mean()) / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_image_is_always_corrupted_in_the_same_way(kind):
    image = scene(40, 32)
    before = torch.get_rng_state()
    first = corrupt(image, kind, 3, "a")
    torch.rand(3)
    assert first.tobytes() == corrupt(image, kind, 3, "a").tobytes()
    assert (first.mode, first.size) == ("RGB", (40, 32))
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    "kind", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "elastic", "fog"]
)
def test_random_corruptions_differ_between_images_and_severities(kind):
    image = scene(40, 32)
    results = {corrupt(image, kind, s, i).tobytes() for s in (2, 3) for i in "ab"}
    assert len(results) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [64, 224])
def test_severity_five_changes_more_than_severity_one(kind, side):
    image = scene(side, side)
    mild, strong = change(kind, 1, image), change(kind, 5, image)
    assert 0 < mild < strong < 0.6


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"gaussian_noise", "shot_noise", "impulse_noise", "jpeg", "pixelate"})
)
def test_a_small_image_changes_about_as_much_as_a_large_one(kind):
    small, large = change(kind, 3, scene(64, 64)), change(kind, 3, scene(224, 224))
    assert 0.4 < small / large < 2.5


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 3)])
def test_tiny_images_survive_every_corruption(size):
    for kind in KINDS:
        assert corrupt(Image.new("RGB", size, (90, 120, 30)), kind, 5, "x").size == size


def test_a_corrupted_set_does_not_depend_on_order_and_has_its_own_digest():
    image = scene(16, 16)
    clean = ImageSet("toy", ["a", "b", "c"], torch.tensor([0, 1, 0]), lambda i: image, "0")
    noisy = corrupted(clean, "gaussian_noise", 2)
    assert (noisy.name, noisy.ids, noisy.labels.tolist()) == ("gaussian_noise@2", clean.ids, [0, 1, 0])
    turned = corrupted(clean.subset([2, 0]), "gaussian_noise", 2)
    assert turned.decode(0).tobytes() == noisy.decode(2).tobytes() != noisy.decode(0).tobytes()
    assert len({clean.digest, noisy.digest, corrupted(clean, "gaussian_noise", 3).digest}) == 3


def test_names_are_kind_at_severity():
    assert parse("motion_blur@5") == ("motion_blur", 5)
    assert all(len(strengths) == 5 for strengths in STRENGTHS.values())
    for bad, said in (
        ("motion_blurr@5", "did you mean 'motion_blur'"),
        ("jpeg@0", "must be 1"),
        ("jpeg", "must be 1"),
    ):
        with pytest.raises(DataError, match=said):
            parse(bad)


def test_corrupting_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    corrupt(scene(8, 8), "fog", 1, "x")
    assert torch.get_num_threads() == before
