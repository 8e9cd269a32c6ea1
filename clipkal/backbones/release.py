"""The open_clip_config.json beside a model's weights: read once, and every word that is used checked."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipkal.errors import BackboneError

CONFIG_FILE = "open_clip_config.json"
Check = Callable[[Any], bool]


def three_numbers(value: Any) -> bool:
    """three numbers"""
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


def three_positive_numbers(value: Any) -> bool:
    """three positive numbers"""
    return three_numbers(value) and min(value) > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def _count(value: Any) -> bool:
    """a positive whole number"""
    return type(value) is int and 0 < value < 1 << 31


def _size(value: Any) -> bool:
    """a number of pixels, or two"""
    return _count(value) or (isinstance(value, list) and len(value) == 2 and all(map(_count, value)))


def _object(value: Any) -> bool:
    """an object"""
    return isinstance(value, dict)


def _text(value: Any) -> bool:
    """a short text"""
    return isinstance(value, str) and value.isprintable() and len(value) < 256


def _true_or_false(value: Any) -> bool:
    """true or false"""
    return isinstance(value, bool)


def _interpolation(value: Any) -> bool:
    """bicubic or bilinear"""
    return value in ("bicubic", "bilinear", "random")  # open_clip takes any other word for bicubic


def _grey(value: Any) -> bool:
    """a whole number from 0 to 255"""
    return type(value) is int and 0 <= value <= 255


def _resize_mode(value: Any) -> bool:
    """shortest, longest or squash"""
    return value in ("shortest", "longest", "squash")


_REQUIRED: dict[str, Check] = {
    "model_cfg": _object,
    "model_cfg.embed_dim": _count,
    "model_cfg.vision_cfg": _object,
    "model_cfg.text_cfg": _object,
}
_OPTIONAL: dict[str, Check] = {
    "model_cfg.quick_gelu": _true_or_false,
    "model_cfg.vision_cfg.image_size": _size,
    "model_cfg.vision_cfg.timm_model_name": _text,
    "model_cfg.text_cfg.context_length": _count,
    "model_cfg.text_cfg.vocab_size": _count,
    "model_cfg.text_cfg.hf_tokenizer_name": _text,
    "model_cfg.text_cfg.tokenizer_kwargs": _object,
    "model_cfg.text_cfg.tokenizer_kwargs.bpe_path": _text,
    "preprocess_cfg": _object,
    "preprocess_cfg.mean": three_numbers,
    "preprocess_cfg.std": three_positive_numbers,
    "preprocess_cfg.interpolation": _interpolation,
    "preprocess_cfg.resize_mode": _resize_mode,
    "preprocess_cfg.fill_color": _grey,
}


def read_config(path: Path) -> dict[str, Any]:
    """The checked content of an open_clip_config.json: `model_cfg`, and `preprocess_cfg` where there is one.

    Raises:
        BackboneError: it cannot be read, or a value is missing or of another kind.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BackboneError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise BackboneError(f"{path} must hold a JSON object with model_cfg")
    for key, check in (_REQUIRED | _OPTIONAL).items():
        value = _at(config, key)
        if value is None and key in _REQUIRED:
            raise BackboneError(
                f"{path} needs model_cfg with embed_dim, vision_cfg and text_cfg; {key} is missing"
            )
        if value is not None and not check(value):
            found = json.dumps(value)
            found = found if len(found) < 60 else found[:59] + "…"
            raise BackboneError(f"{path}: {key} must be {check.__doc__}, not {found}")
    return config


def _at(config: Any, key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
