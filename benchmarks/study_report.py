"""Tables and figures of the study, from cells.csv alone."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from benchmarks.study_plan import LONG, ONE, SHOTS, entries
from clipkal.files import write_text
from clipkal.report.aggregate import estimate
from clipkal.report.figures import new_figure
from clipkal.report.style import INK, plain, styles

COLUMNS = (
    ("id_accuracy", "acc ID %", 100, 1),
    ("ood_accuracy", "acc OOD %", 100, 1),
    ("id_nll", "NLL ID", 1, 3),
    ("ood_nll", "NLL OOD", 1, 3),
    ("id_ece", "ECE ID %", 100, 1),
    ("ood_ece", "ECE OOD %", 100, 1),
)
EXACT, ZERO = f"{LONG}: kalman", f"{LONG}: zeroshot"
ALL = "mean over the data sets"
ORDER = ("rendered", "digits", "office", "caltech8", "caltech53")
"""Data sets as they come in tables and figures; any other goes last."""


def read(path: Path) -> pd.DataFrame:
    """The cells of entries that the study has now, in its order; the mean OOD is NaN where a data set has none."""
    frame = pd.read_csv(path)
    order = {entry.key: place for place, entry in enumerate(entries())}
    searched = [entry.key for entry in entries() if entry.search]
    frame = frame[frame.entry.isin(order) & ~(frame.entry.isin(searched) & (frame.predictive == "sampled"))]
    place = frame.dataset.map({name: i for i, name in enumerate(ORDER)}).fillna(len(ORDER))
    frame = frame.assign(rank=frame.entry.map(order), place=place)
    return frame.sort_values(["place", "dataset", "shots", "rank", "predictive", "seed"])


def write_report(path: Path, out: Path) -> None:
    """README.md (promises, means, figures), tables.md (everything) and two figures into `out`."""
    frame = read(path)
    nll_figure(frame).savefig(out / "nll.png", dpi=110)
    passes_figure(frame).savefig(out / "passes.png", dpi=110)
    write_text(out / "README.md", summary(frame))
    write_text(out / "tables.md", tables(frame))


def counted(shots: int) -> str:
    """ "1 shot", "4 shots"."""
    return f"{shots} shot{'' if shots == 1 else 's'}"


def cell(values: Iterable[float], factor: float, decimals: int) -> str:
    """Mean ± 95 % interval over seeds, "–" where there is nothing, "diverged" where a seed did."""
    array = np.array(list(values), dtype=float) * factor
    if len(array) == 0 or np.isnan(array).any():
        return "–"
    found = estimate(array.tolist())
    half = "" if found.half_width is None else f" ± {found.half_width:.{decimals}f}"
    return f"{found.mean:.{decimals}f}{half}"


def block(frame: pd.DataFrame, regime: str) -> list[str]:
    """The lines of one data set, number of shots and regime; `kalman` and zero-shot stand in both."""
    lines = [
        "| method | predictive | " + " | ".join(title for _, title, _, _ in COLUMNS) + " |",
        "|---|---|" + "--:|" * len(COLUMNS),
    ]
    wanted = frame[frame.entry.str.startswith(regime + ":") | frame.entry.isin([EXACT, ZERO])]
    for (_, entry, predictive), rows in wanted.groupby(["rank", "entry", "predictive"], sort=True):
        label = str(entry).split(": ", 1)[1]
        diverged = rows.diverged.astype(str).eq("True").sum()
        note = f" ({diverged} of {len(rows)} diverged)" if diverged else ""
        cells = [cell(rows[key], factor, decimals) for key, _, factor, decimals in COLUMNS]
        lines.append(f"| {label}{note} | {predictive} | " + " | ".join(cells) + " |")
    return lines


def tables(frame: pd.DataFrame) -> str:
    """Every data set, number of shots and regime."""
    lines = [
        "# The study in full",
        "",
        "What is compared and how is in README.md. Mean ± 95 % interval over seeds.",
    ]
    for name in frame.dataset.unique():
        for shots in sorted(frame.shots.unique()):
            part = frame[(frame.dataset == name) & (frame.shots == shots)]
            for regime in (ONE, LONG) if len(part) else ():
                lines += [
                    "",
                    f"## {name}, {counted(shots)}, {regime}",
                    "",
                    *block(part, regime),
                ]
    return "\n".join(lines) + "\n"


def over_datasets(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the data sets of `frame`, seed by seed."""
    keys = ["shots", "rank", "entry", "predictive", "seed"]
    numbers = [key for key, *_ in COLUMNS]
    frame = frame.assign(diverged=frame.diverged.astype(str).eq("True").astype(int))
    return frame.groupby(keys, as_index=False)[[*numbers, "diverged"]].mean()


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The (data set, shots) that have OOD sets, and every entry for every seed: what means over data sets are taken of."""
    frame = frame.groupby("dataset").filter(lambda rows: bool(rows.ood_nll.notna().any()))
    size = frame.groupby(["dataset", "shots"])[["entry", "seed"]].apply(lambda g: len(g.drop_duplicates()))
    full = size[size == size.max()].index
    return frame[pd.MultiIndex.from_frame(frame[["dataset", "shots"]]).isin(full)]


def summary(frame: pd.DataFrame) -> str:
    """The promises, and means over the data sets."""
    whole = complete(frame)
    lines = [HEAD.strip(), "", "## The promises", "", *promises(frame)]
    for shots in sorted(whole.shots.unique()):
        part = whole[whole.shots == shots]
        names = ", ".join(part.dataset.unique())
        for regime in (ONE, LONG):
            lines += ["", f"## {ALL}, {counted(shots)}, {regime} ({names})", ""]
            lines += block(over_datasets(part), regime)
    return "\n".join(lines) + "\n"


def difference(
    frame: pd.DataFrame, first: str, second: str, key: str, predictive: str = "plugin"
) -> np.ndarray:
    """first − second, seed by seed (first with this predictive, second as plug-in)."""
    ours = frame[(frame.entry == first) & (frame.predictive == predictive)].set_index("seed")[key]
    theirs = frame[(frame.entry == second) & (frame.predictive == "plugin")].set_index("seed")[key]
    return (ours - theirs).dropna().to_numpy()


Check = tuple[str, Callable[[pd.DataFrame], np.ndarray], float, int]
CHECKS: tuple[Check, ...] = (
    (
        "kalman − AdamW in one epoch: acc ID, points",
        lambda f: difference(f, EXACT, f"{ONE}: adamw", "id_accuracy"),
        100,
        1,
    ),
    (
        "kalman_online − AdamW, both in one epoch: acc ID, points",
        lambda f: difference(f, f"{ONE}: kalman_online", f"{ONE}: adamw", "id_accuracy"),
        100,
        1,
    ),
    (
        "kalman − AdamW converged: acc ID, points",
        lambda f: difference(f, EXACT, f"{LONG}: adamw", "id_accuracy"),
        100,
        1,
    ),
    (
        "kalman (draws) − AdamW converged: NLL ID",
        lambda f: difference(f, EXACT, f"{LONG}: adamw", "id_nll", "sampled"),
        1,
        3,
    ),
    (
        "kalman (draws) − AdamW converged: NLL OOD",
        lambda f: difference(f, EXACT, f"{LONG}: adamw", "ood_nll", "sampled"),
        1,
        3,
    ),
)


def promises(frame: pd.DataFrame) -> list[str]:
    """Differences to AdamW at its best learning rate, paired by seed."""
    lines = [
        "| data set | shots | " + " | ".join(title for title, *_ in CHECKS) + " |",
        "|---|--:|" + "--:|" * len(CHECKS),
    ]
    for (_, name, shots), part in frame.groupby(["place", "dataset", "shots"], sort=True):
        cells = [cell(values(part), factor, decimals) for _, values, factor, decimals in CHECKS]
        lines.append(f"| {name} | {shots} | " + " | ".join(cells) + " |")
    return lines


SHOWN = {
    f"{ONE}: adamw": "adamw, one epoch",
    f"{LONG}: adamw": "adamw",
    f"{LONG}: kfac": "kfac",
    f"{ONE}: kalman_online": "kalman_online, one pass",
    f"{LONG}: kalman_online": "kalman_online, 4 passes",
    f"{LONG}: loko": "loko, 4 passes",
    EXACT: "kalman",
}


def nll_figure(frame: pd.DataFrame) -> Figure:
    """NLL of the plug-in against shots, ID above and mean OOD below, one column a data set."""
    names = list(frame.dataset.unique())
    figure = new_figure(2.9 * len(names) + 0.6, 6.4)
    panels = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        part = frame[(frame.dataset == name) & (frame.predictive == "plugin")]
        for axes, key, role in zip(panels[:, column], ("id_nll", "ood_nll"), ("ID", "mean OOD"), strict=True):
            if part[key].notna().any():
                axes.set_title(f"{name}, {role}", loc="left", fontsize=10, color=INK)
                nll_panel(axes, part, key)
            else:
                axes.axis("off")
        panels[1, column].set_xlabel("shots (images per class)")
    for axes in panels[:, 0]:
        axes.set_ylabel("NLL (nats, log scale)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def nll_panel(axes: Axes, frame: pd.DataFrame, key: str) -> None:
    """One data set and role: a line a method, on a log scale since a learning rate chosen badly costs several nats."""
    look = styles(SHOWN)
    for entry, label in SHOWN.items():
        mean = frame[frame.entry == entry].groupby("shots")[key].mean().dropna()
        places = [SHOTS.index(int(str(shots))) for shots in mean.index]
        style = look[entry]
        axes.plot(places, mean, style.line, color=style.color, marker=style.marker, markersize=5, label=label)
    axes.set_xticks(range(len(SHOTS)), [str(shots) for shots in SHOTS])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    plain(axes)


def passes_figure(frame: pd.DataFrame) -> Figure:
    """Mean ID accuracy over the data sets: one pass (hollow) and converged (filled), one row a method, one panel a shot count."""
    whole = complete(frame)
    mean = over_datasets(whole[whole.predictive == "plugin"]).groupby(["shots", "entry"]).id_accuracy.mean()
    methods = [e.label for e in entries() if e.regime == LONG and "," not in e.label]
    shots = sorted(whole.shots.unique())
    figure = new_figure(3.2 * len(shots) + 1.6, 4.6)
    for axes, count in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        for place, method in enumerate(reversed(methods)):
            once, long = (100 * mean.get((count, f"{r}: {method}"), np.nan) for r in (ONE, LONG))
            axes.plot([once, long], [place, place], color="#b8bec8", linewidth=1.5, zorder=1)
            axes.scatter(once, place, s=36, facecolors="white", edgecolors="#D55E00", zorder=2)
            axes.scatter(long, place, s=36, color="#0072B2", zorder=2)
        axes.set_yticks(range(len(methods)), reversed(methods) if count == shots[0] else [""] * len(methods))
        axes.set_title(f"{counted(count)}", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("ID accuracy (%)")
        plain(axes, grid="x")
    figure.suptitle(
        "Hollow: one pass over the shots. Filled: converged. Mean over the data sets.",
        fontsize=10,
        color=INK,
        x=0.01,
        ha="left",
    )
    return figure


HEAD = """
# Does it learn?

