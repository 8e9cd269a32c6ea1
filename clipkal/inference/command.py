"""What the commands on a finished run share: which run, and how its model is computed."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipkal.commandline import Parser, positive, status_of

EXIT = """exit status: 0 when all is well, 3 when images could not be read and were left out, 2 on bad input (one line on
standard error), 130 when stopped"""
SKIPPED = 3
RUN_HELP = (
    "a run directory, such as outputs/rendered/mini/kalman/16shot-seed1, or the folder of a W&B artifact"
)


def run_command(
    parser: Parser, work: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None
) -> None:
    """Parses and works; exits with what `work` returns, or with 2 after one line on bad input."""
    options = parser.parse_args(arguments)
    sys.exit(status_of(parser.prog, work, options))


def quiet(threads: int | None) -> None:
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
