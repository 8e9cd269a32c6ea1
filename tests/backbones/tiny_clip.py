"""Tiny random CLIPs as local-dir folders, and image sets in memory: nothing of the outside world."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from clipkal import files
from clipkal.backbones import Backbone, load_backbone
from clipkal.data.sets import ImageSet
from clipkal.errors import DataError

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}


def save_folder(folder: Path, vision: dict[str, Any], **more: Any) -> Path:
    """A local-dir with random weights; `more` goes into its model_cfg."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **more}
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = CLIP(**json.loads(json.dumps(config))).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors"
    )
    whole = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return folder


def settings(model: Path | str, **more: Any) -> SimpleNamespace:
    """A backbone configuration; a path stands for a local-dir."""
    name = f"local-dir:{model}" if isinstance(model, Path) else model
    return SimpleNamespace(**({"name": "tiny", "model": name, "batch_size": 4} | more))


def backbone_of(model: Path | str, **more: Any) -> Backbone:
    found = load_backbone(settings(model, **more))
    assert found is not None
    return found


@dataclass
class Painter:
    """Decoder of random images; `bad` ones raise as a broken file does. Marks its calls in `log`, a file."""

    seed: int = 0
    bad: set[int] = field(default_factory=set)
    log: Path | None = None

    def __call__(self, i: int) -> Image.Image:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{i}\n")
        if i in self.bad:
            raise DataError(f"image{i}.jpg is truncated")
        generator = torch.Generator().manual_seed(1000 * self.seed + i)
        pixels = torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())


def image_set(n: int = 10, name: str = "photo/test", **painter: Any) -> ImageSet:
    """`n` images of two classes; keyword arguments go to `Painter`."""
    decode = Painter(**painter)
    ids = [f"{name}/image{i}.jpg" for i in range(n)]
    return ImageSet(name, ids, torch.arange(n) % 2, decode, files.digest("painter", str(decode.seed), str(n)))


class Forwards:
    """Counts calls of a module."""

    def __init__(self, module: torch.nn.Module):
        self.count = 0
        module.register_forward_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.count += 1
