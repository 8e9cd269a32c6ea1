"""A real-image encoder made of published pieces: MobileNetV2 (ImageNet), and a map of its output into CLIP's text space.

Not CLIP, but it behaves like one: an image and the name of a class have a cosine. It reads two files of one folder, which
the project does not ship:

* `mobilenetv2_imagenet_fp16.npz`: weights with BatchNorm folded into the convolutions, under torchvision's names;
* `text_space_map.npz`: what becomes of the pooled feature x and the logits z(x). With norm(v) = v / |v|,

      conse         = norm(softmax(z[imagenet_index] / temperature) @ (imagenet_text - vocabulary_mean))
      ridge         = norm((norm(x) - feature_mean) @ ridge)
      image feature = norm(conse + ridge)

conse is that of Norouzi et al. (2014, arXiv 1312.5650), over all names instead of the ten likeliest.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIDE = 160
BATCH = 4  # so that the widest layer stays in a processor's cache: half the time of 64 images
HALVING = {2, 4, 7, 14}  # the blocks of MobileNetV2 whose depthwise convolution has stride 2
WEIGHTS, MAP = "mobilenetv2_imagenet_fp16.npz", "text_space_map.npz"


class Encoder:
    """Images to unit features float32 [N, 512]."""

    def __init__(self, folder: Path):
        self.weights, self.map = _floats(folder / WEIGHTS), _floats(folder / MAP)
        self.names = self.map["imagenet_index"].long() + 1  # row 0 of the classifier is the background

    @torch.no_grad()
    def __call__(self, images: Iterable[Image.Image], batch: int = BATCH) -> Tensor:
        """images: RGB, of any size."""
        stream = (prepared(image) for image in images)
        rows = [self._mapped(self.pooled(torch.stack(chunk))) for chunk in _chunks(stream, batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.map["ridge"].shape[1])

    def pooled(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 to the 1,280 numbers before the classifier."""
        x = self._conv("features.0.0", x, stride=2).clamp_(0, 6)
        for block in range(1, 18):
            x = self._block(f"features.{block}.conv", x, 2 if block in HALVING else 1)
        return self._conv("features.18.0", x).clamp_(0, 6).mean(dim=(2, 3))

    def _block(self, name: str, x: Tensor, stride: int) -> Tensor:
        """Widen (the first block does not), filter each channel, narrow; plus x where the shape stays."""
        widened = x
        if f"{name}.2.weight" in self.weights:
            widened = self._conv(f"{name}.0.0", x).clamp_(0, 6)
            depthwise, last = f"{name}.1.0", f"{name}.2"
        else:
            depthwise, last = f"{name}.0.0", f"{name}.1"
        y = self._conv(last, self._conv(depthwise, widened, stride).clamp_(0, 6))
        return x + y if x.shape == y.shape else y

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """A convolution with TensorFlow's SAME padding: what is odd goes to the right and the bottom."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        size = weight.shape[-1]
        down, right = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[-2:])
        if down or right:
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, weight, bias, stride, groups=x.shape[1] // weight.shape[1])

    def _mapped(self, pooled: Tensor) -> Tensor:
        """[B, 1280] to unit features [B, 512]."""
        m = self.map
        logits = F.linear(pooled, self.weights["classifier.1.weight"], self.weights["classifier.1.bias"])
        likely = (logits[:, self.names] / m["temperature"]).softmax(dim=1)
        conse = F.normalize(likely @ (m["imagenet_text"] - m["vocabulary_mean"]), dim=1)
        ridge = F.normalize((F.normalize(pooled, dim=1) - m["feature_mean"]) @ m["ridge"], dim=1)
        return F.normalize(conse + ridge, dim=1)


def prepared(image: Image.Image, side: int = SIDE) -> Tensor:
    """The centre of the image at a short side of `side` pixels, float32 [3, side, side] in -1..1."""
    width, height = image.size
    scale = side / min(width, height)
    width, height = max(side, round(width * scale)), max(side, round(height * scale))
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = np.array(image.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def _chunks(stream: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while chunk := list(islice(stream, size)):
        yield chunk


def _floats(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files}
