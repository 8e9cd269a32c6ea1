"""Checkpoint files and weights: is the file sound, is it the right one, and what are its weights called."""

import hashlib
import pickle
import warnings
from pathlib import Path

import torch
from torch import nn

from clipkal import files
from clipkal.errors import BackboneError


def check_file(path: str | Path) -> Path:
    """The checkpoint's path, once its container is known to be whole; no tensor is copied.

    A .safetensors file is opened; any other file is opened as PyTorch's format with `weights_only=True`, so
    nothing pickled is ever executed. A big_vision .npz is left to open_clip.

    Raises:
        BackboneError: the file is missing, empty, truncated, or one whose loading could run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BackboneError(f"no such checkpoint file: {path} (backbone.pretrained or backbone.model)")
    if path.stat().st_size == 0:
        raise BackboneError(f"{path} is empty; download or copy it again")
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif path.suffix not in (".npz", ".npy"):
        _check_torch(path)
    return path


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            if not list(file.keys()):
                raise BackboneError(f"{path} holds no tensor")
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            f"{path} is truncated or not a safetensors file ({error}); copy it again"
        ) from error


def _check_torch(path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a TorchScript archive, which is refused below
            torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} holds pickled Python objects (or is damaged), refused because loading them can run "
            "code; save the weights alone, with safetensors.torch.save_file(model.state_dict(), …)"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise BackboneError(
                f"{path} is a TorchScript archive, which can run code; for OpenAI's weights type "
                "backbone.pretrained=openai, or save its state_dict as .safetensors"
            ) from error
        raise BackboneError(
            f"{path} is truncated or not a PyTorch checkpoint ({one_line(error)}); copy it again"
        ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


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
