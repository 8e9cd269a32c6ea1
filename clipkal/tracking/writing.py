"""What every writer of results shares: one clear line when the disk refuses, and plain values for JSON."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipkal.errors import ClipkalError


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder and their like into one ClipkalError that names the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ClipkalError(
            f"{path}: cannot be written ({reason}); free space there or set output_dir=… to another folder"
        ) from error


def plain(value: Any) -> Any:
    """The same value in JSON's own types: numpy and torch scalars and arrays become numbers and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value
