"""`clipkal-report`: many finished runs, one table."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from clipkal import __version__, files
from clipkal.errors import ClipkalError, DataError
from clipkal.report.aggregate import Row, aggregate, over_datasets
from clipkal.report.collect import Collection, collect
from clipkal.report.table import Section, csv_text, markdown, rich_table, sections

LONGEST = 60  # letters of a name in the name of a figure, which has two of them and at most 255 bytes
HELP = """Puts many finished runs into tables and figures.

Runs that differ only in their seed become one row: mean ± 95 % confidence interval (Student t over seeds).
Nothing is trained, and no run is changed. Unfinished runs are left out and counted, damaged ones named."""

EXAMPLES = """examples:
  clipkal -m method=adamw,kalman fewshot.shots=1,4,16 seed=1,2,3    # first some runs
  clipkal-report outputs                                            # every run in the folder
  clipkal-report outputs/digits outputs/rendered --out comparison   # some of them, report elsewhere

what it writes into --out (default: "report" in the first folder):
  index.html    tables and figures in one self-contained page
  table.md      the tables, for a README or an issue
  table.csv     every number, one line per row, set and metric: for pandas or R
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
    parser.add_argument("--sets", action="store_true", help="print one table per metric, with every OOD set")
    parser.add_argument("--no-figures", action="store_true", help="tables only: faster")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter shows a "?" for it
    try:
        report(options.paths, options.out, not options.no_figures, options.sets)
    except (ClipkalError, OSError) as error:
        print(f"clipkal-report: {error}", file=sys.stderr)
        sys.exit(2)


def report(
    paths: Sequence[Path], out: Path | None = None, figures: bool = True, sets: bool = False
) -> list[Path]:
    """Prints the tables and writes the report; returns the files written.

    Raises:
        DataError: as `collect`.
        OSError: the report cannot be written.
    """
    found = collect(paths)
    for line in found.damaged:
        print(f"clipkal-report: left out: {line}", file=sys.stderr)
    rows = aggregate(found.runs)
    parts = sections([*over_datasets(rows), *rows])
    if not parts:
        raise DataError(f"the {len(found.runs)} runs under {', '.join(map(str, paths))} hold no metrics")
    console = Console()
    if not console.is_terminal:
        console.width = 160
    for section in reversed(parts):  # the average over datasets comes last, where it is seen
        for table in (section.overview, *(section.tables if sets else ())):
            console.print(Text.assemble((section.title, "bold"), " — ", table.title))
            console.print(rich_table(table))
    written = write(out or paths[0] / "report", found, rows, parts, figures)
    _say(console, found, rows, written)
    return written


def write(
    out: Path, found: Collection, rows: Sequence[Row], parts: Sequence[Section], with_figures: bool
) -> list[Path]:
    """index.html, table.md, table.csv and the figures under `out`."""
    files.write_text(out / "table.md", markdown(parts))
    files.write_text(out / "table.csv", csv_text(rows))
    written = [out / "table.md", out / "table.csv"]
    if not with_figures:
        return written
    from clipkal.report.draw import draw  # matplotlib is slow to import
    from clipkal.report.page import page, picture

    drawn = {
        section: {caption: picture(figure) for caption, figure in figures.items()}
        for section, figures in draw(rows, found.runs).items()
    }
    files.write_text(out / "index.html", page(summary(found), parts, drawn))
    for section, captions in drawn.items():
        for caption, one in captions.items():
            path = out / "figures" / f"{_file_name(section)}--{_file_name(caption)}.png"
            if path in written:  # two names that differ in other characters only
                path = path.with_name(f"{path.stem}-{files.digest(section)[:8]}.png")
            with files.atomic_path(path) as temporary:
                temporary.write_bytes(one.png)
            written.append(path)
    return [out / "index.html", *written]


def summary(found: Collection) -> str:
    """`36 runs · 3 unfinished left out · 1 duplicate left out`."""
    parts = [f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"]
    parts += [f"{len(found.unfinished)} unfinished left out"] if found.unfinished else []
    copies = len(found.duplicates)
    parts += [f"{copies} duplicate{'s' * (copies != 1)} left out"] if copies else []
    parts += [f"{len(found.damaged)} damaged left out"] if found.damaged else []
    return " · ".join(parts)


def _say(console: Console, found: Collection, rows: Sequence[Row], written: Sequence[Path]) -> None:
    """The last lines: what was read, what is odd about it, and which files are worth opening."""
    console.print(Text(summary(found)))
    single = sorted({row.label for row in rows if row.reported and len(row.seeds) == 1})
    if single:
        names = ", ".join(single[:4]) + (", …" if len(single) > 4 else "")
        console.print(Text(f"one seed only, so no interval: {names}", "yellow"))
    worth = [path for path in written if path.suffix in (".html", ".md", ".csv")]
    console.print(Text(f"open {worth[0]}", "bold"), soft_wrap=True)
    for path in worth[1:]:
        console.print(Text(f"     {path}"), soft_wrap=True)


def _file_name(text: str) -> str:
    letters = (c if c.isascii() and c.isalnum() else " " for c in text.lower())
    return "-".join("".join(letters).split())[:LONGEST]


if __name__ == "__main__":
    main()
