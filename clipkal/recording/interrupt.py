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
    """Notes SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 so that the training loop can stop at a safe point.

        with Interrupt() as interrupt:
            for batch in batches:
                step(batch)
                if interrupt.requested:
                    save(); raise SystemExit(interrupt.exit_code)

    A second SIGTERM or SIGINT, `PATIENCE` seconds after the first signal or later, raises KeyboardInterrupt at once; one
    before that is the same request come by another way (a scheduler tells every process, and so does a launcher), and so
    are SIGUSR1 and SIGUSR2, which only schedulers send. The handlers are put back on exit, and those that another library
    had set (submitit's, which puts the job back into the queue on SIGUSR2; an outer Interrupt) are then told of their
    signals, in the order in which these came. Outside the main thread, where Python allows no handlers, nothing happens.
    """

    SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
    FINAL = ("SIGTERM", "SIGINT")
    PATIENCE = 1.0

    def __init__(self) -> None:
        self.noted: list[int] = []
        self._since = 0.0
        self._process = os.getpid()
        self._installed: list[_Installed] = []

    @property
    def signal(self) -> int | None:
        """The first signal that came."""
        return self.noted[0] if self.noted else None

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.noted)

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
            self.noted.append(number)
            final = signal.Signals(number).name in self.FINAL
            if final and time.monotonic() - self._since >= self.PATIENCE:
                raise KeyboardInterrupt
            return
        self._since = time.monotonic()
        self.noted.append(number)
        line = f"clipkal: {signal.Signals(number).name}: stopping after this step; once more stops at once\n"
        with suppress(OSError):
            os.write(2, line.encode())  # a logger or print may be half-way through a line of its own

    def __exit__(self, *_: object) -> None:
        for item in self._installed:
            signal.signal(item.number, item.previous if item.previous is not None else signal.SIG_DFL)
        previous = {item.number: item.previous for item in self._installed}
        self._installed = []
        for number in dict.fromkeys(self.noted):
            handler = previous.get(number)
            if callable(handler) and handler is not signal.default_int_handler:
                handler(number, None)
