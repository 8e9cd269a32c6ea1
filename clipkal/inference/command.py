"""What the commands share: help that keeps its lines, one line on bad input, and plain output."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text

from clipkal import __version__
from clipkal.errors import ClipkalError
from clipkal.tracking.writing import printable

EXIT = """exit status: 0 when all is well, 3 when images could not be read and were left out, 2 on bad input (one line on
standard error), 130 when stopped"""
SKIPPED = 3
RUN_HELP = (
    "a run directory, such as outputs/rendered/mini/kalman/16shot-seed1, or the folder of a W&B artifact"
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, name: str, about: str, examples: str):
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=name, description=about, epilog=examples, formatter_class=raw)
        self.add_argument("--version", action="version", version=f"clipkal {__version__}")

    def error(self, message: str) -> NoReturn:
        complain(self.prog, f"{message} ({self.prog} --help shows how)")
        sys.exit(2)


def run_command(
    parser: Parser, work: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None
) -> None:
    """Parses and works; exits with what `work` returns, or with 2 after one line on bad input."""
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter shows a "?" for it
    try:
        status = work(options)
    except (HydraException, OmegaConfBaseException) as error:
        from clipkal.config import explain

        status = failed(parser.prog, error, explain(f"{error}\n{error.__cause__ or ''}"))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (ClipkalError, OSError) as error:
        status = failed(parser.prog, error, str(error))
    except KeyboardInterrupt:
        complain(parser.prog, "stopped")
        status = 130
    sys.exit(status)


def failed(name: str, error: BaseException, text: str) -> int:
    """One line, and 2; CLIPKAL_DEBUG=1 in the environment shows the traceback."""
    if os.environ.get("CLIPKAL_DEBUG"):
        raise error
    complain(name, text)
    return 2


def complain(name: str, text: str) -> None:
    """One line on standard error, whatever line breaks a name has."""
    print(f"{name}: {printable(text)}", file=sys.stderr)


def console(**how: Any) -> Console:
    """Where tables go: as wide as the terminal, or 160 columns."""
    found = Console(**how)
    if not found.is_terminal:
        found.width = 160
    return found


def say(where: Console, line: str, style: str = "") -> None:
    """A line as it is: what stands in brackets in the name of a folder is no markup."""
    where.print(Text(line, style), soft_wrap=True)


def quiet(threads: int | None = None) -> None:
    """Log lines of clipkal as lines, those of other libraries from warnings on; torch's threads as the run had them."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How and where a run's model is computed; each default is the run's own."""
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:1 (default: the run's)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="of the image tower (default: the run's)"
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, help="images a forward pass (default: the run's)"
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        type=Path,
        help="where the backbone's weights are now; they must be the same",
    )
    parser.add_argument("--workers", metavar="N", type=positive, default=0, help="threads that decode images")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def load(options: argparse.Namespace) -> Any:
    """The run that the command line names, loaded as it says."""
    check_run(options.run)
    from clipkal.inference.run import load_run

    run = load_run(options.run, options.device, options.weights, options.precision, options.batch_size)
    quiet(run.cfg.threads)
    return run


def check_run(path: Path) -> None:
    """Tells what is wrong with a run directory before torch is imported, which takes seconds."""
    from clipkal.inference.record import read_record

    read_record(path)


def positive(text: str) -> int:
    """A whole number from 1 to 99999."""
    number = int(text) if text.isdecimal() and len(text) < 6 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 99999")
    return number


def share(text: str) -> float:
    """A number from 0 to below 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1, such as 0.1")
    return number
