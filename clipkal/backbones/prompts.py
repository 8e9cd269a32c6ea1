"""Class prompts through the frozen text tower: one unit-norm feature per class.

The ensemble rule of the field: normalise the feature of each sentence, average over the sentences of a class,
    normalise again.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkal import files
from clipkal.backbones.cache import CacheDir, Entry, Header, load_or_compute
from clipkal.backbones.openclip import Backbone
from clipkal.backbones.progress import progress_bar
from clipkal.errors import BackboneError, ConfigError, DataError

# Ensembles by name, and what open_clip calls them.
TEMPLATES = {"simple7": "SIMPLE_IMAGENET_TEMPLATES", "imagenet80": "OPENAI_IMAGENET_TEMPLATES"}


def templates(name: str) -> list[str]:
    """A named ensemble of open_clip as sentences with {}: `simple7` (Tip-Adapter's) or `imagenet80` (CLIP's).

    Raises:
        ConfigError: there is no ensemble of that name.
    """
    import open_clip

    if name not in TEMPLATES:
        names = ", ".join(TEMPLATES)
        raise ConfigError(f"no template ensemble {name!r}; choose {names}, or write sentences with {{}}")
    return [template("{}") for template in getattr(open_clip, TEMPLATES[name])]


def text_features(
    backbone: Backbone, prompts: list[list[str]], cache_dir: CacheDir = None, progress: bool = True
) -> Tensor:
    """Class features float32 [C, d] with unit rows, always computed in float32.

    Args:
        backbone: see `load_backbone`.
        prompts: for each of C classes the sentences of its ensemble, at least one.
        cache_dir: see `image_features`.
        progress: a bar on terminals for work of more than two seconds.

    Raises:
        DataError: a class has no sentence. BackboneError: a feature is not finite.
    """
    for i, sentences in enumerate(prompts):
        if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise DataError(f"class {i} has no prompt, or an empty one; every class needs a sentence")
    if not prompts:
        raise DataError("there are no classes to make prompts for")
    tokens = backbone.tokenizer([s for sentences in prompts for s in sentences])
    owner = torch.tensor([i for i, sentences in enumerate(prompts) for _ in sentences])
    entry = load_or_compute(
        cache_dir,
        _header(backbone, tokens, owner),
        compute=lambda: _encode(backbone, tokens, owner, len(prompts), progress),
    )
    return entry["features"]


def _header(backbone: Backbone, tokens: Tensor, owner: Tensor) -> Header:
    """Keyed by tokens, not sentences: another tokenizer is another text."""
    return {
        "kind": "text",
        **backbone.identity,
        "tokens": files.digest(str(list(tokens.shape)), tokens.numpy().tobytes()),
        "owner": files.digest(owner.numpy().tobytes()),
    }


@torch.no_grad()
def _encode(backbone: Backbone, tokens: Tensor, owner: Tensor, classes: int, progress: bool) -> Entry:
    """Unit rows [C, d]; sentence n belongs to class `owner[n]`, and each class sums up in float64."""
    sums = torch.zeros(classes, backbone.embed_dim, dtype=torch.float64)
    with progress_bar("text features", len(tokens), progress) as advance:
        for start in range(0, len(tokens), backbone.batch_size):
            batch = slice(start, start + backbone.batch_size)
            rows = backbone.model.encode_text(tokens[batch].to(backbone.device))  # type: ignore[operator]
            sums.index_add_(0, owner[batch], F.normalize(rows.double().cpu(), dim=-1))
            advance(len(rows))
    if not bool(sums.isfinite().all()):
        raise BackboneError(f"{backbone.name} gives text features that are not finite; check its weights")
    return {"features": F.normalize(sums, dim=-1).float()}
