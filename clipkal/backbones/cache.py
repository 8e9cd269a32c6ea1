"""Features on disk: computed once, checked on every read, never a reason to fail.

An entry is one safetensors file named by the digest of its header, the words that define its content (model,
weights, precision, transform, images). The header is stored inside as well, with a digest of the tensors: a
file that is truncated, damaged or of another model is told apart, reported in one line and computed again.
Two processes that need the same entry share one computation.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout
from torch import uint8

from clipkal import files
from clipkal.backbones.memory import Entry, worker_memory

log = logging.getLogger(__name__)
FORMAT = "1"  # raise when the meaning of an entry changes
CacheDir = str | Path | bool | None
Header = dict[str, str]
_given_up: set[Path] = set()  # folders that the user has been told of


def directory(cache_dir: CacheDir = None) -> Path | None:
    """The folder given; `$CLIPKAL_CACHE` or `~/.cache/clipkal` for None; no cache (None) for False and "off".

    With a warning, there is none either where ~ is nobody's home.
    """
    if cache_dir is False or str(cache_dir).lower() in ("off", "false"):
        return None
    if cache_dir is None or cache_dir is True:
        cache_dir = os.environ.get("CLIPKAL_CACHE") or Path("~/.cache/clipkal")
    try:
        return Path(cache_dir).expanduser()
    except RuntimeError as error:
        _go_on_without(Path(cache_dir), error)
        return None


def entry_path(folder: Path, header: Header) -> Path:
    """The file of an entry, named by everything that defines it."""
    return folder / f"{header['kind']}-{files.digest(FORMAT, json.dumps(header, sort_keys=True))}.safetensors"


def load_or_compute(
    cache_dir: CacheDir,
    header: Header,
    compute: Callable[[], Entry],
    accept: Callable[[Entry], bool] = lambda entry: True,
) -> Entry:
    """The entry from disk where there is a sound one; otherwise computed, and stored where that is possible.

    Args:
        cache_dir: see `directory`.
        header: what defines the entry; "kind" begins the file's name.
        compute: makes the entry; its exceptions pass through and nothing is stored.
        accept: whether an entry that is found will do.

    Jobs of a sweep share entries in the memory of their worker, see `clipkal.backbones.memory`.
    """
    memory, key = worker_memory(), json.dumps(header, sort_keys=True)
    known = memory.get(key) if memory else None
    if known is not None and accept(known):
        return known
    entry = _stored_or_computed(cache_dir, header, compute, accept)
    if memory:
        memory.put(key, entry)
    return entry


def _stored_or_computed(
    cache_dir: CacheDir, header: Header, compute: Callable[[], Entry], accept: Callable[[Entry], bool]
) -> Entry:
    folder = directory(cache_dir)
    if folder is None:
        return compute()
    path = entry_path(folder, header)
    found = _read(path, header)
    if found is not None and accept(found):
        return found
    with _writable(path) as writable:
        if writable:  # another process may have stored it while this one waited
            found = _read(path, header, quiet=True)
            if found is not None and accept(found):
                return found
        entry = compute()
        if writable:
            _write(path, header, entry)
        return entry


def _go_on_without(folder: Path, error: Exception) -> None:
    """Tells once a process and folder that its entries cannot be kept."""
    if folder not in _given_up:
        _given_up.add(folder)
        reason = " ".join(str(error).split()).rstrip(".")
        log.warning(
            "feature cache: %s cannot be used (%s); going on without; to choose another folder set data.cache "
            "or CLIPKAL_CACHE",
            folder,
            reason,
        )


def _read(path: Path, header: Header, quiet: bool = False) -> Entry | None:
    """The entry, or None with one warning line unless it simply does not exist."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            stored = file.metadata() or {}
            entry = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        problem = _problem(stored, header, entry)
    except (SafetensorError, OSError, ValueError) as error:
        problem = f"is damaged ({error})"
    if problem:
        if not quiet:
            log.warning("feature cache: %s %s; computing it again", path, problem)
        return None
    return entry


def _problem(stored: dict[str, str], header: Header, entry: Entry) -> str:
    if stored.get("format") != FORMAT or stored.get("header") != json.dumps(header, sort_keys=True):
        return "belongs to another model, set or version"
    if stored.get("content") != _content(entry):
        return "is damaged (its content does not match its digest)"
    return ""


def _write(path: Path, header: Header, entry: Entry) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    words = {"format": FORMAT, "header": json.dumps(header, sort_keys=True), "content": _content(entry)}
    try:
        with files.atomic_path(path) as temporary:
            save_file(entry, temporary, metadata=words)
    except (OSError, SafetensorError) as error:  # the latter on a full disk
        _go_on_without(path.parent, error)


def _content(entry: Entry) -> str:
    parts: list[str | bytes] = []
    for name, tensor in sorted(entry.items()):
        data = tensor.contiguous().reshape(-1).view(uint8).numpy().tobytes()
        parts += [f"{name} {tensor.dtype} {list(tensor.shape)}", data]
    return files.digest(*parts)


@contextmanager
def _writable(path: Path) -> Iterator[bool]:
    """Holds the entry's lock, however long another process has it; yields False where it cannot write."""
    with ExitStack() as held:
        writable = True
        try:
            try:
                held.enter_context(files.locked(path, timeout=0))
            except Timeout:
                log.info("feature cache: another process is computing %s; waiting for it", path.name)
                held.enter_context(files.locked(path, timeout=-1))
        except (OSError, ValueError, NotImplementedError) as error:
            _go_on_without(path.parent, error)
            writable = False
        yield writable
