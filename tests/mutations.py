"""Hostile variants of a good file: what editors, half-finished downloads and other programs leave behind.

`mutations` changes the bytes of a file, or the values in its JSON; each is the same in every run.
`refuses_or_reads` holds a reader to its word: it reads a variant, or raises one line that names the file.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipkal.errors import ClipkalError

VALUES = (
    *(None, True, False, 0, -1, 7, 2.5, 10**30, float("nan"), float("inf"), "", " ", "x", "7", "-1", "\0"),
    *("\ud800", "\ufeff", "a\nb", "../x", "/x", "C:\\x", "é", "e\u0301", "y" * 5000),
    *([], {}, [[]], [None], {"": None}, {"id": 3}, {"data": None}, ["a", 0, "b"]),
)  # fmt: skip
BYTES = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n",
    b'"',
    b"{",
    b"]",
    b"[" * 200,
    b"9" * 400,
    b"1e999",
    b",",
)


def mutations(good: bytes, count: int) -> Iterator[bytes]:
    """`count` variants of a file; of one that is JSON every second is JSON with another value in it."""
    try:
        value = json.loads(good)
    except ValueError:
        value = None
    for number in range(count):
        stream = random.Random(number)
        if value is None or number % 2:
            yield _other_bytes(good, stream)
        else:
            yield json.dumps(_other_value(value, stream)).encode()


def refuses_or_reads(read: Callable[[Path], Any], path: Path, good: bytes, count: int) -> tuple[int, int]:
    """How many variants were read and how many refused; fails on any other outcome."""
    outcomes = [0, 0]
    for content in mutations(good, count):
        path.write_bytes(content)
        try:
            read(path)
            outcomes[0] += 1
        except ClipkalError as error:
            line = str(error)
            assert path.name in line and len(line) < 20_000 and "\n" not in line, (content, line)
            line.encode()
            outcomes[1] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}: {content[:2000]!r}") from error
    return outcomes[0], outcomes[1]


def _other_bytes(good: bytes, stream: random.Random) -> bytes:
    """One to three cuts, doublings, insertions and replacements."""
    content = bytearray(good)
    for _ in range(stream.randint(1, 3)):
        start = stream.randrange(len(content) + 1)
        stop = min(len(content), start + stream.choice((0, 1, 1, 2, 8, 64, len(content))))
        piece = bytes(content[start:stop])
        put = stream.choice((b"", piece * 2, stream.choice(BYTES), stream.randbytes(1), piece.swapcase()))
        content[start:stop] = put
    return bytes(content)


def _other_value(good: Any, stream: random.Random) -> Any:
    """One or two values replaced, left out, doubled or put into deeper lists."""
    root = [copy.deepcopy(good)]
    for _ in range(stream.randint(1, 2)):
        parent, key = stream.choice(list(_places(root)))
        match stream.randrange(5):
            case 0 if parent is not root:
                del parent[key]
            case 1 if isinstance(parent, list) and parent is not root:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 2:
                for _ in range(stream.choice((1, 1, 30, 300))):
                    parent[key] = [parent[key]]
            case 3 if isinstance(parent, dict):
                parent[stream.choice(("", "\ud800", "x", "train", "id"))] = parent.pop(key)
            case _:
                parent[key] = copy.deepcopy(stream.choice(VALUES))
    return root[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (parent, key) of a tree, but for what lies very deep."""
    todo = [(node, 0)]
    while todo:
        parent, depth = todo.pop()
        pairs = list(parent.items()) if isinstance(parent, dict) else list(enumerate(parent))
        for key, child in pairs:
            yield parent, key
            if isinstance(child, dict | list) and depth < 30:
                todo.append((child, depth + 1))
