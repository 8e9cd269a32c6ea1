"""What survives a kill: training checkpoints, trained adapters, and what a predictive has learnt.

A checkpoint is two files that take turns, `<stem>.a<suffix>` and `<stem>.b<suffix>`. Each save replaces the
older one atomically, so that one whole checkpoint exists at any moment. A file starts with a magic word and
the sha256 of what follows: a JSON header (sequence number and fingerprint) and a `torch.save` of plain
containers and tensors, which is read with `weights_only=True`.
"""

import hashlib
import io
import json
import logging
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkal import files
from clipkal.errors import CheckpointError
from clipkal.tracking.tensors import read_tensors, write_tensors
from clipkal.tracking.writing import plain, writing
from clipkal.uncertainty import Predictive

log = logging.getLogger(__name__)

MAGIC = b"clipkal checkpoint 1\n"
LENGTH = struct.Struct("<Q")


class Checkpoint:
    """Saves and loads the state of a training run; the last two saves are kept."""

    @staticmethod
    def save(path: str | Path, state: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Writes `state` (nested dicts, lists, tuples, tensors, numbers, strings) beside the previous one.

        `fingerprint` says which run the state belongs to: JSON values that `load` compares. Raises TypeError
        for a value that could not be read back safely, ClipkalError when the disk refuses; older checkpoints
        stay intact.
        """
        slots = [(_sequence(slot), slot) for slot in _slots(path)]
        _, oldest = min(slots, key=lambda pair: pair[0])
        header = {"sequence": max(number for number, _ in slots) + 1, "fingerprint": plain(fingerprint)}
        body = io.BytesIO()
        torch.save(_storable(state, "state"), body)
        with writing(oldest), files.atomic_path(oldest) as temporary, temporary.open("wb") as file:
            text = json.dumps(header).encode()
            head = LENGTH.pack(len(text)) + text
            hasher = hashlib.sha256(head)
            hasher.update(body.getbuffer())
            file.write(MAGIC + hasher.digest() + head)
            file.write(body.getbuffer())

    @staticmethod
    def load(path: str | Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest whole state, on the CPU; None when there is no checkpoint.

        A damaged newest file is passed over with a warning. Raises CheckpointError when all are damaged, when
        the fingerprint differs (the line lists the keys), or when a file holds anything but tensors and plain
        values.
        """
        found = sorted(((_sequence(s), s) for s in _slots(path) if s.exists()), key=_newest_first)
        for _, slot in found:
            try:
                header, body = _read(slot)
            except _DamagedError as damage:
                log.warning("%s is %s; using the other checkpoint", slot, damage)
                continue
            _compare(slot, header["fingerprint"], plain(fingerprint), "delete it to start this run again")
            return _unpickle(slot, body)
        if not found:
            return None
        names = " and ".join(str(slot) for _, slot in found)
        raise CheckpointError(f"{names}: damaged; delete to start this run again")

    @staticmethod
    def delete(path: str | Path) -> None:
        """Removes the checkpoint of a finished run; a failure to do so is only a warning."""
        for slot in _slots(path):
            try:
                slot.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s could not be deleted: %s", slot, error)


class _DamagedError(Exception):
    """What is wrong with a checkpoint file, in a few words."""


def _slots(path: str | Path) -> list[Path]:
    path = Path(path)
    return [path.with_name(f"{path.stem}.{slot}{path.suffix}") for slot in "ab"]


def _newest_first(numbered: tuple[int, Path]) -> float:
    number, _ = numbered
    return -number if number >= 0 else -float("inf")  # a file without a number may have been the newest


def _sequence(slot: Path) -> int:
    """The number of the save, from the header alone; -1 where there is none to read."""
    try:
        with slot.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return -1
            file.seek(hashlib.sha256().digest_size, io.SEEK_CUR)
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            return int(json.loads(file.read(min(length, 1 << 24)))["sequence"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return -1


def _read(slot: Path) -> tuple[dict[str, Any], memoryview]:
    try:
        data = memoryview(slot.read_bytes())
    except OSError as error:
        raise _DamagedError(f"unreadable ({error.strerror})") from error
    start = len(MAGIC) + hashlib.sha256().digest_size
    if data[: len(MAGIC)] != MAGIC:
        raise _DamagedError("not a clipkal checkpoint")
    if hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
        raise _DamagedError("damaged (cut short or changed)")
    (length,) = LENGTH.unpack_from(data, start)
    body = start + LENGTH.size + length
    return json.loads(bytes(data[start + LENGTH.size : body])), data[body:]


def _unpickle(slot: Path, body: memoryview) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{slot}: holds more than tensors and plain values: not loaded; delete it to start this run again"
        ) from error


def _storable(value: Any, where: str) -> Any:
    """The same value in types that weights_only accepts; a view does not drag its whole storage along."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if isinstance(value, Mapping):
        return {_key(key, where): _storable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_storable(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a numpy number
        return _storable(value.item(), where)
    raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors and plain values only")


def _key(key: Any, where: str) -> int | str:
    if isinstance(key, int | str):
        return key
    raise TypeError(f"{where} has the key {key!r}; only strings and integers can be saved")


def _compare(path: Path, saved: Mapping[str, Any], expected: Mapping[str, Any], way_out: str) -> None:
    """Raises CheckpointError that lists every expected key whose saved value is another."""
    pairs = [(key, saved.get(key, "(absent)"), value) for key, value in expected.items()]
    wrong = [f"{key}: {_brief(was)} there, {_brief(now)} here" for key, was, now in pairs if was != now]
    if wrong:
        raise CheckpointError(f"{path} belongs to another run ({'; '.join(wrong)}); {way_out}")


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


# -- trained adapters ----------------------------------------------------------------------------------------


def save_adapter(path: str | Path, module_state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Writes a trained adapter; the shapes of its tensors are added to the metadata."""
    return write_tensors(path, module_state, {**metadata, "shapes": _shapes(module_state)})


# -- what a predictive has learnt ----------------------------------------------------------------------------


def save_predictive(path: str | Path, predictive: Predictive, metadata: Mapping[str, Any]) -> None:
    """Writes the state of a predictive, its plain values among the metadata; no file where it has learnt nothing."""
    state = predictive.state()
    if state:
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in state.items() if name not in tensors}
        write_tensors(path, tensors, {**metadata, "state": numbers})


def load_predictive(path: str | Path, predictive: Predictive) -> None:
    """Gives a predictive the state that was written, or none where there is no file; CheckpointError where it does not fit."""
    tensors, metadata = read_tensors(path) if Path(path).exists() else ({}, {})
    predictive.load_state({**tensors, **metadata.get("state", {})})


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in sorted(state.items())}
