"""The signals that ask one run to stop: the training loop ends at a safe point, with a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


@dataclass
class _Installed:
    number: int
    previous: Handler


class Interrupt:
    """Notes SIGTERM, SIGINT and SIGUSR1 so that the training loop can stop at a safe point.

        with Interrupt() as interrupt:
            for batch in batches:
                step(batch)
                if interrupt.requested:
                    save(); raise SystemExit(interrupt.exit_code)

    A second signal, `PATIENCE` seconds after the first or later, raises KeyboardInterrupt at once; one before
    that is the same request come by another way (a scheduler tells every process, and so does a launcher). The
    handlers are put back on exit, and a handler that another library had set (a cluster's requeue, an outer
    Interrupt) is then told of the signal. Outside the main thread, where Python allows no handlers, nothing
    happens.
    """

    SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
    PATIENCE = 1.0

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._process = os.getpid()
        self._installed: list[_Installed] = []

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl+C, 143 after any other request, 0 without."""
        if self.signal is None:
            return 0
        return 130 if self.signal == signal.SIGINT else 143

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                    self._installed.append(_Installed(number, signal.signal(number, self._note)))
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data worker: its parent tells it when to stop
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self.requested:
            if time.monotonic() - self._since >= self.PATIENCE:
                raise KeyboardInterrupt
            return
        self.signal, self._since = number, time.monotonic()
        line = f"clipkal: {signal.Signals(number).name}: stopping after this step; once more stops at once\n"
        with suppress(OSError):
            os.write(2, line.encode())  # a logger or print may be half-way through a line of its own

    def __exit__(self, *_: object) -> None:
        for item in self._installed:
            signal.signal(item.number, item.previous if item.previous is not None else signal.SIG_DFL)
        waiting = [item.previous for item in self._installed if item.number == self.signal]
        self._installed = []
        for previous in waiting:
            if callable(previous) and previous is not signal.default_int_handler and self.signal is not None:
                previous(self.signal, None)
