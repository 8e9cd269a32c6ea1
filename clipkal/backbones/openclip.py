"""A frozen CLIP, built by open_clip and checked: the only place where a backbone is made."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipkal import files
from clipkal.backbones import fit as fitting
from clipkal.backbones import quickgelu
from clipkal.backbones.layouts import to_open_clip
from clipkal.backbones.release import three_numbers, three_positive_numbers
from clipkal.backbones.sources import Source, resolve
from clipkal.backbones.weights import (
    BIG_VISION,
    check_digest_form,
    check_sha256,
    one_line,
    read,
    state_digest,
)
from clipkal.errors import BackboneError, ConfigError

log = logging.getLogger(__name__)
PRECOMPUTED = "precomputed"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(eq=False)
class Backbone:
    """A CLIP in evaluation mode whose parameters are frozen.

    Attributes:
        name: the label used in results and run directories.
        pretrained: the tag or file the weights come from; None where `architecture` names them.
        model: open_clip's module, float32 whatever `precision` says.
        preprocess: PIL image -> float32 [3, H, W], the model's own evaluation transform.
        tokenizer: list of sentences -> int64 [n, context].
        digest: sha256 of the weights (`weights.state_digest`).
        precision: fp32, fp16 or bf16: what image features are extracted in.
        device: where the model is.
        architecture: open_clip's full model name, `clipkal-mini`, or a local-dir: or hf-hub: name.
        config: open_clip's `model_cfg` of it.
        batch_size: images or sentences per forward pass.
    """

    name: str
    pretrained: str | None
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    digest: str
    precision: str
    device: torch.device
    architecture: str
    config: dict[str, Any]
    batch_size: int = 128

    @property
    def logit_scale(self) -> float:
        """The factor exp(log_scale) on the cosine, about 100 for OpenAI's weights."""
        scale: Any = self.model.logit_scale
        return float(scale.detach().float().exp())

    @property
    def embed_dim(self) -> int:
        """Feature width d."""
        return int(self.config["embed_dim"])

    @property
    def identity(self) -> dict[str, str]:
        """What decides about features besides their input: weights and architecture, not their names."""
        return {"weights": self.digest, "config": files.digest(json.dumps(self.config, sort_keys=True))}

    @property
    def transform(self) -> str:
        """What `preprocess` does, in words that are the same in every process."""
        fills = [step.fill for step in getattr(self.preprocess, "transforms", ()) if getattr(step, "fill", 0)]
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(self.preprocess))
        return f"{text} fill={fills}" if fills else text  # which open_clip's own words leave out


def load_backbone(cfg: Any, device: str | torch.device = "cpu") -> Backbone | None:
    """Builds the backbone that a configuration names, or None for precomputed features.

    Args:
        cfg: anything with these attributes (an OmegaConf node, a dataclass); all but `model` are optional.
            model: open_clip architecture, `local-dir:/folder`, `hf-hub:org/name`, `mini` or `precomputed`.
            name: label in results (the model).
            pretrained: for an architecture its tag, a checkpoint file, or `random`; else null.
            precision: fp32, fp16 or bf16 for image features (fp32).
            batch_size: images or sentences per forward pass (128).
            image_mean, image_std: three numbers each (the model's own).
            weights_sha256: of the checkpoint file (not checked).
            quick_gelu: whether the weights were trained with QuickGELU (judged by tag, config and file name).
        device: a torch device, or "auto" for the first GPU where there is one.

    Raises:
        BackboneError: the model or its weights cannot be had or do not fit.
        ConfigError: a setting has no such value.
    """
    where = device_of(device)
    if cfg.model == PRECOMPUTED:
        return None
    precision = _setting(cfg, "precision", "fp32")
    if precision not in DTYPES:
        raise ConfigError(f"backbone.precision={precision}: choose one of {', '.join(DTYPES)}")
    batch_size = int(_setting(cfg, "batch_size", 128))
    if batch_size < 1:
        raise ConfigError(f"backbone.batch_size={batch_size}: must be at least 1")
    if precision == "fp16" and where.type == "cpu":
        log.warning("backbone.precision=fp16 is far slower than fp32 on a CPU; bf16 is not")
    pretrained = _setting(cfg, "pretrained", None)
    normalisation, expected = _normalisation(cfg), _setting(cfg, "weights_sha256", None)
    if expected is not None:
        check_digest_form(expected)
    quick_gelu = _setting(cfg, "quick_gelu", None)
    source = resolve(str(cfg.model), pretrained, quick_gelu)
    if expected is not None:
        _check_sha256(source, expected)
    model, preprocess, tokenizer = _create(source, normalisation, quick_gelu)
    return Backbone(
        name=str(_setting(cfg, "name", cfg.model)),
        pretrained=pretrained,
        model=model.to(where),
        preprocess=preprocess,
        tokenizer=tokenizer,
        digest=state_digest(model),
        precision=precision,
        device=where,
        architecture=source.model,
        config=source.config,
        batch_size=batch_size,
    )


