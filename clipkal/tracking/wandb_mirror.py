"""The W&B mirror of a run directory: whatever happens to it, the run goes on."""

import logging
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from clipkal.tracking.wandb_session import (
    FINISH_FACTOR,
    MODES,
    RunIdentity,
    TrackingSettings,
    brief,
    open_run,
    wanted_mode,
)
from clipkal.tracking.writing import plain, valid

log = logging.getLogger(__name__)

GRACE = 20.0  # seconds beyond its own timeouts that W&B gets before it is left alone
MOST_WAITING = 20_000  # records that wait for a W&B that does not answer

Job = Callable[[Any], object]


class WandbMirror:
    """Copies numbers and files of a run to W&B, on a thread of its own; it can neither raise nor block.

        with WandbMirror(cfg.tracking, run_id, directory.path, run=run, config=config) as mirror:
            mirror.log({"train/loss": 0.3}, step)
            mirror.summary({"id/accuracy": 0.9})

    `run` has dataset, backbone, method, shots and seed, which become group, name and tags. The W&B run has
    the id of the run, so that a resumed run continues its charts. Online without a login or a server becomes
    offline; any other fault switches the mirror off. Either way there is one warning. `mode` says what it is
    now.
    """

    def __init__(
        self,
        cfg: TrackingSettings,
        run_id: str,
        directory: str | Path,
        *,
        run: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.mode = wanted_mode(cfg.mode) if cfg.mode in MODES else "disabled"
        self.url: str | None = None
        self._cfg = cfg
        self._identity = RunIdentity(
            run_id, Path(directory), plain(run or {}, valid), plain(config or {}, valid)
        )
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        self._warned = False
        self._abandoned = False
        self._exit_code = 0
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        if cfg.mode not in MODES:
            self._warn(f"tracking.mode={cfg.mode} is none of {', '.join(MODES)}; going on without W&B")

    # -- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self.mode != "disabled":
            self._thread.start()
            if not self._opened.wait(self._cfg.timeout + GRACE):
                self._abandon("W&B did not start in time")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run, with what was logged so far; called on leaving the context."""
        if self.mode == "disabled" or not self._thread.is_alive():
            return
        self._exit_code = exit_code
        self._jobs.put(None)
        self._thread.join(FINISH_FACTOR * self._cfg.timeout + GRACE)
        if self._thread.is_alive():
            self._abandon("W&B did not finish in time")

    def _abandon(self, what: str) -> None:
        """Leaves a hanging W&B to itself; its wait at the end of the process is left to a daemon thread."""
        self._warn(f"{what}; going on without it ({self._sync_hint()})")
        self.mode = "disabled"
        self._abandoned = True
        threading.Thread(target=_teardown, name="wandb-teardown", daemon=True).start()

    # -- what can be mirrored --------------------------------------------------------------------------------

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step, named like `train/loss`, `val/accuracy`, `ood/<set>/nll`."""
        record = plain(values, valid) | {"step": step}  # now: the caller may go on to change its dict
        self._submit(lambda run: run.log(record))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers, instead of W&B's default of the last value; nested names are joined by `/`."""
        record = _flat(plain(values, valid))
        self._submit(lambda run: run.summary.update(record))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table of results."""
        data = [list(row) for row in rows]
        self._submit(lambda run: run.log({name: _wandb().Table(columns=list(columns), data=data)}))

    def image(self, path: str | Path, name: str | None = None) -> None:
        """A figure that was saved to `path`; named like its file."""
        path = Path(path)
        self._submit(lambda run: run.log({name or f"figures/{path.stem}": _wandb().Image(str(path))}))

    def artifact(self, paths: Iterable[str | Path], name: str = "run", kind: str = "result") -> None:
        """Files as one versioned artifact; they are read where they lie, not copied."""
        found = [Path(path) for path in paths]
        self._submit(lambda run: run.log_artifact(_artifact(f"{name}-{self._identity.run_id}", kind, found)))

    # -- the thread that talks to W&B ------------------------------------------------------------------------

    def _submit(self, job: Job) -> None:
        if self.mode == "disabled":
            return
        if self._jobs.qsize() > MOST_WAITING:
            self._abandon("W&B does not answer")
            return
        self._jobs.put(job)

    def _work(self) -> None:
        run = self._open()
        self._opened.set()
        if run is None or self._abandoned:
            return
        while (job := self._jobs.get()) is not None:
            self._try(job, run, "W&B did not take a record")
        if not self._try(lambda run: run.finish(exit_code=self._exit_code), run, "W&B did not finish"):
            _teardown()  # the next run of this process gets a W&B that is whole

    def _open(self) -> Any:
        try:
            started = time.perf_counter()
            run, mode, reason = open_run(self._cfg, self.mode, self._identity)
        except BaseException as error:
            self.mode = "disabled"
            self._warn(f"W&B could not start ({brief(error)}); going on without it")
            return None
        self.mode = "disabled" if self._abandoned else mode
        self.url = getattr(run, "url", None) if mode == "online" else None
        log.debug("W&B %s after %.2f s", self.mode, time.perf_counter() - started)
        if self.url:
            log.info("W&B: %s", self.url)
        if reason and not self._abandoned:
            self._warn(f"{reason}; going on offline, {self._sync_hint()}")
        return run

    def _try(self, job: Job, run: Any, what: str) -> bool:
        try:
            job(run)
        except BaseException as error:
            self._warn(f"{what} ({brief(error)}); the run goes on, {self._sync_hint()}")
            return False
        return True

    def _sync_hint(self) -> str:
        folder = shlex.quote(str(self._identity.directory / "wandb"))
        return f"send later with: wandb sync {folder}/{'run' if self.mode == 'online' else 'offline-run'}-*"

    def _warn(self, line: str) -> None:
        """One warning a run: the first says why, the rest would only repeat it."""
        if not self._warned:
            self._warned = True
            log.warning("%s", line)


def _wandb() -> Any:
    import wandb

    return wandb


def _artifact(name: str, kind: str, paths: Sequence[Path]) -> Any:
    artifact = _wandb().Artifact(name, type=kind)
    for path in paths:
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def _teardown() -> None:
    try:
        _wandb().teardown()
    except BaseException as error:
        log.debug("W&B teardown: %s", error)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat
