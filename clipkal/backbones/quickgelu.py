"""QuickGELU: weights trained with it give wrong features, silently, in a model without it, and the reverse.

`ViT-B-16` with OpenAI's weights loses four points of zero-shot ImageNet accuracy that way (open_clip issue
1109); open_clip only warns, and only for its own tags. Here every trace of how the weights were trained is
compared with the architecture, and a mismatch is an error.
"""

import logging
import re
from pathlib import Path

from clipkal.errors import BackboneError

log = logging.getLogger(__name__)
_MARKER = re.compile(r"(?<![a-z])(openai|quick_?gelu)(?![a-z])")
_SUFFIX = "-quickgelu"


def counterpart(model: str) -> str:
    """The architecture's twin with (or without) QuickGELU, by open_clip's naming."""
    return model.removesuffix(_SUFFIX) if model.endswith(_SUFFIX) else model + _SUFFIX


def check_tag(model: str, built: bool, tag: str) -> None:
    """Compares the architecture with what open_clip knows of a pretrained tag.

    Args:
        model: open_clip's architecture name.
        built: whether that architecture uses QuickGELU.
        tag: a pretrained tag of it.

    Raises:
        BackboneError: they differ. Only a warning where open_clip has no twin architecture that would fit.
    """
    import open_clip

    trained = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    if trained == built:
        return
    twin = counterpart(model)
    if twin in open_clip.list_models():
        raise BackboneError(_message(f"the weights {tag!r}", trained, model, f"type backbone.model={twin}"))
    log.warning("open_clip lists %s with quick_gelu=%s but not so its weights %s", model, built, tag)


def check_file(model: str, built: bool, path: Path, config: dict | None) -> None:
    """Compares the architecture with what tells of a checkpoint file: a config beside it, else its name.

    Args:
        model: open_clip's architecture name.
        built: whether that architecture uses QuickGELU.
        path: the checkpoint.
        config: the `model_cfg` of an open_clip_config.json in the same folder, if there is one.

    Raises:
        BackboneError: they differ.
    """
    import open_clip

    if config is not None:
        trained, source = bool(config.get("quick_gelu", False)), f"{path.parent / 'open_clip_config.json'}"
    else:
        named = _from_name(model, path)
        if named is None:
            return
        trained, source = named, f"the name of {path}"
    if trained != built:
        way_out = f"type backbone.quick_gelu={str(built).lower()} if that is wrong"
        if counterpart(model) in open_clip.list_models():
            way_out = f"type backbone.model={counterpart(model)}, or {way_out.removeprefix('type ')}"
        raise BackboneError(_message(f"the weights, by {source},", trained, model, way_out))


def check_layout(model: str, built: bool, trained: bool | None, path: Path, layout: str) -> None:
    """Compares the architecture with what the layout of a checkpoint tells.

    Args:
        model, built, path: see `check_file`; also a local-dir: or hf-hub: name.
        trained: how the weights were trained; None where the layout may hold either.
        layout: its name, for the message.

    Raises:
        BackboneError: they differ, or it is not known. Nothing where the architecture has no twin.
    """
    import open_clip

    twin = counterpart(model)
    if ":" in model:
        way_out = (
            f"set quick_gelu in its open_clip_config.json, or type backbone.quick_gelu={str(built).lower()}"
        )
    elif twin in open_clip.list_models():
        way_out = f"type backbone.model={twin}"
    else:
        return
    if trained is None:
        raise BackboneError(
            f"{path} is laid out as {layout}, and without the config.json beside it nothing tells whether it was "
            "trained with QuickGELU: type backbone.quick_gelu=true (OpenAI's weights) or false (LAION's)"
        )
    if trained != built:
        raise BackboneError(_message(f"the weights in {path}, {layout},", trained, model, way_out))


def check_folder(where: str, built: bool) -> None:
    """Raises `BackboneError` where a folder or hub name tells of QuickGELU but its config does not."""
    name = where.rstrip("/").rsplit("/", 1)[-1].lower().replace("-", "_")
    if not built and _MARKER.search(name):
        way_out = "put quick_gelu: true into its open_clip_config.json, or type backbone.quick_gelu=false"
        raise BackboneError(_message("the weights, by their name,", True, where, way_out))


def check_stated(model: str, built: bool, stated: bool) -> None:
    """Raises `BackboneError` where the user's `backbone.quick_gelu` differs from the architecture."""
    if stated != built:
        way_out = f"type backbone.model={counterpart(model)} or another architecture that fits"
        raise BackboneError(_message("the weights, by backbone.quick_gelu,", stated, model, way_out))


def _from_name(model: str, path: Path) -> bool | None:
    """What names of file and hub folder tell: a marker word, or the longest known tag of model or twin."""
    import open_clip

    folders = [part for part in path.parts[:-1] if part.startswith("models--")]
    text = "/".join([*folders, path.name]).lower().replace("-", "_")
    if _MARKER.search(text):
        return True
    known: dict[str, bool] = {}
    for one in (model, counterpart(model)):
        for tag in open_clip.list_pretrained_tags_by_model(one):
            known[tag] = bool(open_clip.get_pretrained_cfg(one, tag).get("quick_gelu", False))
    found = [tag for tag in known if re.search(rf"(?<![a-z0-9]){re.escape(tag)}(?![a-z0-9])", text)]
    return known[max(found, key=len)] if found else None


def _message(weights: str, trained: bool, model: str, way_out: str) -> str:
    words = {True: "with", False: "without"}
    return (
        f"QuickGELU mismatch: {weights} were trained {words[trained]} QuickGELU but {model} is built "
        f"{words[not trained]} it; {way_out}"
    )
