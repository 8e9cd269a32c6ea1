"""W&B records on disk: what a continued offline run is called, and the line that sends them.

Offline, W&B cannot resume: runs that share an id replace one another when they are sent. So a run that goes on offline
gets an id of its own (`<run id>-2`) in the same group, is given everything that was logged before (metrics.csv has it),
and the record that it replaces is set aside, under a name that `wandb sync …/offline-run-*` leaves alone.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

OFFLINE, ONLINE, ASIDE = "offline-run-", "run-", "replaced-"
MARK = ".synced"
"""What W&B adds to the name of a record that was sent."""


def records(directory: Path) -> list[Path]:
    """Every W&B record of a run directory, those set aside too, the oldest first."""
    starts = (OFFLINE, ONLINE, ASIDE)
    return sorted(path for path in (directory / "wandb").glob("*run-*") if path.name.startswith(starts))


def record_id(run_id: str, mode: str, earlier: Sequence[Path]) -> str:
    """The id of a new W&B record of the run: its own, but for one offline that comes after `earlier` ones."""
    return f"{run_id}-{len(earlier) + 1}" if mode == "offline" and earlier else run_id


def set_aside(earlier: Sequence[Path]) -> None:
    """Renames the offline records that a new one replaces, unless they were sent."""
    for path in earlier:
        if path.name.startswith(OFFLINE) and not _sent(path):
            path.rename(path.with_name(ASIDE + path.name))


def _sent(record: Path) -> bool:
    return any(path.name.endswith(MARK) for path in record.iterdir())


def sync_line(directory: Path, mode: str = "offline") -> str:
    """What to type to send the records of one run."""
    folder = shlex.quote(str(directory / "wandb"))
    return (
        f"wandb sync {folder}/{OFFLINE}*"
        if mode == "offline"
        else f"wandb sync --include-online {folder}/{ONLINE}*"
    )


def unsent(output_dir: Path) -> list[Path]:
    """The offline records below `outputs/<dataset>/<backbone>/<method>/<run>/` that were not sent yet."""
    return [path for path in output_dir.glob(f"*/*/*/*/wandb/{OFFLINE}*") if not _sent(path)]


class SyncLine(Callback):
    """Says at the end of a sweep how to send what its jobs recorded offline."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.output_dir).expanduser()
        if config.tracking.backend != "wandb" or os.environ.get("WANDB_MODE") == "disabled":
            return
        if config.tracking.mode != "disabled" and (count := len(unsent(folder))):
            what = "one run" if count == 1 else f"{count} runs"
            print(f"W&B: send {what} with: wandb sync {shlex.quote(str(folder))}/*/*/*/*/wandb/{OFFLINE}*")
