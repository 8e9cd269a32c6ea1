"""A progress bar that appears only where someone is watching and only for work that takes a while."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds of work before the bar appears


@contextmanager
def progress_bar(title: str, total: int, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`; on a terminal a bar appears after two seconds and goes when the work is done.

    Args:
        title: what is being done.
        total: how many items there are.
        enabled: False shows nothing, as does an output that is no terminal.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda n: None
        return
    bar = Progress(*_columns(), console=console, transient=True)
    task = bar.add_task(title, total=total)
    start = time.monotonic()

    def advance(n: int) -> None:
        bar.advance(task, n)
        if not bar.live.is_started and time.monotonic() - start > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def _columns() -> list:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
