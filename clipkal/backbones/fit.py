"""Weights into a built model: all of them, each of its shape and kind, or one clear line."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkal.backbones.layouts import State, describe
from clipkal.backbones.weights import BIG_VISION, one_line
from clipkal.errors import BackboneError

log = logging.getLogger(__name__)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_LOG_SCALE = math.log(1000.0)
"""Largest |log| of a logit scale that is believed. CLIP clamps its factor at 100, SigLIP ends at about 117."""


def fit(model: nn.Module, state: State, path: Path, name: str) -> None:
    """Copies the tensors into the model, by open_clip's own rules for older names.

    A stray `logit_bias` is left out: the same number on all classes, it does not move their probabilities.

    Raises:
        BackboneError: tensors are missing, too many, of another shape, or quantised.
    """
    misfit = f"the weights in {path} do not fit {name}: "
    try:
        if path.suffix in BIG_VISION:
            from open_clip.convert import load_big_vision_weights

            load_big_vision_weights(model, str(path))
            return
        state = _as_named(model, state)
        _check_kinds(model, state, path)
        _resize(model, state, path, misfit)
        model.load_state_dict(state)
    except BackboneError:
        raise
    except Exception as error:
        known = describe(state)
        raise BackboneError(misfit + known + one_line(error, 100 if known else 300)) from error


def _as_named(model: Any, state: State) -> State:
    """What `open_clip.load_checkpoint` does to names and to the shape of the two scalars."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and scalar in own and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(own[scalar].shape)
    if "logit_bias" not in own:
        state.pop("logit_bias", None)
    else:
        state.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
    if "text.transformer.embeddings.position_ids" not in own:
        state.pop("text.transformer.embeddings.position_ids", None)
    return state


def _check_kinds(model: nn.Module, state: State, path: Path) -> None:
    for key, own in model.state_dict().items():
        if key in state and own.is_floating_point() and state[key].dtype not in FLOATS:
            kind = str(state[key].dtype).removeprefix("torch.")
            raise BackboneError(
                f"{path} holds {key} in {kind}; quantised weights cannot be used, take the original"
            )


def _resize(model: Any, state: State, path: Path, misfit: str) -> None:
    """Image positions of another image size are interpolated, with a warning; those of text are another model."""
    from open_clip.model import resize_pos_embed

    text = next((key for key in ("positional_embedding", "text.positional_embedding") if key in state), None)
    own = model.state_dict().get(text)
    if text and own is not None and own.shape[0] != state[text].shape[0]:
        theirs = state[text].shape[0]
        raise BackboneError(
            f"{misfit}they were trained with a text context of {theirs} tokens, and it has {own.shape[0]}; give a "
            f"model with context_length {theirs}"
        )
    before = state.get("visual.positional_embedding")
    resize_pos_embed(state, model)
    after = state.get("visual.positional_embedding")
    if before is not None and after is not None and before.shape != after.shape:
        log.warning(
            "%s was trained at another image size: its %d image positions are interpolated to %d",
            path,
            len(before),
            len(after),
        )


def set_image_size(model: Any, name: str) -> None:
    """A timm tower is built for the image size of its own name; this makes it the one of the configuration."""
    wanted = tuple(model.visual.image_size)
    built = getattr(getattr(model.visual.trunk, "patch_embed", None), "img_size", None)
    if built is None or tuple(built) == wanted:
        return
    if not hasattr(model.visual.trunk, "set_input_size"):
        raise BackboneError(f"the image tower of {name} is built for {built[0]} pixels, not for {wanted[0]}")
    model.visual.set_input_size(wanted)


def check_sound(model: Any, where: str) -> None:
    """Raises `BackboneError` for weights that are not finite, or a logit scale that is no logarithm.

    where: the file or name that the message blames.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BackboneError(f"{where}: {key} has values that are not finite; the weights are damaged")
    scale = float(model.logit_scale.detach().reshape(-1)[0])
    if abs(scale) > MOST_LOG_SCALE:
        raise BackboneError(
            f"{where}: logit_scale is {scale:g}, but should be the logarithm of the factor on the cosine (4.6 for "
            "100); if it is the factor itself, store its logarithm: state['logit_scale'].log_()"
        )


@torch.no_grad()
def try_out(model: Any, tokens: Tensor, width: int, name: str) -> None:
    """One image and one sentence through the towers; BackboneError where they fail or differ in width.

    tokens: int64 [1, context]. width: the feature width d that the configuration promises.
    """
    size = model.visual.image_size
    height, breadth = size if isinstance(size, tuple | list) else (size, size)
    try:
        widths = [
            model.encode_image(torch.zeros(1, 3, height, breadth)).shape[1],
            model.encode_text(tokens).shape[1],
        ]
    except Exception as error:
        raise BackboneError(
            f"{name} cannot encode an image of {height} × {breadth} pixels and a sentence of {tokens.shape[1]} tokens, "
            f"what its configuration promises: {one_line(error)}"
        ) from error
    if widths != [width, width]:
        raise BackboneError(
            f"{name}: its features have width {widths[0]} and {widths[1]}, its embed_dim is {width}"
        )
