"""`clipkal-pretrain`: make the embedded model from nothing but code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from clipkal.commandline import command_parser, status_of
from clipkal.data.world.styles import STYLES
from clipkal.pretraining.evaluation import zero_shot
from clipkal.pretraining.model import MERGES_NAME, load_tokenizer, write_merges
from clipkal.pretraining.release import PACKAGED, load_release, write_release
from clipkal.pretraining.stream import Curriculum
from clipkal.pretraining.training import Progress, Recipe, Trainer

NAME = "clipkal-pretrain"
EXAMPLES = """examples:
  clipkal-pretrain --out pretraining              # train, then write pretraining/release
  clipkal-pretrain --out pretraining --resume     # go on after an interruption
  clipkal-pretrain --evaluate                     # zero-shot table of the packaged model, as JSON"""
DEFAULT_SAMPLES = 320_000
CHECKPOINT_NAME = "checkpoint.pt"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(NAME, "Pretrain the embedded mini-CLIP.", EXAMPLES)
    parser.add_argument(
        "--out", type=Path, default=Path("pretraining"), help="folder of checkpoint and release"
    )
    parser.add_argument(
        "--samples", type=int, default=DEFAULT_SAMPLES, help="image-caption pairs to train on"
    )
    parser.add_argument("--batch-size", type=int, default=Curriculum.batch_size, help="pairs in a step")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that render ahead; 0 renders in line"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument(
        "--evaluate", action="store_true", help="train nothing; print the zero-shot table as JSON"
    )
    parser.add_argument("--release", type=Path, default=PACKAGED, help="the folder that --evaluate loads")
    parser.add_argument("--per-class", type=int, default=20, help="test images a class and style, or 0")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES, help="of --evaluate")
    return parser.parse_args(argv)


def _train(trainer: Trainer, arguments: argparse.Namespace, checkpoint: Path) -> None:
    """Run to the end of the plan under a progress bar; without a terminal, print a line every 50 steps."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    smooth: list[float] = []
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("pretraining", total=trainer.plan.steps, completed=trainer.step)

        def report(progress: Progress) -> None:
            now = [progress.contrastive, progress.noun, progress.accuracy]
            smooth[:] = [0.95 * a + 0.05 * b for a, b in zip(smooth, now, strict=True)] if smooth else now
            text = "loss {:.3f}  noun loss {:.3f}  noun accuracy {:.2f}".format(*smooth)
            bar.update(task, completed=progress.step, description=text)
            if not console.is_terminal and progress.step % 50 == 0:
                print(
                    f"step {progress.step}/{trainer.plan.steps}  {text}  {progress.seconds:.0f} s", flush=True
                )

        trainer.run(workers=arguments.workers, report=report, checkpoint=checkpoint)


def run(arguments: argparse.Namespace) -> None:
    """Do what the parsed command line asks."""
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        model, tokenizer = load_release(arguments.release)
        table = zero_shot(model, tokenizer, per_class=arguments.per_class, styles=arguments.styles)
        print(json.dumps(table, indent=2))
        return
    out: Path = arguments.out
    write_merges(out / MERGES_NAME)
    plan = Curriculum(samples=arguments.samples, batch_size=arguments.batch_size, seed=arguments.seed)
    trainer = Trainer(plan, Recipe(), load_tokenizer(out / MERGES_NAME))
    checkpoint = out / CHECKPOINT_NAME
    if arguments.resume and checkpoint.exists():
        trainer.load(checkpoint)
    _train(trainer, arguments, checkpoint)
    write_release(trainer, out / MERGES_NAME, out / "release", per_class=arguments.per_class)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return status_of(NAME, run, _arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
