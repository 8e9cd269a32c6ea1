"""Files that are either whole or absent: atomic writes, JSON that is checked when read, digests, stamps and locks."""

import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock

from clipkal.errors import ConfigError, DataError

DEEPEST = 20  # levels of JSON: more than any file that is read here has, and far from where recursion ends
MOST_DIGITS = 19  # of a whole number: 64 bits
CHUNK = 256  # files that a thread looks at, at a time
LONGEST_PREFIX = (
    48  # letters of a file's name in that of its temporary file, so that a long name stays possible
)


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ replaced by the home directory; ConfigError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no home directory for ~ here; give the whole path") from error


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
    """Writes `json_text` atomically."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON that ends in a line break; a float that JSON does not know (NaN, infinity) becomes null."""
    write = partial(json.dumps, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        return write(value) + "\n"
    except ValueError:  # such a float, which is rare
        return write(_json_safe(value)) + "\n"


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_text(path: str | Path, what: str, way_out: str) -> str:
    """The text of a file of people's: UTF-8 with or without a byte order mark, without NUL.

    Args:
        path: the file.
        what: what it should be, for the message, such as "shot list".
        way_out: what to do where it is not, for the message.

    Raises:
        DataError: there is no such file, or it is no such text.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a folder, or a pipe that nobody writes to
            raise ValueError("it is no file" if path.exists() else "no such file")
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds NUL bytes")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8; save it as UTF-8"
        raise DataError(f"{path}: no {what} can be read there ({reason})") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: no {what} can be read there ({reason}); {way_out}") from error
    return text


def read_json(path: str | Path, what: str, way_out: str) -> Any:
    """The value in a JSON file of people's.

    Stricter than `json.loads`, since what is wrong with a value is best reported where it is: a key that appears
    twice, NaN and infinity, nesting beyond `DEEPEST` levels, and text that no file could hold (NUL, halves of
    surrogate pairs) are refused.

    Args:
        path, what, way_out: as for `read_text`.

    Raises:
        DataError: there is no such file, or it is no such JSON; the line names the place in it.
    """
    text = read_text(path, what, way_out)
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_finite, parse_float=_finite, parse_int=_integer
        )
        _check_json(value, "", 0)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno} column {error.colno}"
    except RecursionError:
        reason = f"nested more than {DEEPEST} levels deep"
    except ValueError as error:
        reason = str(error)
    else:
        return value
    raise DataError(f"{path}: no {what} can be read there ({reason}); {way_out}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!r} appears twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:20]}… is no sensible number")
    return int(text)


def _check_json(value: Any, place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise RecursionError
    if isinstance(value, str) and not value.isprintable() and _unwritable(value):
        raise ValueError(f"{place or 'it'}: text with a NUL or half a surrogate pair")
    if isinstance(value, dict):
        for key, one in value.items():
            _check_json(key, f"{place}: a key", depth)
            _check_json(one, f"{place}.{key[:40]}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for i, one in enumerate(value):
            _check_json(one, f"{place}[{i}]", depth + 1)


def _unwritable(text: str) -> bool:
    return any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


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
    """What tells a change of each file, None where there is no regular file (a pipe would never end).

    Many at once, since network disks are slow.

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
