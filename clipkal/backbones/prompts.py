"""Class prompts through the frozen text tower: one unit-norm feature per class.

The ensemble rule of the field: normalise the feature of each sentence, average over the sentences of a class, and
normalise again.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkal import files
from clipkal.backbones.cache import CacheDir, Entry, Header, load_or_compute
from clipkal.backbones.openclip import Backbone
from clipkal.backbones.progress import progress_bar
from clipkal.backbones.weights import one_line
from clipkal.errors import BackboneError, ConfigError, DataError

log = logging.getLogger(__name__)
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
        DataError, BackboneError: see `tokenise`; a feature is not finite.
    """
    tokens = torch.cat(tokenise(backbone, prompts))
    owner = torch.tensor([i for i, sentences in enumerate(prompts) for _ in sentences])
    entry = load_or_compute(
        cache_dir,
        _header(backbone, tokens, owner),
        compute=lambda: _encode(backbone, tokens, owner, len(prompts), progress),
    )
    return entry["features"]


def tokenise(backbone: Backbone, prompts: list[list[str]]) -> list[Tensor]:
    """For each of C classes the token ids int64 [n, context] of its n sentences.

    One warning where sentences are cut at the context length of the text tower.

    Raises:
        DataError: a class has no sentence, or other sentences than another class but the same tokens.
        BackboneError: the tokenizer fails.
    """
    if not prompts:
        raise DataError("there are no classes to make prompts for")
    for i, sentences in enumerate(prompts):
        if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise DataError(f"class {i} has no prompt, or an empty one; every class needs a sentence")
    flat = [s for sentences in prompts for s in sentences]
    try:
        tokens = backbone.tokenizer(flat)
        cut = [flat[i] for i in _cut(backbone.tokenizer, flat, tokens)]
    except Exception as error:
        raise BackboneError(f"the tokenizer of {backbone.name} fails: {one_line(error)}") from error
    by_class = list(tokens.split([len(sentences) for sentences in prompts]))
    _check_distinct(backbone, prompts, by_class, set(cut))
    if cut:
        log.warning(
            "%d of %d prompts are longer than the %d tokens of %s and are cut, the first: %r",
            len(cut),
            len(flat),
            tokens.shape[1],
            backbone.name,
            cut[0],
        )
    return by_class


def _cut(tokenizer: Any, sentences: list[str], tokens: Tensor) -> list[int]:
    """The places of the sentences that do not fit into the context: in a longer one they have more tokens.

    Only sentences that reach the end of the context are looked at again, and whatever the tokenizer pads with,
    and wherever it puts its special tokens, it shows by an empty sentence.
    """
    context = tokens.shape[1]
    full = (tokens[:, -2:] != tokenizer([""])[:, -2:]).any(1).nonzero().flatten().tolist()
    if not full:
        return []
    *longer, empty = tokenizer([*(sentences[i] for i in full), ""], context_length=4 * context)
    pad = empty.mode().values
    return [
        i
        for i, row in zip(full, longer, strict=True)
        if not torch.equal(row[row != pad], tokens[i][tokens[i] != pad])
    ]


def _check_distinct(
    backbone: Backbone, prompts: list[list[str]], tokens: list[Tensor], cut: set[str]
) -> None:
    """Raises DataError where classes with different sentences are the same to the text tower."""
    seen: dict[tuple[bytes, ...], list[str]] = {}
    for sentences, rows in zip(prompts, tokens, strict=True):
        other = seen.setdefault(tuple(sorted(row.numpy().tobytes() for row in rows)), sentences)
        if sorted(other) != sorted(sentences):
            way_out = "use names that differ in more than case, spaces and signs"
            if cut.intersection(other + sentences):
                way_out = (
                    f"its context of {rows.shape[1]} tokens cuts them, so use shorter names or templates"
                )
            one, two = next(pair for pair in zip(other, sentences, strict=True) if pair[0] != pair[1])
            raise DataError(
                f"two classes become the same tokens for {backbone.name}: {one!r} and {two!r}; {way_out}"
            )


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
