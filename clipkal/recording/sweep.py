"""Stopping a sweep whose jobs run in worker processes of this machine, so that each saves its checkpoint.

joblib kills all its workers as soon as one job is cut short or one worker dies. So the launcher, when it is asked
to stop, lets no new job begin, tells the workers that are at work, and waits for them before joblib hears of it.
Who is at work says a folder with one file a worker, named by its process id.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from clipkal.config import once
from clipkal.errors import ClipkalError, ConfigError
from clipkal.recording import sweep_live

WORKERS = (".JoblibLauncher", ".LocalLauncher")  # what hydra/launcher=joblib and submitit_local name
FOLDER = "CLIPKAL_SWEEP"  # in the environment of the workers
STOP = "stop"  # a file there: the sweep is to end, and no job begins
FAILED = "failed"  # the same, but the workers live on until the jobs that run have ended


class NotBegun(ClipkalError):
    """A job that was left out, since another failed and `sweep.on_error=stop`."""


class StopWorkers(Callback):
    """In the launcher: SIGTERM and Ctrl+C end the running jobs, then the sweep; a second one ends all at once."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global _launcher, _failed
        _failed = False
        if not config.hydra.launcher._target_.endswith(WORKERS):
            return  # others run their jobs here, or on machines that do not see the folder
        folder = tempfile.mkdtemp(prefix="clipkal-sweep-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[FOLDER], _launcher = folder, True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop_all)


class ForgetConfigs(Callback):
    """Drops the two configurations that Hydra keeps of every job until the sweep ends, 0.2 MB a job; nothing reads them."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None


def end_on_term() -> None:
    """In the launcher: SIGTERM ends the sweep as Ctrl+C does, unless it means something already; a job that learns comes first."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)


def let_go() -> None:
    """In the launcher, when the sweep has ended: SIGTERM is again what it was."""
    if signal.getsignal(signal.SIGTERM) is _exit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_objective(cfg: DictConfig, sweeper: str) -> None:
    """Raises ConfigError where a sweeper that chooses (any but Hydra's own grid) would have nothing to choose by."""
    if not sweeper.endswith(".BasicSweeper") and "none" in (cfg.fewshot.validation, cfg.optimizer.name):
        raise ConfigError(
            "the sweeper chooses by the NLL of validation images, which this run would not have: type "
            "fewshot.validation=fewshot, and a method that learns"
        )


@contextmanager
def job() -> Iterator[None]:
    """Around one job: in a worker of a sweep it can be stopped, and is not begun where the sweep is to end (NotBegun)."""
    sweep_live.hush()
    if _failed or (FOLDER in os.environ and Path(os.environ[FOLDER], FAILED).exists()):
        raise NotBegun("not begun: another job failed, and sweep.on_error=stop")
    if _launcher or FOLDER not in os.environ:
        yield
        return
    once.keep()
    mark = Path(os.environ[FOLDER], str(os.getpid()))

    def stop(number: int, frame: FrameType | None) -> None:
        if mark.exists():  # a worker without a job lives on: joblib would kill the others with it
            raise SystemExit(128 + number)

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal tells all processes; the launcher tells the workers
    signal.signal(signal.SIGTERM, stop)
    try:
        mark.touch()
        if mark.with_name(STOP).exists():
            raise SystemExit(128 + signal.SIGTERM)
        yield
    finally:
        mark.unlink(missing_ok=True)


def stop_after_this() -> None:
    """After a job that failed: no other begins, in this process or in other workers."""
    global _failed
    _failed = True
    if FOLDER in os.environ:
        Path(os.environ[FOLDER], FAILED).touch()


_failed = False
_launcher = False  # whether this process is that of `StopWorkers`


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _stop_all(number: int, frame: FrameType | None) -> None:
    stop = Path(os.environ[FOLDER], STOP)
    if not stop.exists():
        stop.touch()
        line = f"clipkal: {signal.Signals(number).name}: the running jobs stop after this step; once more stops at once"
        print(line, file=sys.stderr, flush=True)
        for worker in _at_work(stop.parent):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)
        while _at_work(stop.parent):
            time.sleep(0.05)
    raise SystemExit(128 + number)


def _at_work(folder: Path) -> list[int]:
    return [int(mark.name) for mark in folder.iterdir() if mark.name.isdecimal() and _alive(int(mark.name))]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
