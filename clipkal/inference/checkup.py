"""What `clipkal-doctor` looks at, one finding after the other."""

import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from PIL import Image
from torch.nn import functional as F

from clipkal.backbones import image_features, load_backbone, text_features
from clipkal.backbones.features import encode, reduced_precision
from clipkal.backbones.openclip import Backbone
from clipkal.data.loading import load_dataset
from clipkal.data.names import shortened
from clipkal.data.sets import Dataset, ImageSet
from clipkal.errors import ConfigError, DataError
from clipkal.tracking.identity import versions

KNOWN = {
    ("clipkal-mini", None, "rendered"): (64.5, "clipkal's README"),
    ("clipkal-mini", None, "digits"): (59.1, "clipkal's README"),
    ("ViT-B-16-quickgelu", "openai", "imagenet"): (66.7, "CoCoOp, arXiv 2203.05557"),
}
"""Zero-shot accuracies in % by (architecture, pretrained, dataset), each with one template, and where they stand."""
SLACK = 1.0
"""Points that a zero-shot accuracy may be off beyond three standard errors: prompts and decoders differ that much."""
NORMALISATIONS: dict[tuple[float, ...], str] = {
    (0.48145466, 0.4578275, 0.40821073): "CLIP's",
    (0.485, 0.456, 0.406): "ImageNet's",
    (0.5, 0.5, 0.5): "0.5",
}
LEAST_COSINE = {"bf16": 0.999, "fp16": 0.9999}
"""Smallest cosine of a feature with its float32 self that is no reason for a warning."""
SENTENCES = ["a photo of a cat.", "a photo of a dog.", "a drawing of a house."]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what, whether it is well, and what was found."""

    about: str
    state: Literal["ok", "note", "wrong"]
    text: str


def checkup(cfg: DictConfig, chosen: bool, most: int) -> Iterator[Finding]:
    """Every finding about the backbone of a configuration.

    Args:
        cfg: a checked configuration.
        chosen: whether the user named its dataset.
        most: images that the zero-shot accuracy is measured on at most; 0 leaves it out.

    Raises BackboneError where there is no backbone to look at.
    """
    found = versions()
    yield Finding("versions", "ok", f"Python {platform.python_version()}, torch {found['torch']}, open_clip "
                  f"{found['open_clip_torch']}, timm {found['timm']}, clipkal {found['clipkal']}")  # fmt: skip
    started = time.perf_counter()
    backbone = load_backbone(cfg.backbone, cfg.device)
    if backbone is None:
        raise ConfigError(
            "backbone=precomputed has no weights to look at; features are checked by clipkal-data check"
        )
    yield from _device(backbone)
    yield _weights(backbone, time.perf_counter() - started)
    yield _activation(backbone)
    yield from _transform(backbone, cfg)
    yield from _tokenizer(backbone)
    yield _logit_scale(backbone)
    yield from _features(backbone)
    if most:
        yield from _zero_shot(cfg, backbone, chosen, most)


def _device(backbone: Backbone) -> Iterator[Finding]:
    if backbone.device.type == "cuda":
        name = torch.cuda.get_device_name(backbone.device)
        free, total = torch.cuda.mem_get_info(backbone.device)
        yield Finding(
            "device", "ok", f"{backbone.device} ({name}), {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        )
        return
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    unused = " (a GPU is there: device=auto or device=cuda would use it)" if torch.cuda.is_available() else ""
    yield Finding("device", "note" if unused else "ok", f"cpu, {threads} of {cores} cores{unused}")


def _weights(backbone: Backbone, seconds: float) -> Finding:
    count = sum(p.numel() for p in backbone.model.parameters())
    origin = f"{backbone.architecture}{f', pretrained={backbone.pretrained}' if backbone.pretrained else ''}"
    text = f"{origin}: {count / 1e6:,.1f} million numbers, sha256 {backbone.digest[:16]}, loaded in {seconds:.1f} s"
    if backbone.pretrained == "random":
        return Finding("weights", "note", f"{text}; untrained: features mean nothing")
    return Finding("weights", "ok", text)


def _activation(backbone: Backbone) -> Finding:
    """What the towers really apply, beside what the configuration says."""
    from open_clip.transformer import QuickGELU

    stated = bool(backbone.config.get("quick_gelu", False))
    quick = sum(isinstance(module, QuickGELU) for module in backbone.model.modules())
    what = "QuickGELU" if quick else "GELU or that of the tower's own kind"
    if bool(quick) != stated and quick:
        return Finding(
            "activation", "wrong", f"{what} in {quick} places, but quick_gelu={stated} in its configuration"
        )
    if stated and not quick:
        return Finding("activation", "note", f"{what}, though its configuration says quick_gelu")
    why = "as its tag, file or folder says" if backbone.pretrained != "random" else "by the architecture"
    return Finding("activation", "ok", f"{what}, {why}")


def _transform(backbone: Backbone, cfg: DictConfig) -> Iterator[Finding]:
    import open_clip

    used = open_clip.get_model_preprocess_cfg(backbone.model)
    mean, std = (tuple(used.get(key) or ()) for key in ("mean", "std"))
    name = NORMALISATIONS.get(tuple(float(one) for one in mean))
    words = f"{used.get('size')} pixels, {used.get('interpolation')}, mean {_three(mean)}, std {_three(std)}"
    yield Finding("transform", "ok", words + (f" ({name})" if name else ""))
    tag = open_clip.get_pretrained_cfg(backbone.architecture, backbone.pretrained or "") or {}
    for key, value in (("mean", mean), ("std", std)):
        if key in tag and not torch.allclose(torch.tensor(tag[key]), torch.tensor(value), atol=1e-3):
            yield Finding("transform", "wrong", f"the weights were trained with {key} {_three(tag[key])}; leave "
                          f"backbone.image_{key} out")  # fmt: skip
    own = [f"backbone.{key}" for key in ("image_mean", "image_std") if cfg.backbone[key] is not None]
    if own:
        yield Finding(
            "transform",
            "note",
            f"{' and '.join(own)} replace the model's own, which its weights were trained with",
        )
    pixels = backbone.preprocess(Image.new("RGB", (37, 91), (200, 30, 90)))
    if pixels.ndim != 3 or not bool(pixels.isfinite().all()):
        yield Finding(
            "transform",
            "wrong",
            f"it makes {list(pixels.shape)} of an image, with values that are not finite",
        )


def _three(values: Any) -> str:
    return "/".join(f"{one:.3f}".rstrip("0") for one in values) or "none"


def _tokenizer(backbone: Backbone) -> Iterator[Finding]:
    tokens = backbone.tokenizer(SENTENCES)
    context, stated = tokens.shape[1], backbone.config.get("text_cfg", {}).get("context_length", 77)
    words = getattr(backbone.tokenizer, "vocab_size", None)
    size = f"{words:,} words" if isinstance(words, int) else "a vocabulary of its own"
    text = f"{type(backbone.tokenizer).__name__}, {size}, context of {context} tokens"
    distinct = len({row.numpy().tobytes() for row in tokens}) == len(SENTENCES)
    if not distinct:
        yield Finding(
            "tokenizer", "wrong", f"{text}; different sentences become the same tokens: {SENTENCES}"
        )
    elif context != stated:
        yield Finding("tokenizer", "wrong", f"{text}, but the text tower has {stated}")
    else:
        yield Finding("tokenizer", "ok", text)


def _logit_scale(backbone: Backbone) -> Finding:
    scale = backbone.logit_scale
    text = f"{scale:.2f} on the cosine"
    if backbone.pretrained == "random":
        return Finding("logit scale", "note", f"{text}, as it starts")
    if not 5 <= scale <= 200:
        return Finding(
            "logit scale",
            "note",
            f"{text}; trained CLIPs end between 20 and 117: are these the trained weights?",
        )
    return Finding("logit scale", "ok", text)


@torch.no_grad()
def _features(backbone: Backbone) -> Iterator[Finding]:
    """Images and sentences through the towers, in float32 and in the precision that is asked for."""
    size = backbone.model.visual.image_size  # type: ignore[union-attr]
    height, width = size if isinstance(size, tuple | list) else (size, size)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 6, 6, generator=generator)
    pixels = F.interpolate(coarse, (height, width), mode="bilinear").to(backbone.device)
    encode(backbone.model, pixels[:1])  # the first call sets things up
    started = time.perf_counter()
    exact = encode(backbone.model, pixels).cpu()
    rate = len(pixels) / (time.perf_counter() - started)
    spread = float((exact @ exact.T).fill_diagonal_(-1).max())
    if not bool(exact.isfinite().all()):
        yield Finding("features", "wrong", "they are not finite: the weights are damaged")
        return
    state: Literal["ok", "note"] = "ok" if spread < 0.99999 else "note"
    alike = "" if state == "ok" else ", and different images have the same feature: are the weights trained?"
    yield Finding(
        "features",
        state,
        f"width {backbone.embed_dim}, finite; about {rate:,.0f} images a second in fp32{alike}",
    )
    wanted = [backbone.precision] if backbone.precision != "fp32" else ["bf16"]
    for precision in wanted:
        yield _precision(backbone, pixels, exact, precision)


def _precision(backbone: Backbone, pixels: torch.Tensor, exact: torch.Tensor, precision: str) -> Finding:
    tower = reduced_precision(backbone.model, precision)
    encode(tower, pixels[:1])
    started = time.perf_counter()
    rough = encode(tower, pixels).cpu()
    rate = len(pixels) / (time.perf_counter() - started)
    cosine = float((rough * exact).sum(1).min())
    text = f"backbone.precision={precision}: cosine with fp32 {cosine:.5f} or more, about {rate:,.0f} images a second"
    if not math.isfinite(cosine):
        return Finding(
            "precision",
            "wrong",
            f"backbone.precision={precision} gives features that are not finite: keep to fp32",
        )
    return Finding("precision", "ok" if cosine >= LEAST_COSINE[precision] else "note", text)


def _zero_shot(cfg: DictConfig, backbone: Backbone, chosen: bool, most: int) -> Iterator[Finding]:
    """The accuracy without learning, on the dataset that was named, or the embedded one for the embedded backbone."""
    known = KNOWN.get((backbone.architecture, backbone.pretrained, cfg.dataset.name))
    if not chosen and known is None:
        yield Finding("zero-shot", "note", "not measured: name a dataset that you have, such as dataset=imagenet "
                      "data.root=/data, or dataset=folder dataset.path=/my/images")  # fmt: skip
        return
    try:
        dataset = load_dataset(cfg.dataset, cfg.data.root)
        yield _accuracy(cfg, backbone, dataset, most, known)
    except DataError as error:
        yield Finding("zero-shot", "wrong" if chosen else "note", str(error))


@torch.no_grad()
def _accuracy(
    cfg: DictConfig, backbone: Backbone, dataset: Dataset, most: int, known: tuple[float, str] | None
) -> Finding:
    test = dataset.test
    if not isinstance(test, ImageSet):
        raise DataError(f"dataset {dataset.name} holds features, which say nothing of these weights")
    every = -(-len(test) // most)
    chosen = test.subset(range(0, len(test), every))
    text = text_features(backbone, dataset.prompts, cfg.data.cache, cfg.data.progress)
    features, skipped = image_features(backbone, chosen, cfg.data.cache, on_bad_image="skip")
    right = (features.inputs @ text.T).argmax(1) == features.labels
    accuracy, count = 100 * float(right.double().mean()), len(right)
    error = 100 * math.sqrt(max(accuracy / 100 * (1 - accuracy / 100), 1e-4) / count)
    chance = 100 / len(dataset.class_names)
    words = f"{accuracy:.1f} % on {count:,} of {len(test):,} test images of {dataset.name}"
    words += f", {len(skipped)} could not be read" if skipped else ""
    if known is not None and abs(accuracy - known[0]) > 3 * error * (count < len(test)) + SLACK:
        return Finding("zero-shot", "wrong", f"{words}, but {known[0]:.1f} % is known ({known[1]}): is it the right transform, "
                       "activation and list of class names?")  # fmt: skip
    if known is not None:
        return Finding("zero-shot", "ok", f"{words}; known: {known[0]:.1f} % ({known[1]})")
    if accuracy < 2 * chance and backbone.pretrained != "random":
        names = shortened(dataset.class_names, 4)
        return Finding("zero-shot", "wrong", f"{words}, hardly more than chance ({chance:.1f} %): do the class names mean "
                       f"something ({names})? is the activation right?")  # fmt: skip
    return Finding("zero-shot", "ok", f"{words} (chance: {chance:.1f} %; no known figure to compare with)")
