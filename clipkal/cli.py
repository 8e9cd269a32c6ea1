"""The command `clipkal`: Hydra around one run, and one clear line for whatever the user can mend."""

import atexit
import gc
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipkal.app import path_of, run
from clipkal.config import conf_dir, explain, help, register
from clipkal.config.arguments import asked_for_help, folder_of, prepared, settings_shown
from clipkal.config.explain import lost_job
from clipkal.config.jobs import checked_first
from clipkal.config.once import once
from clipkal.errors import ClipkalError
from clipkal.recording import sweep, sweep_live, sweep_summary
from clipkal.recording.sweep_notes import note

log = logging.getLogger("clipkal")


def _task(cfg: DictConfig) -> float | None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return _job(cfg)
    try:
        return run(cfg)
    except (ClipkalError, OmegaConfBaseException) as error:
        fail(error)


def _job(cfg: DictConfig) -> float | None:
    """A run of a sweep: notes how it ended. Where it fails the others go on, and Hydra raises its error after them."""
    name = " ".join(HydraConfig.get().overrides.task)
    try:
        with sweep.job():
            sweep.check_objective(cfg, HydraConfig.get().sweeper._target_)
            value = run(cfg)
    except sweep.NotBegun:
        note("left out", name)
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ClipkalError) else f"{type(error).__name__}: {error}"
        note("failed", name, reason=" ".join(reason.split()))
        if not sweep_live.beside_table():  # which shows it
            log.error("%s", error)
        if OmegaConf.select(cfg, "sweep.on_error") == "stop":
            sweep.stop_after_this()
        raise
    note("done", name, path=str(path_of(cfg)), out=cfg.output_dir)
    _settle()
    return value


@cache
def _settle() -> None:
    """What the first job has imported stays, so the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # what is left over at the end belongs to the collector again


def main() -> None:
    """Runs `clipkal …`; exits with 2 after one line on bad input, with 1 after a traceback on a bug."""
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # errors reach us whole; we shorten those that are the user's
    task: TaskFunction = hydra.main(config_path=conf_dir(), config_name="config", version_base="1.3")(_task)
    try:
        register(folder_of(sys.argv[1:]))
        if (words := asked_for_help(sys.argv[1:])) is not None:
            return print(_help(words))
        sys.argv[1:] = prepared(sys.argv[1:])
        if settings := settings_shown(sys.argv[1:]):
            print(help.experiment_text(settings, _folders()))
        with once(), checked_first():
            task()  # type: ignore[call-arg]
    except (ClipkalError, HydraException, OmegaConfBaseException) as error:
        sweep_summary.finish()
        fail(error)
    except KeyboardInterrupt:
        sweep_summary.finish()
        print(
            "clipkal: stopped; the same command begins again, and goes on from checkpoints", file=sys.stderr
        )
        sys.exit(130)
    except BrokenPipeError:  # whoever read along, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (line := lost_job(error)) is None:
            raise
        sweep_summary.finish()
        fail(ClipkalError(line))
    finally:
        sweep.let_go()
        sweep_summary.finish()


def _help(words: list[str]) -> str:
    return "\n\n".join(help.about(word, _folders()) for word in words) if words else help.overview()


def _folders() -> list[Path]:
    """The user's own folder of options, if there is one."""
    return [Path(folder)] if (folder := folder_of(sys.argv[1:])) else []


def fail(error: BaseException) -> NoReturn:
    """Prints one line on standard error and exits with 2; CLIPKAL_DEBUG=1 in the environment shows the traceback."""
    if os.environ.get("CLIPKAL_DEBUG"):
        raise error
    text = str(error) if isinstance(error, ClipkalError) else explain(f"{error}\n{error.__cause__ or ''}")
    print(f"clipkal: {text}", file=sys.stderr)
    sys.exit(2)
