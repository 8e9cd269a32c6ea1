"""`clipkal-evaluate`: a finished run on more sets, without learning again."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from clipkal.commandline import command_parser, console, say
from clipkal.errors import ClipkalError
from clipkal.inference.command import EXIT, RUN_HELP, SKIPPED, add_model_options, load, run_command

NAME = "clipkal-evaluate"
HELP = """Evaluates a finished run on more sets: nothing is learnt again, the posterior is the stored one.

The sets are named as in a run: dataset.ood=[…] adds OOD sets to the run's own dataset, dataset=NAME takes another dataset with
the same classes (its test images become a set called NAME), fewshot.transfer=[NAME] one with classes of its own. Classes are
matched by name; predictives, temperatures and draws are those of the run."""
EXAMPLES = f"""examples:
  clipkal-evaluate outputs/digits/mini/kalman/4shot-seed1 'dataset.ood=[gaussian_noise@3,fog@5]'
  clipkal-evaluate RUN 'dataset.ood=[sketches:/data/bird_sketches]'     # a folder of class folders
  clipkal-evaluate RUN dataset=imagenet_shifts data.root=/data          # another dataset that has the run's classes
  clipkal-evaluate RUN 'fewshot.transfer=[dtd]' data.root=/data         # a dataset with other classes: zero-shot in its words
  clipkal-report outputs                                                # shows the new sets beside the old ones

Results go into RUN/evaluations/, a .json like results.json and a .parquet like predictions.parquet; results.json stays as it
is. Mean OOD is over the sets that the run itself was tested on.

{EXIT}"""
SETTINGS = ("dataset", "data", "fewshot.transfer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 3 where images were skipped, with 2 after one line on bad input."""
    parser = command_parser(NAME, HELP, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=Path, help=RUN_HELP)
    parser.add_argument(
        "settings", metavar="KEY=VALUE", nargs="*", help=f"a setting of {', '.join(SETTINGS)}, as of a run"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="of the files in RUN/evaluations (default: made of the settings)"
    )
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        type=Path,
        help="a folder with more datasets, as of clipkal --config-dir",
    )
    add_model_options(parser)
    run_command(parser, evaluate, arguments)


def evaluate(options: argparse.Namespace) -> int:
    """Evaluates, writes and prints; the exit status."""
    from clipkal.inference.record import read_record
    from clipkal.inference.settings import merged

    # Before torch is imported
    cfg = merged(read_record(options.run).cfg, options.settings, options.config_dir)
    run = load(options)
    cfg.data.workers, cfg.data.progress = options.workers or cfg.data.workers, not options.no_progress
    from clipkal.inference.evaluation import evaluate_run, write_evaluation

    found = evaluate_run(run, cfg, options.config_dir)
    path = write_evaluation(run, found, options.settings, options.name)
    screen = console()
    screen.print(_table(run, found))
    for name, ids in found.skipped.items():
        say(
            screen,
            f"{name}: {len(ids)} images could not be read and were left out, the first: {ids[0]}",
            "yellow",
        )
    say(screen, f"{path}", "bold")
    say(screen, f"beside the run's other sets: clipkal-report {shlex.quote(str(run.record.path))}")
    return SKIPPED if found.skipped else 0


def _table(run: Any, found: Any) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in (
        "set",
        "role",
        "images",
        "classes",
        "predictive",
        "accuracy",
        "NLL",
        "ECE",
        "detection AUROC",
    ):
        table.add_column(
            title, justify="left" if title in ("set", "role", "predictive") else "right", no_wrap=True
        )
    for name, one in found.evaluation.sets.items():
        for predictive in dict.fromkeys((run.predictive, "plugin")):
            if (m := one.metrics.get(predictive)) is None:
                raise ClipkalError(f"{run.record.path}: no {predictive} of {name}")
            score = "entropy" if predictive == run.predictive else "plugin_entropy"
            auroc = found.evaluation.detection.get(name, {}).get(score, {}).get("auroc")
            cells = [
                f"{m['n']:,}",
                str(m["classes"]),
                predictive,
                f"{100 * m['accuracy']:.1f}",
                f"{m['nll']:.3f}",
            ]
            cells += [f"{100 * m['ece']:.1f}", "–" if auroc is None else f"{100 * auroc:.1f}"]
            table.add_row(Text(name), one.role, *cells)
    return table


if __name__ == "__main__":
    main()