Every optimiser on the linear adapter: 1, 4 and 16 shots, seeds 1, 2, 3; plug-in and, where nothing was searched, 100 posterior
draws. Written by `python -m benchmarks.study --features FOLDER`; cells.csv has every run, [tables.md](tables.md) every data set.
The folder is called by `adapter.coordinates`: what W is measured in, `text` or `classes` (docs/study/findings.md).

* **rendered**, **digits**: the embedded sets through the mini-CLIP (d = 128; 24 and 10 classes; 10 and 8 OOD sets).
  **office** (Office-Caltech-10, amazon → 3 domains), **caltech8** (Caltech-101 → cue conflict, silhouettes, edges) and
  **caltech53** (Caltech-101, no OOD set): precomputed features of real images (d = 512; 10, 8, 53 classes).
* **Search**: five values each, by the NLL of the few-shot validation images (min(shots, 4) a class), never a test image.
  Gradient methods: the learning rate (in one epoch the app's grid times three; batches of 32, or of 4 where the line says so), and
  in `converged` (50 epochs, natural gradients 20) the epoch too, zero-shot included. Kalman methods: nothing, unless the line
  says `prior searched`.
* **One epoch** of a recursive filter is one pass; its **converged** form is four passes that count in full. `kalman` is handed all
  shots once and iterates inside, so it stands in both tables; `shots + val` learns from the validation images too, which it has no
  other use for.
* Mean ± 95 % interval over seeds (Student's t; three seeds make it wide).

![NLL against shots](nll.png)

![One pass and converged](passes.png)
"""