def _create(source: Source, settings: dict[str, Any], quick_gelu: bool | None) -> tuple[nn.Module, Any, Any]:
    """Model (frozen, evaluating, on the CPU), transform and tokenizer; the caller's random stream stays as it was.

    settings: keyword arguments of open_clip's factory beside the source's own. quick_gelu: as the user states it.
    """
    import open_clip

    from clipkal.backbones.hub import hub

    weights = _weights(source, quick_gelu)
    text = source.config.get("text_cfg", {})
    needs_hub = source.model.startswith("hf-hub:") or "hf_tokenizer_name" in text or "hf_model_name" in text
    try:
        with quiet(), torch.random.fork_rng(devices=[]), hub() if needs_hub else nullcontext():
            torch.manual_seed(0)  # random weights are always the same ones
            model, _, preprocess = open_clip.create_model_and_transforms(
                source.model, load_weights=False, pretrained_text=False, **(source.preprocess | settings)
            )
            if _is_timm(source):
                fitting.set_image_size(model, source.model)
    except BackboneError:
        raise
    except Exception as error:
        raise BackboneError(f"cannot build {source.model}: {one_line(error)}") from error
    if source.checkpoint is not None:
        fitting.fit(model, weights, source.checkpoint, source.model)
    fitting.check_sound(model, str(source.checkpoint or source.model))
    try:
        with quiet(), hub() if needs_hub else nullcontext():
            tokenizer = open_clip.get_tokenizer(source.model, **source.tokenizer)
    except Exception as error:
        missing = f"; pip install {error.name}" if isinstance(error, ModuleNotFoundError) else ""
        message = f"cannot load the tokenizer of {source.model}: {one_line(error)}{missing}"
        raise BackboneError(message) from error
    _check_vocabulary(source, tokenizer)
    model = model.eval().requires_grad_(False)
    if _is_timm(source) or ":" in source.model:
        fitting.try_out(model, tokenizer(["a photo"]), source.config["embed_dim"], source.model)
    return model, preprocess, tokenizer


def _weights(source: Source, quick_gelu: bool | None) -> dict[str, Tensor]:
    """The checkpoint's tensors by open_clip's names; none for random weights and for what open_clip reads itself."""
    if source.checkpoint is None or source.checkpoint.suffix in BIG_VISION:
        return {}
    weights = to_open_clip(read(source.checkpoint), source.checkpoint)
    if weights.layout and quick_gelu is None:
        built = bool(source.config.get("quick_gelu", False))
        quickgelu.check_layout(source.model, built, weights.quick_gelu, source.checkpoint, weights.layout)
    return weights.tensors


def _is_timm(source: Source) -> bool:
    return "timm_model_name" in source.config.get("vision_cfg", {})


def _check_vocabulary(source: Source, tokenizer: Any) -> None:
    words, rows = getattr(tokenizer, "vocab_size", None), source.config.get("text_cfg", {}).get("vocab_size")
    if isinstance(words, int) and isinstance(rows, int) and words > rows:
        raise BackboneError(
            f"the tokenizer of {source.model} has {words} tokens but its text tower {rows}; a vocabulary "
            "of its own goes into model_cfg.text_cfg.tokenizer_kwargs.bpe_path of open_clip_config.json"
        )


def _check_sha256(source: Source, expected: str) -> None:
    if source.checkpoint is None:
        raise BackboneError("backbone.weights_sha256 is set, but backbone.pretrained=random has no file")
    check_sha256(source.checkpoint, expected)


def _normalisation(cfg: Any) -> dict[str, Any]:
    """The user's own image mean and standard deviation, three numbers each."""
    found = {}
    for key in ("image_mean", "image_std"):
        value = _setting(cfg, key, None)
        if value is not None:
            check = three_positive_numbers if key == "image_std" else three_numbers
            if not check(list(value)):
                raise ConfigError(f"backbone.{key}={json.dumps(list(value))}: needs {check.__doc__}")
            found[key] = tuple(float(v) for v in value)
    return found


def _setting(cfg: Any, key: str, default: Any) -> Any:
    value = getattr(cfg, key, None)
    return default if value is None else value


def device_of(device: str | torch.device) -> torch.device:
    """The device by its name, "auto" the first GPU where there is one; ConfigError for one that is not here."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device}: no such device; type auto, cpu, cuda or cuda:1") from error
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device={device}: clipkal computes on cpu and cuda (its filters solve in float64, which mps has not); "
            "type device=cpu"
        )
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch sees no GPU here; type device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: there are only cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines and no warnings: open_clip logs a page for every model and warns of what is checked here already."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
