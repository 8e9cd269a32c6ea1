"""The folder that `clipkal-export` writes: a plain CLIP, its class head, and the proof that the logits are the run's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkal import files
from clipkal.backbones.openclip import PRECOMPUTED, Backbone, quiet
from clipkal.backbones.release import CONFIG_FILE
from clipkal.backbones.sources import MINI_FOLDER
from clipkal.errors import ClipkalError
from clipkal.inference.card import card
from clipkal.inference.images import Images
from clipkal.inference.record import ADAPTER
from clipkal.inference.run import Run
from clipkal.uncertainty.reader import evaluation_mode

TOLERANCE = 1e-5
"""Largest difference of a logit that counts as equal, as a cosine (a share of the logit scale)."""
CHECKED = 32  # images that the logits are compared on
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "bpe_*.txt.gz")


def write_export(run: Run, out: Path, onnx: bool, licence: str | None) -> list[str]:
    """Writes everything into the empty folder `out`; returns lines that say what was found.

    Where nothing can be merged, or the merged model does not give the run's logits, it is the adapter alone. Raises
    ClipkalError where ONNX is wanted and cannot be had.
    """
    head = run.adapter.head()
    if run.cfg.backbone.model == PRECOMPUTED:
        why = "the run learnt from features that were computed elsewhere, so there is no tower to export"
        return _write_alone(run, out, why, head, onnx, licence)
    if head is None:
        why = f"adapter={run.cfg.adapter.name} is no linear map on the image feature, so it cannot be merged"
        return _write_alone(run, out, why, None, onnx, licence)
    _write_classes(run, out, head)
    _write_clip(run, out)
    images = some_images(run)
    expected = logits_of(run, images)
    off = float((plain_logits(out, images) - expected).abs().max()) / run.logit_scale
    if not off <= TOLERANCE:
        for path in out.iterdir():
            path.unlink()
        why = f"merged, its cosines would differ by {off:.1e}, more than {TOLERANCE:g}"
        return _write_alone(run, out, why, None, onnx, licence)
    lines = [f"equal logits on {len(images)} images: the cosines differ by at most {off:.1e}"]
    if onnx:
        from clipkal.inference.onnx import write_onnx

        lines.append(write_onnx(out, _pixels(run.backbone, images), expected))
    files.write_text(out / "README.md", card(run, licence, lines, plain=True))
    return lines


def _write_alone(
    run: Run, out: Path, why: str, head: Tensor | None, onnx: bool, licence: str | None
) -> list[str]:
    """The adapter alone, where there is nothing that it could be merged into; with a class head where it is one."""
    if onnx:
        raise ClipkalError(f"{run.record.path}: {why}; leave --onnx out to have the adapter alone")
    if head is not None:
        _write_classes(run, out, head)
    shutil.copy2(run.record.whole(ADAPTER), out / ADAPTER)
    lines = [f"the adapter alone: {why}"]
    files.write_text(out / "README.md", card(run, licence, lines, plain=False))
    return lines


def _write_classes(run: Run, out: Path, head: Tensor) -> None:
    log_scale = torch.tensor(run.logit_scale, dtype=torch.float64).log().float()
    rows = {"weight": head.detach().cpu().float().contiguous(), "log_scale": log_scale}
    about = {"class_names": json.dumps(run.class_names), "predictive": "plugin", "run_id": run.record.run_id}
    _save(out / "class_head.safetensors", rows, about)
    files.write_json(out / "classes.json", {"class_names": run.class_names, "prompts": run.prompts})


def _write_clip(run: Run, out: Path) -> None:
    """Weights and configuration as open_clip reads them from a folder, with the tokenizer's files."""
    import open_clip

    backbone = run.backbone
    state = {**backbone.model.state_dict(), **run.adapter.merge()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    _save(out / "open_clip_model.safetensors", tensors, {"format": "pt"})
    config: dict[str, Any] = json.loads(json.dumps(backbone.config))
    _copy_tokenizer(backbone, config, out)
    preprocess = dict(open_clip.get_model_preprocess_cfg(backbone.model))
    files.write_json(out / CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": preprocess})


def _save(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    from safetensors.torch import save

    with files.atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=about))


def _copy_tokenizer(backbone: Backbone, config: dict[str, Any], out: Path) -> None:
    folder = Path(backbone.architecture.removeprefix("local-dir:"))
    folder = folder if backbone.architecture.startswith("local-dir:") else MINI_FOLDER
    bpe = (config.get("text_cfg", {}).get("tokenizer_kwargs") or {}).get("bpe_path")
    if bpe:
        name = Path(bpe).name
        shutil.copy2(folder / bpe, out / name)
        config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = name
    if "hf_tokenizer_name" in config.get("text_cfg", {}) and folder != MINI_FOLDER:
        for path in (path for pattern in TOKENIZER for path in folder.glob(pattern)):
            shutil.copy2(path, out / path.name)


def some_images(run: Run) -> Images:
    """The first of the run's own test images, or, where its data are not at hand, pictures of smooth noise."""
    from clipkal.data.drawing import draw
    from clipkal.data.sets import ImageSet

    try:
        test = draw(run.cfg).test
    except (ClipkalError, OSError):
        test = None
    if isinstance(test, ImageSet) and len(test):
        every = max(1, len(test) // CHECKED)
        chosen = range(0, len(test), every)[:CHECKED]
        return Images([(test.ids[i], test.decode(i)) for i in chosen])
    noise = np.random.default_rng(0).integers(0, 256, (CHECKED, 7, 7, 3), dtype=np.uint8)
    return Images([(f"noise {i}", Image.fromarray(one).resize((224, 224))) for i, one in enumerate(noise)])


@torch.no_grad()
def logits_of(run: Run, images: Images) -> Tensor:
    """The run's own logits [N, C], through its adapter as it was learnt."""
    pixels = _pixels(run.backbone, images)
    with evaluation_mode(run.adapter):
        return run.adapter(run.inputs(pixels)).cpu()


def _pixels(backbone: Backbone, images: Images) -> Tensor:
    return torch.stack([backbone.preprocess(images.decode(i)) for i in range(len(images))])


@torch.no_grad()
def plain_logits(folder: Path, images: Images) -> Tensor:
    """Logits [N, C] of the written folder, by open_clip and safetensors alone."""
    import open_clip
    from safetensors.torch import load_file

    with quiet():
        model, preprocess = open_clip.create_model_from_pretrained(
            f"local-dir:{folder}", return_transform=True
        )
    head = load_file(folder / "class_head.safetensors")
    pixels = torch.stack([preprocess(images.decode(i)) for i in range(len(images))])
    features = model.eval().encode_image(pixels, normalize=True)
    return head["log_scale"].exp() * features @ head["weight"].T
