"""Threads for pixel work: many images at once, and one thread for each of them.

Pillow decodes and resizes outside Python's lock, so threads do what processes would, without copying images
from one process to another. Images of 64 to 224 pixels are too small to share out among threads, and sharing
them was slower by a factor of twenty where other processes wanted the same cores; so each works alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses one CPU thread for what the calling thread asks of it in the block; other threads keep theirs.

    `torch.set_num_threads` would take MKL's threads from the whole process, the model's matrix products included.
    """
    torch.get_num_threads()  # torch sets up a thread when it is first used there, which would undo the limit
    with _openmp().limit(limits=1):
        yield


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """work(item) of each item, in order, done by `threads` threads while the caller uses earlier results.

    At most `ahead` items are under way or waiting to be taken, whatever their number. An exception of `work`
    is raised in its place; what was not begun by then is dropped.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="clipkal", initializer=_alone)
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _alone() -> None:
    """Limits the calling thread for the rest of its life, as `one_thread` does for a block."""
    torch.get_num_threads()
    _openmp().limit(limits=1)


@cache
def _openmp() -> ThreadpoolController:
    """The OpenMP libraries of this process; their number of threads is a setting of the calling thread."""
    return ThreadpoolController().select(user_api="openmp")
