"""The README's table and figure, and docs/demo.md, from the runs of `make demo`.

    make readme                                    # runs the demo and then this
    python -m benchmarks.readme outputs/demo       # from runs that are there

Between the two markers of README.md stand six rows: three methods on the two embedded sets at 4 shots, as each method
reports them. docs/demo.md has every method, predictive and number of shots.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from clipkal import files
from clipkal.report.aggregate import ID, MEAN_OOD, Row, aggregate
from clipkal.report.collect import collect
from clipkal.report.metric import METRICS
from clipkal.report.table import shown

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- demo: written by `make readme` -->", "<!-- demo: end -->"
METHODS, SHOTS = ("zeroshot", "adamw", "kalman"), "4"
HEAD = ("dataset", "method", "predictive", "shots")


def table(rows: Sequence[Row]) -> str:
    """Accuracy (%), NLL (nats) and ECE (%) of each row, ID and as the mean over the OOD sets, in Markdown."""
    columns = [(metric, name) for metric in METRICS for name in (ID, MEAN_OOD)]
    titles = [*HEAD, *(f"{metric.title} {name}" for metric, name in columns)]
    lines = [titles, ["---"] * len(HEAD) + ["--:"] * len(columns)]
    for row in rows:
        head = [row.dataset, f"`{row.label}`", row.predictive, row.shots]
        lines.append(
            [*head, *(shown(row.values.get((name, metric.key)), metric) for metric, name in columns)]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def chosen(rows: Sequence[Row]) -> list[Row]:
    """The six rows of the README."""
    order = {method: place for place, method in enumerate(METHODS)}
    some = [row for row in rows if row.reported and row.shots == SHOTS and row.label in order]
    return sorted(some, key=lambda row: (row.dataset != "rendered", order[row.label]))


def between(text: str, middle: str) -> str:
    """`text` with what stands between the markers replaced; ValueError where a marker is missing."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{middle}\n\n{END}{after}"


def main(folder: Path = Path("outputs/demo")) -> None:
    """Rewrites README.md's table, docs/demo.md and docs/images/demo.png; the report must have been written."""
    rows = aggregate(collect([folder]).runs)
    readme = ROOT / "README.md"
    files.write_text(readme, between(readme.read_text(encoding="utf-8"), table(chosen(rows))))
    note = (
        "# What `make demo` finds\n\n"
        "Written by `make readme`. Mean ± 95 % confidence interval over three seeds (Student's t); OOD: the mean over "
        "10 sets (rendered) and 8 sets (digits). The first line of a method is what it reports.\n"
    )
    files.write_text(ROOT / "docs" / "demo.md", f"{note}\n{table(rows)}\n")
    (figure,) = folder.glob("report/figures/average-*--accuracy-against-shots.png")
    shutil.copyfile(figure, ROOT / "docs" / "images" / "demo.png")
    print("written: README.md, docs/demo.md, docs/images/demo.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
