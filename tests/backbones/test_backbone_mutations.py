"""Thousands of damaged folders: each is read, or refused in one line."""

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from tiny_clip import PREPROCESS, TEXT, VIT

from clipkal.backbones.layouts import to_open_clip
from clipkal.backbones.sources import resolve
from clipkal.backbones.weights import read
from clipkal.errors import ClipkalError

MANY = pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
CONFIG = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": False,
        "vision_cfg": VIT,
        "text_cfg": TEXT | {"tokenizer_kwargs": {"bpe_path": "merges.txt.gz", "clean": "lower"}},
    },
    "preprocess_cfg": PREPROCESS | {"resize_mode": "shortest", "size": 32},
}
HOSTILE = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**30, -0.0, 0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "bicubic", "\0", "\ud800", "a" * 5000, "../..", "/", "merges.txt.gz\0", "\n", "😀", "."),
    *(
        [],
        [1],
        [1, 2],
        [0, 0, 0],
        [None] * 3,
        ["a"] * 3,
        [float("nan")] * 3,
        [True] * 3,
        [[1, 2, 3]],
        {},
        {"a": 1},
    ),
]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in nested dicts and lists, the root excluded."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in items for place in ((*path, key), *places(child, (*path, key)))]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one to three places replaced, deleted, renamed or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        found = places(value)
        if not found:
            return rng.choice(HOSTILE)
        *way, last = rng.choice(found)
        holder = value
        for key in way:
            holder = holder[key]
        kind = rng.randrange(5)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(["", "\0", "a.b", str(last) + "s", "__proto__"])] = holder.pop(last)
        elif kind == 2:
            holder[last] = [holder[last]]
        else:
            holder[last] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changed, cut off, doubled or put before them."""
    changed = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        return b"\xef\xbb\xbf" + data if rng.random() < 0.5 else data + data
    if kind == 2:
        return b"[" * rng.choice([10, 100_000]) + data
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def refused(call: Any) -> int:
    """1 where a ClipkalError of one printable line is raised, 0 where all is well."""
    try:
        call()
    except ClipkalError as error:
        message = str(error)
        assert "\n" not in message and len(message.encode()) < 2000
        return 1
    return 0


@MANY
def test_mutations_of_the_configuration(count, tmp_path):
    rng = random.Random(0)
    (tmp_path / "merges.txt.gz").write_bytes(b"x")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"x")
    config = tmp_path / "open_clip_config.json"
    number = 0
    for _ in range(count):
        whole = rng.random() < 0.8
        text = json.dumps(mutated(CONFIG, rng) if whole else CONFIG).encode()
        config.unlink(missing_ok=True)  # writing over a file waits for the disk
        config.write_bytes(text if whole else damaged(text, rng))
        number += refused(lambda: resolve(f"local-dir:{tmp_path}", None))
    assert 0.3 < number / count < 0.95  # neither everything nor nothing


def rewritten(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


@MANY
def test_mutations_of_a_safetensors_header(count, tmp_path):
    rng = random.Random(0)
    state = {
        "logit_scale": torch.tensor(4.6),
        "visual.proj": torch.ones(2, 3),
        "ln_final.bias": torch.ones(2).half(),
    }
    data = save(state)
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    dtypes = ["F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "BOOL", "U16", "I8", "F64", "float32"]
    number = 0
    for i in range(count):
        changed: bytes
        kind = rng.randrange(4)
        if kind == 0:
            changed = damaged(data, rng)
        elif kind == 1:
            changed = rewritten(damaged(data[8 : 8 + length], rng), body)
        elif kind == 2:
            own = copy.deepcopy(header)
            rng.choice(list(own.values()))["dtype"] = rng.choice(dtypes)
            changed = rewritten(json.dumps(own).encode(), body)
        else:
            changed = rewritten(json.dumps(mutated(header, rng)).encode(), body)
        path = tmp_path / f"{i % 50}.safetensors"
        path.unlink(missing_ok=True)
        path.write_bytes(changed)
        number += refused(lambda path=path: load(path))
    assert 0.3 < number / count < 0.99


def load(path: Path) -> None:
    assert all(isinstance(tensor, torch.Tensor) for tensor in to_open_clip(read(path), path).tensors.values())
