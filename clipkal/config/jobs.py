"""What is looked at before the first job of a sweep begins: its folder, what a sweeper chooses by, and all its jobs.

Hydra composes every job beforehand, so that an unknown key or option stops a sweep at once, but it knows nothing of our own
check. So `checked_first` gives its sweepers one that does both.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from clipkal import files
from clipkal.config.check import check
from clipkal.errors import ConfigError

ROOM = 1 << 16  # bytes: more than Hydra's record of a sweep

_composed = Sweeper.validate_batch_is_legal


class CheckSweep(Callback):
    """One line and the end, where the folder cannot be written, the sweeper would choose unfairly, or there is no SLURM."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check_folder(config)
            check_sweeper(config.hydra.sweeper)
            check_launcher(config.hydra.launcher)
        except ConfigError as error:  # which Hydra would make a warning
            print(f"clipkal: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def check_folder(config: DictConfig) -> None:
    """Raises ConfigError where the folder of a sweep, made if need be, has no name before its jobs or takes no file."""
    try:
        folder = files.expanded(str(config.hydra.sweep.dir))
    except OmegaConfBaseException:
        raise ConfigError(
            "output_dir of a sweep is one folder for all its jobs, and cannot be named by one of them: every job has a "
            "folder of its own in it"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
    except OSError as error:
        raise ConfigError(
            f"{folder}: no sweep can be written there ({error.strerror}); set output_dir=… to another folder"
        ) from None


def check_sweeper(sweeper: DictConfig) -> None:
    """Raises ConfigError where a sweeper that chooses is to look for the highest validation NLL, or could not keep its study."""
    direction = OmegaConf.select(sweeper, "direction")
    words = direction if OmegaConf.is_list(direction) else [direction]
    if direction is not None and [str(one).rpartition(".")[2].lower() for one in words] != ["minimize"]:
        raise ConfigError(
            f"hydra.sweeper.direction={direction}: the sweeper chooses by the NLL of validation images, of which the lowest "
            "is the best; leave it at minimize"
        )
    if OmegaConf.select(sweeper, "storage") and not version("sqlalchemy").startswith("1."):
        raise ConfigError(
            "hydra.sweeper.storage: Optuna 2 keeps a study with SQLAlchemy 1 only: pip install 'sqlalchemy<2' 'alembic<1.16'; "
            "or leave it out, since the same command tries the same settings and skips what is done"
        )


def check_launcher(launcher: DictConfig) -> None:
    """Raises ConfigError where jobs are for SLURM and its commands are not here."""
    if launcher._target_.endswith(".SlurmLauncher") and not shutil.which("srun"):
        raise ConfigError(
            "this machine has no SLURM (there is no srun): type the command on a login node of the cluster, or "
            "hydra/launcher=joblib for processes of this machine"
        )


@contextmanager
def checked_first() -> Iterator[None]:
    """Within the block a sweep with a job that `check` refuses begins no job: ConfigError with that job's settings."""
    Sweeper.validate_batch_is_legal = _check_all  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = _composed  # type: ignore[method-assign]


def _check_all(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    assert self.hydra_context is not None and self.config is not None
    for number, overrides in enumerate(batch):
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        try:
            _check_job(cfg, number)
        except ConfigError as error:
            which = " ".join(_own(batch, overrides))
            raise ConfigError(f"{error} ({which}; none of the {len(batch)} jobs was begun)") from None


def _check_job(cfg: DictConfig, number: int) -> None:
    """What a job would say first. Places are left to the job: a dataset that is missing stops no other."""
    before = HydraConfig.instance().cfg
    with open_dict(cfg):
        cfg.hydra.job.update(num=number, id=f"job_id_for_{number}")
    HydraConfig.instance().set_config(cfg)  # which values such as ${hydra:job.num} look at
    try:
        with open_dict(cfg):
            del cfg["hydra"]
        with suppress(OmegaConfBaseException):
            check(cfg, places=False)
    finally:
        HydraConfig.instance().cfg = before


def _own(batch: Sequence[Sequence[str]], overrides: Sequence[str]) -> list[str]:
    """The settings of a job that not all others have; all of them where that is none."""
    common = set(batch[0]).intersection(*batch)
    return [one for one in overrides if one not in common] or list(overrides)
