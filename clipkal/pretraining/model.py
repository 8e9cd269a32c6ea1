"""The architecture of the embedded model and its small vocabulary."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import SimpleTokenizer

from clipkal.data.world.captions import vocabulary
from clipkal.files import atomic_path

IMAGE_SIZE = 64
CONTEXT_LENGTH = 24
EMBED_DIM = 128
MEAN, STD = 0.5, 0.28  # per channel; close to the statistics of the world's images
MERGES_NAME = "merges.txt.gz"


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[int, str, str]]:
    """The merges (rank, left, right) that byte-pair encoding applies to spell `word`."""
    used: set[tuple[int, str, str]] = set()
    parts = [*word[:-1], f"{word[-1]}</w>"]
    while candidates := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        rank, i = min(candidates)
        used.add((rank, parts[i], parts[i + 1]))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return used


def write_merges(path: Path) -> None:
    """Write those of CLIP's own byte-pair merges that the captions' words need, in CLIP's order.

    The full table has 48,894 merges, whose embeddings would dwarf a model of this size; any other word still
    has a spelling, by shorter pieces or letters.
    """
    ranks = SimpleTokenizer().bpe_ranks
    used = sorted(set().union(*(_merges_of(word, ranks) for word in vocabulary())))
    text = "\n".join(["#version: subset of CLIP's merges", *(f"{left} {right}" for _, left, right in used)])
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def load_tokenizer(merges: Path) -> SimpleTokenizer:
    """The tokenizer of the embedded model, from its merges file."""
    return SimpleTokenizer(bpe_path=str(merges), context_length=CONTEXT_LENGTH)


def model_config(vocab_size: int) -> dict[str, Any]:
    """The open_clip `model_cfg`: a ResNet of four single blocks and a text transformer of two."""
    vision = {
        "image_size": IMAGE_SIZE,
        "layers": [1, 1, 1, 1],
        "width": 24,
        "head_width": 64,
        "patch_size": None,
    }
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": vocab_size, "width": 96, "heads": 3, "layers": 2}
    return {"embed_dim": EMBED_DIM, "vision_cfg": vision, "text_cfg": text}


def preprocess_config() -> dict[str, Any]:
    """The open_clip `preprocess_cfg`: what an image goes through before the tower."""
    return {
        "size": IMAGE_SIZE,
        "mode": "RGB",
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def build_model(vocab_size: int) -> open_clip.CLIP:
    """The model with random weights drawn from the current default generator."""
    return open_clip.CLIP(**model_config(vocab_size))
