"""`clipkal-report`: many finished runs, one table."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from clipkal import __version__, files
from clipkal.commandline import console, status_of
from clipkal.errors import DataError
from clipkal.report.against import Baseline, Comparison, baseline_of, comparisons
from clipkal.report.aggregate import Row, aggregate, shots_rank
from clipkal.report.averages import averages
from clipkal.report.collect import Collection, collect
from clipkal.report.flags import machine
from clipkal.report.labels import given_to_all
from clipkal.report.latex import latex
from clipkal.report.markdown import markdown
from clipkal.report.section import sections
from clipkal.report.table import Section, families
from clipkal.report.terminal import rich_table
from clipkal.report.tidy import means_csv, paired_csv, seeds_csv
from clipkal.tracking.writing import printable, writing

LONGEST = 60  # letters of a name in the name of a figure, which has two of them and at most 255 bytes
MOST_NAMED = 10
"""Damaged runs that the page's header names."""
HELP = """Puts many finished runs into tables and figures.

Runs that differ only in their seed become one row: mean ± 95 % confidence interval (Student t over seeds).
Every method is also compared with one baseline, seed by seed. Nothing is trained, and no run is changed.
Unfinished runs are left out and counted, damaged ones named."""

EXAMPLES = """examples:
  clipkal -m method=adamw,kalman fewshot.shots=1,4,16 seed=1,2,3    # first some runs
  clipkal-report outputs                                            # every run in the folder
  clipkal-report outputs/digits outputs/rendered --out comparison   # some of them, report elsewhere
  clipkal-report outputs --baseline adamw:plugin_scaled             # against AdamW with a fitted temperature

what it writes into --out (default: "report" in the first folder):
  index.html    tables and figures in one self-contained page
  table.md      the tables, for a README or an issue
  table.tex     the overviews and differences, for a paper (booktabs)
  table.csv     every mean and interval, one line per row, set and metric: for pandas or R
  seeds.csv     the same for every single seed
  paired.csv    every paired difference to the baseline, with wins, sign test and Wilcoxon's test
  figures/      the figures as PNG"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 2 after one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="clipkal-report",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipkal {__version__}")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="a folder of runs, or a run; searched downwards"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where the report goes (default: PATH/report)"
    )
    parser.add_argument(
        "--baseline",
        metavar="METHOD[:PREDICTIVE]",
        help="what every method is compared with (default: adamw, or else zeroshot, where there are runs of it)",
    )
    parser.add_argument("--sets", action="store_true", help="print one table per metric, with every OOD set")
    parser.add_argument("--no-figures", action="store_true", help="tables only: faster")
    options = parser.parse_args(arguments)
    typed = shlex.join(["clipkal-report", *(sys.argv[1:] if arguments is None else arguments)])

    def work(options: argparse.Namespace) -> None:
        report(options.paths, options.out, not options.no_figures, options.sets, options.baseline, typed)

    if status := status_of(parser.prog, work, options):
        sys.exit(status)


def report(
    paths: Sequence[Path],
    out: Path | None = None,
    figures: bool = True,
    sets: bool = False,
    baseline: str | None = None,
    command: str = "",
) -> list[Path]:
    """Prints the tables and writes the report; returns the files written. `command` stands in the page's header.

    Raises:
        DataError: as `collect`, or there is no such baseline.
        ClipkalError: the report cannot be written.
    """
    found = collect(paths)
    for line in found.damaged:
        _left_out(line)
    runs = aggregate(found.runs)
    rows = [*averages(runs), *runs]
    base = baseline_of(rows, baseline)
    compared = [one for family in families(rows).values() for one in comparisons(family, base)]
    parts = sections(rows, found.runs, base, compared)
    if not parts:
        raise DataError(f"the {len(found.runs)} runs under {', '.join(map(str, paths))} hold no metrics")
    screen = console()
    _print(screen, parts, sets)
    target = out or paths[0] / "report"
    with writing(target, "give another folder with --out"):
        written = _write_tables(target, runs, parts, compared)
        if figures:
            about = _about(found, paths, base, command)
            with screen.status("drawing the figures"):
                written = [*_write_page(target, found, rows, parts, about), *written]
    _say(screen, found, runs, written)
    return written


def _print(console: Console, parts: Sequence[Section], sets: bool) -> None:
    for section in reversed(parts):  # the average over datasets comes last, where it is seen
        for table in (*section.main(), *(section.tables if sets else ())):
            console.print(Text.assemble((section.title, "bold"), " — ", table.title))
            console.print(rich_table(table))
        for flag in section.flags:
            console.print(Text(flag, "yellow"), soft_wrap=True)


def _write_tables(
    out: Path, rows: Sequence[Row], parts: Sequence[Section], compared: Sequence[Comparison]
) -> list[Path]:
    texts = {
        "table.md": markdown(parts),
        "table.tex": latex(parts),
        "table.csv": means_csv(rows),
        "seeds.csv": seeds_csv(rows),
        "paired.csv": paired_csv(compared),
    }
    for name, text in texts.items():
        files.write_text(out / name, text)
    return [out / name for name in texts]


def _write_page(
    out: Path, found: Collection, rows: Sequence[Row], parts: Sequence[Section], about: dict[str, str]
) -> list[Path]:
    """index.html, and its figures as files of their own."""
    from clipkal.report.draw import draw  # matplotlib is slow to import
    from clipkal.report.page import page, picture

    left_out = list(found.damaged)

    def problem(line: str) -> None:
        left_out.append(line)
        _left_out(line)

    drawn = {
        section: {caption: picture(figure) for caption, figure in figures.items()}
        for section, figures in draw(rows, found.runs, problem).items()
    }
    if left_out:
        more = f"; and {len(left_out) - MOST_NAMED} more" if len(left_out) > MOST_NAMED else ""
        about = about | {"left out": printable("; ".join(dict.fromkeys(left_out[:MOST_NAMED])) + more)}
    files.write_text(out / "index.html", page(summary(found), about, parts, drawn))
    written: list[Path] = []
    for section, captions in drawn.items():
        for caption, one in captions.items():
            path = out / "figures" / f"{_file_name(section)}--{_file_name(caption)}.png"
            if path in written:  # two names that differ in other characters only
                path = path.with_name(f"{path.stem}-{files.digest(section)[:8]}.png")
            with files.atomic_path(path) as temporary:
                temporary.write_bytes(one.png)
            written.append(path)
    return [out / "index.html", *written]


def _left_out(line: str) -> None:
    print(f"clipkal-report: left out: {line}", file=sys.stderr)


def _about(
    found: Collection, paths: Sequence[Path], baseline: Baseline | None, command: str
) -> dict[str, str]:
    """What the header of the page says: by what, when and from what it was made."""

    def listed(key: str) -> str:
        return ", ".join(sorted({str(run.run[key]) for run in found.runs}, key=lambda s: (shots_rank(s), s)))

    packages = (run.environment.get("packages") for run in found.runs)
    versions = {str(one.get("clipkal")) for one in packages if isinstance(one, dict)}
    return {
        "written by": f"clipkal {__version__}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "command": printable(command),
        "runs of": f"clipkal {', '.join(sorted(versions)) or 'unknown'}, under {', '.join(printable(str(path)) for path in paths)}",
        "datasets": listed("dataset"),
        "backbones": listed("backbone"),
        "methods": listed("method"),
        "shots": listed("shots"),
        "seeds": listed("seed"),
        "protocol": f"{listed('protocol')}; validation images: {listed('validation')}",
        "all runs with": ", ".join(sorted(given_to_all(found.runs))) or "defaults, but for what names a row",
        "hardware": "; ".join(sorted({machine(run.environment) for run in found.runs})),
        "baseline": str(baseline or "none"),
    }


def summary(found: Collection) -> str:
    """`36 runs · 3 unfinished left out · 1 duplicate left out`."""
    parts = [f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"]
    parts += [f"{len(found.unfinished)} unfinished left out"] if found.unfinished else []
    copies = len(found.duplicates)
    parts += [f"{copies} duplicate{'s' * (copies != 1)} left out"] if copies else []
    parts += [f"{len(found.damaged)} unreadable left out"] if found.damaged else []
    return " · ".join(parts)


def _say(console: Console, found: Collection, rows: Sequence[Row], written: Sequence[Path]) -> None:
    """The last lines: what was read, what is odd about it, and which files are worth opening."""
    console.print(Text(summary(found)))
    if given := given_to_all(found.runs):
        console.print(Text(f"all runs with {', '.join(sorted(given))}"), soft_wrap=True)
    single = sorted({row.label for row in rows if row.reported and len(row.seeds) == 1})
    if single:
        names = ", ".join(single[:4]) + (", …" if len(single) > 4 else "")
        console.print(Text(f"one seed only, so no interval: {names}", "yellow"))
    worth = [path for path in written if path.suffix != ".png"]
    console.print(Text(f"open {worth[0]}", "bold"), soft_wrap=True)
    for path in worth[1:]:
        console.print(Text(f"     {path}"), soft_wrap=True)


def _file_name(text: str) -> str:
    letters = (c if c.isascii() and c.isalnum() else " " for c in text.lower())
    return "-".join("".join(letters).split())[:LONGEST].strip("-")


if __name__ == "__main__":
    main()
