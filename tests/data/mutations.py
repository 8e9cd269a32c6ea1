"""Files and arrays with something wrong in them, and what a reader owes to whoever brings one."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from clipkal.errors import ClipkalError

COUNTS = [2_000, pytest.param(100_000, marks=pytest.mark.slow)]
PIECES = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b",", b",,", b";", b"\n", b"\r", b"\t", b" "),
    *(b"/", b"../", b"\\", b":", b"{", b"}", b"{}", b"[", b"]", b"nan", b"-1", b"null", b"train", b"eval", b"1e999"),
    *(b"9" * 400, b"a" * 5000, "café".encode(), "cafe\u0301".encode()),
]  # fmt: skip


def damaged(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Copies of a file, each with one to three bytes changed, pieces put in, taken out, doubled, or its end cut off."""
    stream = random.Random(seed)
    for _ in range(count):
        one = content
        for _ in range(stream.randint(1, 3)):
            start = stream.randrange(len(one) + 1)
            end = min(len(one), start + stream.choice((1, 1, 2, 5, 20)))
            one = stream.choice(
                (
                    lambda a, b, whole: whole[:a] + stream.choice(PIECES) + whole[a:],
                    lambda a, b, whole: whole[:a] + stream.choice(PIECES) + whole[b:],
                    lambda a, b, whole: whole[:a] + stream.randbytes(b - a) + whole[b:],
                    lambda a, b, whole: whole[:b] + whole[a:],
                    lambda a, b, whole: whole[:a] + whole[b:],
                    lambda a, b, whole: whole[:a] if stream.random() < 0.2 else whole,
                )
            )(start, end, one)
        yield one


def _put(array: np.ndarray, value: object, stream: random.Random) -> np.ndarray:
    other = array.copy() if array.dtype.kind != "U" else array.astype("U40")
    if other.size:
        other.reshape(-1)[stream.randrange(other.size)] = value
    return other


WRONG: list[Callable[[np.ndarray, random.Random], np.ndarray | None]] = [
    lambda a, s: None,
    lambda a, s: a[:0],
    lambda a, s: a[: len(a) // 2],
    lambda a, s: np.concatenate([a, a[:1]]),
    lambda a, s: a[None],
    lambda a, s: a[..., None],
    lambda a, s: a.reshape(-1)[0],
    lambda a, s: a[::-1].copy(),
    lambda a, s: np.zeros(a.shape),
    lambda a, s: np.zeros(a.shape, np.int64),
    lambda a, s: np.full(a.shape, 2**64 - 1, np.uint64),
    lambda a, s: np.ones(a.shape, bool),
    lambda a, s: np.ones(a.shape, complex),
    lambda a, s: np.full(a.shape, "x"),
    lambda a, s: np.full(a.shape, b"\xff"),
    lambda a, s: np.full(a.shape, None),
    lambda a, s: np.full(a.shape, np.datetime64("2020-01-01")),
    lambda a, s: np.zeros(a.shape, [("a", "i4"), ("b", "f8")]),
    lambda a, s: a.astype(a.dtype.newbyteorder()),
    lambda a, s: a.astype(float) if a.dtype.kind in "iu" else a,
    lambda a, s: a.astype(str),
    lambda a, s: _put(a, s.choice((-1, -7, 100, 3)), s) if a.dtype.kind == "i" else a,
    lambda a, s: _put(a, s.choice((np.nan, np.inf, -1.0, 0.0, 1e30)), s) if a.dtype.kind == "f" else a,
    lambda a, s: (
        _put(a, s.choice(("a\0b", "\ud800", "", " ", "nan", "\n", "../x", "eval", "val")), s)
        if a.dtype.kind == "U"
        else a
    ),
]


def disarrayed(arrays: dict[str, np.ndarray], seed: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Copies of named arrays, of which one or two are missing or have another type, shape or value."""
    stream = random.Random(seed)
    for _ in range(count):
        wrong = {key: stream.choice(WRONG) for key in stream.sample(list(arrays), stream.randint(1, 2))}
        changed = {key: change(np.atleast_1d(arrays[key]), stream) for key, change in wrong.items()}
        one = {key: array for key, array in {**arrays, **changed}.items() if array is not None}
        yield one


def tally(load: Callable[[], object], place: str | Sequence[str]) -> bool:
    """Whether a reader took what it was given; else it must have said why in one line that names the place."""
    try:
        load()
    except ClipkalError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 3000, said
        said.encode()
        assert any(name in said for name in ([place] if isinstance(place, str) else place)), said
        return False
    return True
