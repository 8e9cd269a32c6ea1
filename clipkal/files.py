"""Files that are either whole or absent: atomic writes, digests, stamps and locks."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock

CHUNK = 256  # files that a thread looks at, at a time
LONGEST_PREFIX = (
    48  # letters of a file's name in that of its temporary file, so that a long name stays possible
)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    On any exception the temporary file is removed and an older `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:LONGEST_PREFIX]}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically; a lone surrogate, as in a file name that is no text, is written \\udcXX."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON atomically; a float that JSON does not know (NaN, infinity) is written as null."""
    write_text(path, json.dumps(_json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in chunks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str | bytes) -> str:
    """Hex sha256 of the parts, each preceded by its length so that no two lists of parts collide."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()


def stamps(folder: str | Path, relative: Sequence[str], contents: bool = False) -> list[str | None]:
    """What tells a change of each file, None where there is no regular file (a pipe would never end); many at
    once, since network disks are slow.

    Args:
        folder, relative: N files, by their paths below the folder.
        contents: "size:sha256" of its bytes instead of "size:time of change in nanoseconds". The time of the
            inode (ctime) is left out: a copy, another layer of a container or a network disk changes it alone.
    """
    look = _content_stamp if contents else _stamp
    chunks = [relative[i : i + CHUNK] for i in range(0, len(relative), CHUNK)]
    if len(chunks) == 1:
        return [look(f"{folder}/{name}") for name in chunks[0]]
    with ThreadPoolExecutor(16) as pool:
        return list(chain.from_iterable(pool.map(lambda c: [look(f"{folder}/{n}") for n in c], chunks)))


def _stamp(path: str) -> str | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path takes twice as long to make as the call)
    except (OSError, ValueError):  # ValueError: no text that a path can be
        return None
    return f"{status.st_size}:{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else None


def _content_stamp(path: str) -> str | None:
    found = _stamp(path)
    try:
        return found and f"{found.partition(':')[0]}:{sha256(path)}"
    except OSError:
        return None


@contextmanager
def locked(path: str | Path, timeout: float = 600.0) -> Iterator[None]:
    """Holds an advisory lock on `path` + ".lock" while the block runs; waits at most `timeout` seconds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=timeout):
        yield
