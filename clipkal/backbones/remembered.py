"""A backbone that is built only when its towers are needed.

To build one takes seconds: open_clip, torchvision and their imports, the weights. A run whose features are cached
asks only for words: what identifies it, its logit scale, and the tokens of the prompts. These are kept in the
feature cache under the contents of its files, the settings, the versions of the libraries and the code of this
package, so they are never those of another model. Where its files are not known beforehand (a pretrained tag, the Hub)
it is built at once.
"""

import json
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from clipkal import files
from clipkal.backbones.cache import CacheDir, Header, directory, load_or_compute
from clipkal.backbones.memory import worker_memory
from clipkal.backbones.openclip import Backbone, device_of, load_backbone
from clipkal.backbones.sources import CONFIG_FILE, MINI_FOLDER

LIBRARIES = ("open_clip_torch", "torch", "torchvision", "timm")
WORDS = ("model", "pretrained", "image_mean", "image_std", "weights_sha256", "quick_gelu")
FACTS = ("identity", "transform", "logit_scale", "embed_dim", "architecture", "config", "digest")


def remembered_backbone(cfg: Any, device: str | torch.device, cache_dir: CacheDir) -> Backbone | None:
    """As `load_backbone`, whose arguments and errors it has, but built no sooner than needed.

    cache_dir: the feature cache, see `image_features`.
    """
    found = _files(cfg)
    if not found or directory(cache_dir) is None:
        return load_backbone(cfg, device)
    device_of(device)  # one that is not there is told at once
    build = cache(lambda: cast(Backbone, load_backbone(cfg, device)))
    key = files.digest(
        json.dumps({word: _plain(getattr(cfg, word, None)) for word in WORDS}),
        *_software(),
        *(f"{path.name} {_contents(path)}" for path in found),
    )
    header = {"kind": "backbone", "key": key}
    entry = load_or_compute(cache_dir, header, compute=lambda: {"facts": _packed(build())})
    return cast(Backbone, _Remembered(cfg, _unpacked(entry["facts"]), build, _Tokens(key, build, cache_dir)))


class _Remembered:
    """Answers from memory what it can; anything else is asked of the backbone itself."""

    def __init__(
        self, cfg: Any, facts: dict[str, Any], build: Callable[[], Backbone], tokenizer: "_Tokens"
    ) -> None:
        self._build, self.tokenizer = build, tokenizer
        self.name, self.pretrained = str(cfg.name), cfg.pretrained
        self.precision, self.batch_size = cfg.precision, cfg.batch_size
        vars(self).update(facts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._build(), name)


class _Tokens:
    """The tokenizer, whose answers are kept in the feature cache."""

    def __init__(self, key: str, build: Callable[[], Backbone], cache_dir: CacheDir) -> None:
        self._key, self._build, self._cache_dir = key, build, cache_dir

    def __call__(self, sentences: list[str], context_length: int | None = None) -> Tensor:
        header: Header = {"kind": "tokens", "backbone": self._key, "context": str(context_length)}
        header["sentences"] = files.digest(*sentences)
        more = {} if context_length is None else {"context_length": context_length}
        compute = lambda: {"tokens": cast(Any, self._build().tokenizer)(sentences, **more)}
        return load_or_compute(self._cache_dir, header, compute)["tokens"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._build().tokenizer, name)


@cache
def _software() -> tuple[str | bytes, ...]:
    """The versions of the libraries and the code of this package, which stay as they are while it runs."""
    code = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return json.dumps([metadata.version(name) for name in LIBRARIES]), *code


def _contents(path: Path) -> str:
    """The sha256 of a file; jobs of a sweep that share a worker read it again only if its size or time of change differs."""
    read = _sha256 if worker_memory() else _sha256.__wrapped__
    return read(path, *files.stamps(path.parent, [path.name]))


@lru_cache(maxsize=64)
def _sha256(path: Path, stamp: str | None) -> str:
    return files.sha256(path)


def _files(cfg: Any) -> list[Path]:
    """What a backbone is made of, where that are files at hand; else nothing."""
    if cfg.model == "mini":
        return sorted(path for path in MINI_FOLDER.iterdir() if path.is_file())
    if str(cfg.model).startswith("local-dir:"):
        folder = files.expanded(str(cfg.model).removeprefix("local-dir:"))
        return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    path = files.expanded(str(cfg.pretrained))
    beside = path.with_name(CONFIG_FILE)
    return [one for one in (path, beside) if one.is_file()] if path.is_file() else []


def _plain(value: Any) -> Any:
    return (
        value if value is None or isinstance(value, str | bool | int | float) else [float(v) for v in value]
    )


def _packed(backbone: Backbone) -> Tensor:
    """The facts as JSON, in bytes."""
    facts = {name: getattr(backbone, name) for name in FACTS}
    return torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)


def _unpacked(facts: Tensor) -> dict[str, Any]:
    return json.loads(facts.numpy().tobytes())
