"""The layouts that CLIP weights come in, turned into open_clip's where that is exact.

The tensors may lie inside a training checkpoint (`{"state_dict": …, "optimizer": …}`), their names behind those of
the modules around the model (`module.`, `model.`, `_orig_mod.`), beside the constants of OpenAI's TorchScript
archives, or be named and cut as in Hugging Face's CLIPModel.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkal.errors import BackboneError

log = logging.getLogger(__name__)
State = dict[str, Tensor]
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
_OPENAI_CONSTANTS = {"input_resolution", "context_length", "vocab_size"}
_CLIP_MODEL = {"text_model.embeddings.token_embedding.weight", "visual_projection.weight"}
_FROM_CLIP_MODEL = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)


@dataclass(frozen=True)
class Weights:
    """A CLIP's tensors by open_clip's names.

    quick_gelu: whether the layout or what lies beside the file says that they were trained with QuickGELU; None
        where neither does. layout: what they were laid out as, where that is not open_clip's.
    """

    tensors: State
    quick_gelu: bool | None = None
    layout: str = ""


def to_open_clip(held: Any, path: Path) -> Weights:
    """What a checkpoint file holds (see `weights.read`) as open_clip names it; BackboneError without weights."""
    state = _bare(_unwrap(held, path), path)
    if set(state) >= _OPENAI_CONSTANTS:
        tensors = {name: tensor for name, tensor in state.items() if name not in _OPENAI_CONSTANTS}
        return Weights(tensors, True, "OpenAI's TorchScript archive")
    if set(state) >= _CLIP_MODEL:
        return Weights(_from_clip_model(state), _hidden_act(path), "Hugging Face's CLIPModel")
    return Weights(state)


def describe(state: State) -> str:
    """In words what the tensors are, where they are not a whole CLIP in a layout known here; else ""."""
    if any("lora" in name.lower() for name in state):
        return "they are low-rank changes (LoRA), to be merged into their model first; "
    if any(name.startswith(("text_model.", "vision_model.")) for name in state):
        return "they are laid out as in Hugging Face's transformers, of whose models only CLIPModel is converted; "
    if state and all(name.startswith("visual.") for name in state):
        return "they are an image tower alone, without the text tower; "
    if not any("token_embedding" in name or name.startswith("text") for name in state):
        return "they hold no text tower, so they are no CLIP; "
    return ""


def _unwrap(held: Any, path: Path) -> State:
    """The innermost state dict of a training checkpoint."""
    while isinstance(held, Mapping):
        inside = [key for key in WRAPPERS if _holds_tensors(held.get(key))]
        if not inside:
            break
        if len(inside) > 1:
            log.warning("%s holds weights as %s; taking %s", path, " and ".join(inside), inside[0])
        held = held[inside[0]]
    if not _holds_tensors(held):
        raise BackboneError(f"{path} holds no weights: expected tensors by name, as model.state_dict() gives")
    return {str(name): tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}


def _holds_tensors(held: Any) -> bool:
    return isinstance(held, Mapping) and (
        any(isinstance(value, Tensor) for value in held.values())
        or any(_holds_tensors(held.get(key)) for key in WRAPPERS)
    )


def _bare(state: State, path: Path) -> State:
    """The names as the model itself has them: every CLIP has one `logit_scale`, and what stands before it goes."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    prefixes = [name.removesuffix("logit_scale") for name in state if f".{name}".endswith(".logit_scale")]
    if "" in prefixes or not prefixes:
        return state
    if len(prefixes) > 1:
        raise BackboneError(
            f"{path} holds {len(prefixes)} models ({', '.join(prefixes)}); save the weights of one of them alone"
        )
    prefix = prefixes[0]
    left_out = [name for name in state if not name.startswith(prefix)]
    if left_out:
        log.warning(
            "%s: %d tensors outside %s are left out (%s, …)", path, len(left_out), prefix, left_out[0]
        )
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _from_clip_model(state: State) -> State:
    """Hugging Face's CLIPModel: other names, projections transposed, and q, k and v one below the other."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, own in _FROM_CLIP_MODEL:
            name = re.sub(pattern, own, name)
        renamed[name] = tensor
    for theirs, own in (("text_projection", "text_projection"), ("visual_projection", "visual.proj")):
        if f"{theirs}.weight" in renamed:
            renamed[own] = renamed.pop(f"{theirs}.weight").T
    for first in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [first.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(part in renamed for part in parts):
            fused = first.replace(".q_proj.", ".in_proj_")
            renamed[fused] = torch.cat([renamed.pop(part) for part in parts])
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("position_ids")}


def _hidden_act(path: Path) -> bool | None:
    """Whether transformers' config.json beside the file says QuickGELU, its default; None without one."""
    config = path.with_name("config.json")
    if not config.is_file():
        return None
    try:
        towers = [
            json.loads(config.read_text(encoding="utf-8"))[key] for key in ("vision_config", "text_config")
        ]
        return {tower.get("hidden_act", "quick_gelu") for tower in towers} == {"quick_gelu"}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise BackboneError(f"{config} is not the config.json of a CLIPModel ({error!r})") from error
