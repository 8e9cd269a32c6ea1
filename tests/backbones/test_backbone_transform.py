"""The transform with its last steps in place gives the bits of the model's own."""

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from clipkal.backbones.transform import InPlace, in_place


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (31, 333)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
def test_the_same_bits_as_open_clips_transform(size, resize):
    whole = image_transform(64, is_train=False, resize_mode=resize)
    quick = in_place(whole)
    assert isinstance(quick, InPlace)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = quick(image)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(found, whole(image))
    assert np.array_equal(np.asarray(image), pixels)  # the image itself is left alone


def test_another_transform_is_left_as_it_is():
    def own(image):
        return torch.zeros(3, 2, 2)

    assert in_place(own) is own
