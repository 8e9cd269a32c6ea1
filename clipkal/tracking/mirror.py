"""The mirror of a run directory on a dashboard: whatever happens to it, the run goes on."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from clipkal.tracking.tracker import (
    Lines,
    RunIdentity,
    Tracker,
    TrackingSettings,
    check_installed,
    flat,
    opener,
)
from clipkal.tracking.wandb_session import FINISH_FACTOR, MODES, brief, teardown, wanted_mode
from clipkal.tracking.writing import plain, valid

log = logging.getLogger(__name__)

GRACE = 20.0  # seconds beyond its own timeouts that a tracker gets before it is left alone
MOST_WAITING = 20_000  # records that wait for a tracker that does not answer
TEARDOWN = "mirror-teardown"  # the name of the thread that ends a service which hangs
TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard", "trackio": "trackio"}

Job = Callable[[Tracker], object]


class Mirror:
    """Copies numbers and files of a run to a dashboard, on a thread of its own; it can neither raise nor block.

        with Mirror(cfg.tracking, run_id, directory.path, run=run, config=config) as mirror:
            mirror.log({"train/loss": 0.3}, epoch=1, images_seen=160, step=10)
            mirror.summary({"id/accuracy": 0.9})

    `cfg.backend` says which dashboard: wandb, tensorboard or trackio. `run` has dataset, backbone, method, shots and
    seed, which become group, name and tags; `axis` is what the training curves are drawn over. W&B online without a login
    or a server becomes offline; any other fault switches the mirror off. Either way there is one warning. `mode` says
    what it is now, `later` which command sends or shows the run, `wants_all` that what was logged before the run was
    interrupted should be logged again.

    Raises ConfigError, before anything has begun, where the package of an optional dashboard is not installed.
    """

    def __init__(
        self,
        cfg: TrackingSettings,
        run_id: str,
        directory: str | Path,
        *,
        run: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        axis: str = "epoch",
        job_type: str = "train",
    ) -> None:
        self.mode = wanted_mode(cfg.mode) if cfg.mode in MODES else "disabled"
        self.url: str | None = None
        self.later = ""
        self.wants_all = False
        self._cfg = cfg
        self._title = TITLES[cfg.backend]
        self._identity = RunIdentity(
            run_id, Path(directory), plain(run or {}, valid), plain(config or {}, valid), axis, job_type
        )
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        self._warned = False
        self._abandoned = False
        self._exit_code = 0
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        if cfg.mode not in MODES:
            self._warn(
                f"tracking.mode={cfg.mode} is none of {', '.join(MODES)}; going on without {self._title}"
            )
        if self.mode != "disabled":
            check_installed(cfg.backend)

    @property
    def later_line(self) -> str:
        """One line that says how to send the run, or to look at it; "" where it is already sent."""
        if not self.later or self.mode in ("online", "disabled"):
            return ""
        return f"{self._title}: {'send' if self._cfg.backend == 'wandb' else 'look'} with: {self.later}"

    # -- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.mode != "disabled":
            self._thread.start()
            if not self._opened.wait(self._cfg.timeout + GRACE):
                self._abandon(f"{self._title} did not start in time")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def finish(self, exit_code: int = 0) -> None:
        """Ends the dashboard's run, with what was logged so far; called on leaving the context."""
        if self.mode == "disabled" or not self._thread.is_alive():
            return
        self._exit_code = exit_code
        self._jobs.put(None)
        self._thread.join(FINISH_FACTOR * self._cfg.timeout + GRACE)
        if self._thread.is_alive():
            self._abandon(f"{self._title} did not finish in time")

    def _abandon(self, what: str) -> None:
        """Leaves a hanging tracker to itself; its wait at the end of the process is left to a daemon thread."""
        self._warn(f"{what}; going on without it{self._hint(' (', ')')}")
        self.mode = "disabled"
        self._abandoned = True
        threading.Thread(target=self._teardown, name=TEARDOWN, daemon=True).start()

    # -- what can be mirrored --------------------------------------------------------------------------------

    def log(self, values: Mapping[str, float], **axes: float) -> None:
        """Numbers of one moment, named like `train/loss`, `val/nll`, `ood/<set>/accuracy`.

        axes: where the moment is: epoch, images_seen, step.
        """
        record = plain(values, valid)  # now: the caller may go on to change its dict
        self._submit(lambda tracker: tracker.log(record, axes))

    def config(self, values: Mapping[str, Any]) -> None:
        """Adds to the configuration what is known only later: digests, commit, versions, hardware."""
        record = plain(values, valid)
        self._submit(lambda tracker: tracker.config(record))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The headline figures, and no others; nested names are joined by `/`."""
        record = flat(plain(values, valid))
        self._submit(lambda tracker: tracker.summary(record))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table; a cell is a number, a text, None, or a PIL image."""
        data = [[valid(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        self._submit(lambda tracker: tracker.table(name, list(columns), data))

    def lines(self, name: str, chart: Lines) -> None:
        """Curves in a chart of the dashboard's own."""
        self._submit(lambda tracker: tracker.lines(name, chart))

    def image(self, path: str | Path, name: str | None = None) -> None:
        """A figure that was saved to `path`; named like its file."""
        path = Path(path)
        self._submit(lambda tracker: tracker.image(name or f"figures/{path.stem}", path))

    def artifact(self, kind: str, paths: Iterable[str | Path]) -> None:
        """Files as one versioned artifact of this kind; those that are there are read where they lie, not copied."""
        found = [path for path in map(Path, paths) if path.is_file()]
        if found:
            self._submit(lambda tracker: tracker.artifact(kind, found))

    # -- the thread that talks to the dashboard --------------------------------------------------------------

    def _submit(self, job: Job) -> None:
        if self.mode == "disabled":
            return
        if self._jobs.qsize() > MOST_WAITING:
            self._abandon(f"{self._title} does not answer")
            return
        self._jobs.put(job)

    def _work(self) -> None:
        tracker = self._open()
        self._opened.set()
        if tracker is None or self._abandoned:
            return
        while (job := self._jobs.get()) is not None:
            self._try(job, tracker, f"{self._title} did not take a record")
        end = lambda tracker: tracker.finish(self._exit_code)
        if not self._try(end, tracker, f"{self._title} did not finish"):
            self._teardown()  # the next run of this process gets a service that is whole

    def _open(self) -> Tracker | None:
        for (
            thread
        ) in threading.enumerate():  # of an earlier run of this process, whose tracker was left alone
            if thread.name == TEARDOWN:
                thread.join(self._cfg.timeout)
        try:
            started = time.perf_counter()
            open_tracker = opener(self._cfg.backend)
            tracker, mode, reason = open_tracker(self._cfg, self.mode, self._identity)
        except BaseException as error:
            self.mode = "disabled"
            self._warn(f"{self._title} could not start ({brief(error)}); going on without it")
            return None
        self.mode = "disabled" if self._abandoned else mode
        self.url, self.later, self.wants_all = tracker.url, tracker.later, tracker.continues
        log.debug("%s %s after %.2f s", self._title, self.mode, time.perf_counter() - started)
        if self.url:
            log.info("%s: %s", self._title, self.url)
        if reason and not self._abandoned:
            self._warn(f"{reason}; going on offline{self._hint(', ')}")
        return tracker

    def _try(self, job: Job, tracker: Tracker, what: str) -> bool:
        try:
            job(tracker)
        except BaseException as error:
            self._warn(f"{what} ({brief(error)}); the run goes on{self._hint(', ')}")
            return False
        return True

    def _hint(self, before: str, after: str = "") -> str:
        return f"{before}send later with: {self.later}{after}" if self.later.startswith("wandb") else ""

    def _teardown(self) -> None:
        if self._cfg.backend == "wandb":
            teardown()

    def _warn(self, line: str) -> None:
        """One warning a run: the first says why, the rest would only repeat it."""
        if not self._warned:
            self._warned = True
            log.warning("%s", line)
