"""Checkpoint files: is the file sound, is it the right one, and what does it hold."""

import hashlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipkal import files
from clipkal.errors import BackboneError, ConfigError

BIG_VISION = (".npz", ".npy")  # read by open_clip itself


def check_file(path: str | Path) -> Path:
    """The checkpoint's path. Raises BackboneError where there is no such file, or it is empty."""
    path = files.expanded(path)
    if not path.is_file():
        raise BackboneError(f"no such checkpoint file: {path} (backbone.pretrained or backbone.model)")
    if path.stat().st_size == 0:
        raise BackboneError(f"{path} is empty; download or copy it again")
    return path


def read(path: Path) -> Any:
    """What a checkpoint file holds, on the CPU and mapped from the file where its format allows that.

    Any file that is not .safetensors is read as PyTorch's format with `weights_only=True`, so nothing pickled is
    ever executed.

    Raises:
        BackboneError: the file is truncated, or one whose loading could run code.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of safetensors for a damaged header, of torch for a type it has not
        problem = f"is truncated or not a safetensors file ({one_line(error)}); copy it again"
        raise BackboneError(f"{path} {problem}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_numbers()):
            warnings.simplefilter("ignore")  # of a TorchScript archive, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled {found[1]}" if found else "pickled Python objects (or is damaged)"
        raise BackboneError(
            f"{path} holds {what}, refused because loading them can run code; save the weights alone, with "
            "safetensors.torch.save_file(model.state_dict(), …)"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise BackboneError(
                f"{path} is a TorchScript archive, which can run code; for OpenAI's weights type "
                "backbone.pretrained=openai, or save its weights alone: safetensors.torch.save_file("
                f"torch.jit.load('{path.name}', 'cpu').state_dict(), '{path.stem}.safetensors')"
            ) from error
        raise BackboneError(
            f"{path} is truncated or not a PyTorch checkpoint ({one_line(error)}); copy it again"
        ) from error


def _numpy_numbers() -> list[Any]:
    """What a pickled numpy number needs, as `{"best": np.float64(0.3)}` beside the weights; by its old name too."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def check_digest_form(digest: str) -> None:
    """Raises `ConfigError` unless `digest` is a sha256 in hex."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest.strip()):
        raise ConfigError(
            f"backbone.weights_sha256={digest}: needs the 64 hex digits that sha256sum prints for the file"
        )


def check_sha256(path: Path, expected: str) -> None:
    """Raises `BackboneError` unless the file's sha256 is `expected` (hex, any case)."""
    actual = files.sha256(path)
    if actual != expected.strip().lower():
        raise BackboneError(f"{path} is another file, or damaged: sha256 {actual}, expected {expected}")


def state_digest(model: nn.Module) -> str:
    """Hex sha256 over every tensor of the state dict: name, dtype, shape and bytes, in order of name.

    It names the weights rather than the file: the same weights as .pt or .safetensors have one digest. It is
    computed once per load, in about a second per gigabyte on a processor with SHA instructions.
    """
    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message as one short line; of a state dict that does not fit, its first misfit."""
    text = str(error) or type(error).__name__
    misfits = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    if "Error(s) in loading state_dict" in text and misfits:
        first = next((line for line in misfits if line.startswith("size mismatch")), misfits[0])
        text = first + (f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else "")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
