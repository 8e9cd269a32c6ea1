"""The command `clipkal`: Hydra around one run, and one clear line for whatever the user can mend."""

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from clipkal.app import run
from clipkal.config import conf_dir, explain, help, register
from clipkal.config.arguments import asked_for_help, folder_of, prepared, settings_shown
from clipkal.errors import ClipkalError
from clipkal.recording import sweep

log = logging.getLogger("clipkal")


def _task(cfg: DictConfig) -> float | None:
    try:
        with sweep.job():
            return run(cfg)
    except (ClipkalError, OmegaConfBaseException) as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            fail(error)
        log.error("%s", error)  # the other jobs of the sweep go on; Hydra names this one at the end
        raise


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
        task()  # type: ignore[call-arg]
    except (ClipkalError, HydraException, OmegaConfBaseException) as error:
        fail(error)
    except BrokenPipeError:  # whoever read along, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


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
