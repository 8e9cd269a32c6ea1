"""Reads what W&B wrote offline: a header, then a log of blocks (LevelDB's format), each record a protocol buffer."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32_768, 7


@dataclass
class Written:
    """A run as its record says it: settings, configuration, rows, summary, definitions of metrics, artifacts by type."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read(folder: Path) -> Written:
    """The record in an `offline-run-*` folder; what W&B adds (names with _) is left out of rows and summary."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    found = Written()
    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _values(record.run.config.update)
        elif kind == "config":
            found.config |= _values(record.config.update)
        elif kind == "history":
            found.rows.append(_values(record.history.item))
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "metric":
            found.metrics[record.metric.glob_name or record.metric.name] = record.metric
        elif kind == "artifact":
            found.artifacts[record.artifact.type] = record.artifact
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    named = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {key: value for key, value in named.items() if not key.startswith("_")}


def _records(data: bytes) -> Iterator[bytes]:
    magic, number, _ = struct.unpack("<4sHB", data[:HEADER])
    assert (magic, number) == (b":W&B", 0xBEE1)
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        place += HEADER
        parts += data[place : place + length]
        place += length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
