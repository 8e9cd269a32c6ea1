"""Entries of the feature cache in memory: what the jobs of a sweep share inside one worker.

The features of test sets and of prompts are the same for every seed and method. An entry is known by its header, which says
everything that defines it, so a job is never given another's; nothing changes one in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

Entry = dict[str, Tensor]
MOST = 512 << 20
"""Bytes that one worker keeps; the entries asked for longest ago go first."""
MOST_ENTRIES = 64
"""How many it keeps: the shots of every seed are an entry of their own, and no other job asks for them soon."""


class Memory:
    """The entries used last, `count` at most and within `most` bytes in all; one that alone has more is not kept."""

    def __init__(self, most: int = MOST, count: int = MOST_ENTRIES) -> None:
        self.most, self.count, self._entries, self._bytes = most, count, dict[str, Entry](), 0

    def get(self, key: str) -> Entry | None:
        """The entry of a key, if it is still here."""
        if key in self._entries:
            self._entries[key] = self._entries.pop(key)  # now the youngest
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keeps an entry, and lets go of what no longer fits."""
        self._bytes += _size(entry) - _size(self._entries.pop(key, {}))
        self._entries[key] = entry
        while self._bytes > self.most or len(self._entries) > self.count:
            self._bytes -= _size(self._entries.pop(next(iter(self._entries))))


_worker = Memory()
_sharing = False


def worker_memory() -> Memory | None:
    """The memory of this worker, where its jobs share one."""
    return _worker if _sharing else None


@contextmanager
def shared(sharing: bool = True) -> Iterator[None]:
    """Within the block, if `sharing`, entries are taken from the memory of this worker and kept there."""
    global _sharing
    before, _sharing = _sharing, sharing
    try:
        yield
    finally:
        _sharing = before


def _size(entry: Entry) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entry.values())
