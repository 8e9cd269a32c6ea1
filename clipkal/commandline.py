"""What the commands beside `clipkal` share: help that keeps its lines, one line on bad input, and plain output."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.text import Text

from clipkal import __version__
from clipkal.errors import ClipkalError, ConfigError
from clipkal.tracking.writing import printable

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and so do the parsers of its subcommands."""

    def error(self, message: str) -> NoReturn:
        complain(self.prog.split()[0], f"{message} ({self.prog} --help shows how)")
        sys.exit(2)


def command_parser(name: str, about: str, examples: str) -> Parser:
    """Of a command: its name, what it is for, and a last page of examples."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=name, description=about, epilog=examples, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"clipkal {__version__}")
    return parser


def status_of(
    name: str, work: Callable[[argparse.Namespace], int | None], options: argparse.Namespace
) -> int:
    """The exit status that `work` returns, None being 0; or 2 after one line on bad input, 130 where it was stopped."""
    if sys.stdout is None:  # closed by who started the command
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (for the life of the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter shows a "?" for it
    try:
        return work(options) or 0
    except (HydraException, OmegaConfBaseException) as error:
        from clipkal.config import explain

        return _failed(name, error, explain(f"{error}\n{error.__cause__ or ''}"))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ClipkalError, OSError) as error:
        return _failed(name, error, str(error))
    except KeyboardInterrupt:
        complain(name, "stopped")
        return 130


def _failed(name: str, error: BaseException, text: str) -> int:
    """One line, and 2; CLIPKAL_DEBUG=1 in the environment shows the traceback."""
    if os.environ.get("CLIPKAL_DEBUG"):
        raise error
    complain(name, text)
    return 2


def complain(name: str, text: str) -> None:
    """One line on standard error, whatever line breaks a name has."""
    print(f"{name}: {printable(text)}", file=sys.stderr)


class _Console(Console):
    """Falls silent, where rich would end the command, when the reader of a pipe has seen enough: files are still to be written."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(**how: Any) -> Console:
    """Where tables go: as wide as the terminal, or 160 columns."""
    found = _Console(**how)
    if not found.is_terminal:
        found.width = 160
    return found


def say(where: Console, line: str, style: str = "") -> None:
    """A line as it is: what stands in brackets in the name of a folder is no markup."""
    where.print(Text(line, style), soft_wrap=True)


def picture_format(option: str, path: Path) -> str:
    """Pillow's name of the format in which a picture is written; ConfigError for an ending that is none of these."""
    try:
        return PICTURES[path.suffix.lower()]
    except KeyError as error:
        raise ConfigError(f"{option} {path}: must end in .png, .jpg or .webp") from error


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
