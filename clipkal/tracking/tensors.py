"""Tensors that outlive a run (adapters, posteriors): safetensors, written atomically, checked when read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clipkal import files
from clipkal.errors import CheckpointError
from clipkal.tracking.writing import plain, writing

DIGEST = "clipkal.sha256"
METADATA = "clipkal.metadata"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Writes safetensors atomically, with JSON metadata and a digest that `read_tensors` checks."""
    path = Path(path)
    ready = _unshared({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    header = {METADATA: json.dumps(plain(metadata)), DIGEST: _digest(ready)}
    with writing(path), files.atomic_path(path) as temporary:
        temporary.write_bytes(save(ready, metadata=header))
    return path


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata as they were written; CheckpointError where the file is not whole."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; run clipkal again to write it, or correct the path")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(header.get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error}); run clipkal again"
        ) from error
    if DIGEST in header and header[DIGEST] != _digest(tensors):
        raise CheckpointError(f"{path}: damaged (its contents do not match its digest); run clipkal again")
    return tensors, metadata


def packed(state: Any, name: str = "") -> tuple[dict[str, Tensor], Any]:
    """The tensors of a nested state by dotted name, and its structure as JSON, where they are `{"tensor": name}`.

    state: dicts with string keys, lists, plain values and tensors, such as an optimiser's `extra_state`.
    """
    if isinstance(state, Tensor):
        return {name: state}, {"tensor": name}
    if not isinstance(state, dict | list | tuple):
        return {}, state
    items = state.items() if isinstance(state, dict) else enumerate(state)
    parts = {key: packed(value, f"{name}.{key}" if name else str(key)) for key, value in items}
    tensors = {one: tensor for found, _ in parts.values() for one, tensor in found.items()}
    structure = {key: inner for key, (_, inner) in parts.items()}
    return tensors, structure if isinstance(state, dict) else list(structure.values())


def unpacked(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """The state that `packed` took apart."""
    if isinstance(structure, dict):
        if structure.keys() == {"tensor"} and isinstance(structure["tensor"], str):
            return tensors[structure["tensor"]]
        return {key: unpacked(tensors, inner) for key, inner in structure.items()}
    return [unpacked(tensors, inner) for inner in structure] if isinstance(structure, list) else structure


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clones views and tensors that share memory with an earlier one; safetensors refuses them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() > tensor.nbytes
        result[name] = tensor.clone() if shared else tensor
        seen.add(storage.data_ptr())
    return result


def _digest(tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
