"""Where a backbone comes from: the configured names resolved for open_clip, or one clear error."""

import json
import os
import tempfile
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clipkal import files
from clipkal.backbones import quickgelu
from clipkal.backbones.hub import download_repository, download_tag
from clipkal.backbones.release import CONFIG_FILE, read_config
from clipkal.backbones.weights import check_file
from clipkal.errors import BackboneError

MINI = "clipkal-mini"  # the embedded model's name in open_clip's registry
MINI_FOLDER = Path(__file__).parent / "mini"
RANDOM = "random"  # `pretrained` for untrained weights, always the same ones
_SCHEMAS = ("local-dir:", "hf-hub:")
_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".npy")
_PREPROCESS = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}


@dataclass(frozen=True)
class Source:
    """What open_clip is asked for.

    Attributes:
        model: the first argument of its factory: an architecture, or a local-dir: or hf-hub: name.
        checkpoint: the file the weights come from; None for random weights.
        config: the architecture's `model_cfg`.
        preprocess: keyword arguments for image preprocessing where open_clip would not find them itself.
        tokenizer: keyword arguments for the tokenizer.
    """

    model: str
    checkpoint: Path | None
    config: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


def resolve(model: str, pretrained: str | None, quick_gelu: bool | None = None) -> Source:
    """Resolves names, downloads what is missing, and checks that weights and architecture agree on QuickGELU.

    Args:
        model: an open_clip architecture, `local-dir:/folder`, `hf-hub:org/name`, or `mini`.
        pretrained: a tag, a checkpoint file or `random` for an architecture; None otherwise.
        quick_gelu: how the weights were trained, where the user knows better than names tell; None to judge
            by tag, config and name.

    Raises:
        BackboneError: unknown model or tag, no weights, a damaged file, no network, or a QuickGELU mismatch.
    """
    own_weights = model in ("mini", MINI) or model.startswith(_SCHEMAS)
    if own_weights and pretrained is not None:
        raise BackboneError(f"backbone.model={model} has its own weights; set backbone.pretrained=null")
    if model in ("mini", MINI):
        return _mini()
    if model.startswith("local-dir:"):
        source = _local_dir(files.expanded(model.removeprefix("local-dir:")))
    elif model.startswith("hf-hub:"):
        config, checkpoint = download_repository(model.removeprefix("hf-hub:"))
        source = Source(model, check_file(checkpoint), config["model_cfg"])
    else:
        return _architecture(model.replace("/", "-"), pretrained, quick_gelu)
    built = bool(source.config.get("quick_gelu", False))
    if quick_gelu is not None:
        quickgelu.check_stated(model, built, quick_gelu)
    else:
        quickgelu.check_folder(model, built)
    return source


def _mini() -> Source:
    """The embedded release folder, also registered with open_clip as `clipkal-mini`."""
    import open_clip

    if not (MINI_FOLDER / CONFIG_FILE).is_file():
        raise BackboneError(f"the embedded backbone `mini` is missing ({MINI_FOLDER}); install clipkal again")
    folder = _local_dir(MINI_FOLDER)
    config = json.loads(json.dumps(folder.config))
    config["text_cfg"].setdefault("tokenizer_kwargs", {}).update(folder.tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{MINI}.json"  # open_clip names a model by its file, and keeps the content
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
    preprocess = _preprocess(read_config(MINI_FOLDER / CONFIG_FILE).get("preprocess_cfg") or {})
    return Source(MINI, folder.checkpoint, folder.config, preprocess)


def _local_dir(folder: Path) -> Source:
    """A folder with open_clip_config.json and weights; a relative bpe_path in it is meant from the folder."""
    from open_clip.factory import _find_checkpoint_in_dir

    if not folder.is_dir():
        raise BackboneError(f"backbone.model=local-dir:{folder}: no such folder")
    if not (folder / CONFIG_FILE).is_file():
        raise BackboneError(f"{folder} has no {CONFIG_FILE}{_transformers(folder)}")
    model_cfg = read_config(folder / CONFIG_FILE)["model_cfg"]
    found = _find_checkpoint_in_dir(folder)
    if found is None:
        raise BackboneError(
            f"{folder} holds no weights; expected open_clip_model.safetensors beside {CONFIG_FILE}"
        )
    tokenizer = {}
    bpe_path = (model_cfg["text_cfg"].get("tokenizer_kwargs") or {}).get("bpe_path")
    if bpe_path:
        tokenizer["bpe_path"] = str(folder.resolve() / bpe_path)
        if not os.path.isfile(tokenizer["bpe_path"]):  # noqa: PTH113 (False, too, for no path at all)
            raise BackboneError(
                f"{folder / CONFIG_FILE} names the tokenizer file {bpe_path}, which is missing"
            )
    return Source(f"local-dir:{folder}", check_file(found), model_cfg, {}, tokenizer)


def _transformers(folder: Path) -> str:
    """What to do where a folder is one of Hugging Face's transformers."""
    if not (folder / "config.json").is_file():
        return ""
    return (
        f"; for a CLIPModel of transformers type backbone.pretrained={folder}/model.safetensors and the architecture "
        "that it has in open_clip, such as backbone.model=ViT-B-32-quickgelu"
    )


def _architecture(model: str, pretrained: str | None, quick_gelu: bool | None) -> Source:
    """One of open_clip's architectures with a tag, a file or random weights."""
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        raise BackboneError(_unknown_architecture(model))
    built = bool(config.get("quick_gelu", False))
    if pretrained is None:
        raise BackboneError(f"backbone.model={model} needs weights: backbone.pretrained={_choices(model)}")
    if pretrained == RANDOM:
        return Source(model, None, config)
    if quick_gelu is not None:
        quickgelu.check_stated(model, built, quick_gelu)
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        if quick_gelu is None:
            quickgelu.check_tag(model, built, pretrained)
        path = check_file(download_tag(model, pretrained))
        return Source(model, path, config, _preprocess(tag))
    if not _looks_like_path(pretrained):
        raise BackboneError(
            f"{model} has no pretrained weights {pretrained!r}; backbone.pretrained={_choices(model)}"
        )
    path = check_file(pretrained)
    config_file = path.with_name(CONFIG_FILE)
    beside = read_config(config_file) if config_file.is_file() else {}
    if quick_gelu is None:
        quickgelu.check_file(model, built, path, beside.get("model_cfg"))
    preprocess = _preprocess(beside.get("preprocess_cfg") or _only_preprocess(model))
    return Source(model, path, config, preprocess)


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith(_CHECKPOINT_SUFFIXES) or Path(text).is_file()


def _unknown_architecture(model: str) -> str:
    import open_clip

    names = {name.lower(): name for name in open_clip.list_models()} | {"mini": "mini"}
    near = [names[key] for key in get_close_matches(model.lower(), names, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models()"
    return f"unknown backbone.model={model}: {hint}"


def _choices(model: str) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    return " | ".join([*tags, "/path/to/weights.safetensors", RANDOM])


def _only_preprocess(model: str) -> dict[str, Any]:
    """What an architecture's tags all agree on (SigLIP's is not OpenAI's); else open_clip's default."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    found = [{key: open_clip.get_pretrained_cfg(model, tag).get(key) for key in _PREPROCESS} for tag in tags]
    return found[0] if found and all(one == found[0] for one in found) else {}


def _preprocess(config: dict[str, Any]) -> dict[str, Any]:
    return {argument: config[key] for key, argument in _PREPROCESS.items() if config.get(key) is not None}
