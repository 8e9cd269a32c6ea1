"""Uncertainty on every bed: accuracy, NLL and ECE in and out of distribution, of each method with each predictive.

    python -m benchmarks.uncertainty --features ../shared/data/features [--out FILE.csv] [--beds …] [--methods …]
    python -m benchmarks.uncertainty --report FILE.csv …

Beds are the two embedded sets and, where the folder of precomputed features is given, every file in it with each of its
in-distribution domains. One default for all: nothing is set per bed. Rows are added to the CSV file as they are done, and
what is there already is not done again. `--report` prints the tables of docs/study/uncertainty.md.

Zero-shot's temperature is fitted on the shots, which it has never seen; that of the others (`_scaled`) on validation images.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.study_cell import configuration, task_of
from benchmarks.study_plan import LONG, Data, Entry
from clipkal.evaluation import evaluate, fit_temperatures
from clipkal.methods import build_adapter, make_build, make_plan
from clipkal.training import train
from clipkal.uncertainty import Novelty, Plugin, Predictive, Reader, Sampled, fit_temperature

SHOTS, SEEDS, SAMPLES = (1, 4, 16), (1, 2, 3, 4, 5), 100
METHODS = ("zeroshot", "kalman", "kalman_online", "adamw")
FILES = {
    "officecaltech10": ("amazon", "caltech10", "dslr", "webcam"),
    "caltech53": ("caltech101",),
    "caltech8_cues": ("caltech101",),
    "grocery": ("store",),
    "cifar9_shift_vitb32": ("imagenet",),
    "caltech_inet_vitb32": ("caltech101",),
    "stanford_cars_vitb32": ("cars",),
}
REAL = ("cifar9_shift_vitb32", "caltech_inet_vitb32", "stanford_cars_vitb32")
KEYS = ["bed", "shots", "seed", "method"]
ZEROSHOT = "zeroshot tempered"


def beds(features: Path | None) -> list[Data]:
    """Every bed that is at hand."""
    found = [Data(name, (f"dataset={name}",)) for name in ("rendered", "digits")]
    for file, domains in FILES.items():
        path = features / f"{file}.npz" if features else None
        for domain in domains if path is not None and path.is_file() else ():
            name = f"{file}:{domain}" if len(domains) > 1 else file
            words = ("dataset=features", f"dataset.path={path.resolve()}", f"dataset.id_domain={domain}")  # type: ignore[union-attr]
            found.append(Data(name, (*words, "fewshot.short_class=keep")))
    return found


def cell(data: Data, method: str, shots: int, seed: int) -> list[dict[str, Any]]:
    """One row for every predictive and set."""
    cfg, task = configuration(data, Entry(method, method, LONG), shots, seed), task_of(data, shots, seed)
    torch.manual_seed(seed)
    adapter = build_adapter(cfg, task.text_features, task.logit_scale)
    posterior = None
    predictives: dict[str, Predictive] = {"plugin": Plugin()}
    if method != "zeroshot":
        training = train(adapter, make_build(cfg), task, make_plan(cfg, has_validation=task.val is not None))
        posterior = training.posterior
        predictives |= {} if posterior is None else {"sampled": Sampled(SAMPLES)}
        predictives |= {"novelty": Novelty()}
    reader = Reader(adapter, posterior, seed, adapter.batch_size)
    for predictive in predictives.values():
        predictive.fit(reader, task.shots, task.val)
    if method == "zeroshot":
        logits = reader.logits(task.shots.inputs, len(task.shots.labels), "shots")
        temperatures = {"plugin": fit_temperature(logits, task.shots.labels)}
    else:
        temperatures = fit_temperatures(reader, task.val, predictives)
    sets = {"id": ("id", task.test)} | {name: ("ood", one) for name, one in task.ood.items()}
    found = evaluate(reader, sets, predictives, temperatures, spaces=task.label_spaces)
    rows = []
    for name, one in found.sets.items():
        for predictive, values in one.metrics.items():
            row = {"bed": data.name, "shots": shots, "seed": seed, "method": method, "predictive": predictive}
            row |= {"set": name} | {metric: values[metric] for metric in ("accuracy", "nll", "ece")}
            scores = found.detection.get(name, {}).get("novelty", {}) if predictive == "novelty" else {}
            rows.append(row | {"auroc": scores.get("auroc", math.nan)})
    return rows


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, OOD sets as one: a line for every bed, shots, method with predictive, and role."""
    rows = rows.assign(
        line=(rows.method + " " + rows.predictive).replace({"zeroshot plugin_scaled": ZEROSHOT}),
        role=rows["set"].eq("id").map({True: "id", False: "ood"}),
    )
    one = rows.groupby(["bed", "shots", "seed", "line", "role"])[["accuracy", "nll", "ece", "auroc"]].mean()
    return one.groupby(["bed", "shots", "line", "role"]).mean().reset_index()


def report(rows: pd.DataFrame) -> Iterator[str]:
    """Means over the beds that every method has, for every number of shots; the worst differences from tempered zero-shot."""
    every = rows.groupby("bed").method.nunique()
    rows = rows[
        rows.bed.isin(every[every == rows.method.nunique()].index) & ~rows.predictive.eq("novelty_scaled")
    ]
    means = table(rows)
    groups = {
        "every bed": means,
        "real CLIP": means[means.bed.isin(REAL)],
        "others": means[~means.bed.isin(REAL)],
    }
    for title, part in groups.items():
        cells = part.groupby(["line", "role", "shots"])[["accuracy", "nll", "ece"]].mean().reset_index()
        cells["cell"] = [
            f"{100 * r.accuracy:.1f} / {r.nll:.3f} / {100 * r.ece:.1f}" for r in cells.itertuples()
        ]
        yield f"\n{title}: accuracy % / NLL / ECE %\n"
        yield markdown(cells.pivot(index="line", columns=["role", "shots"], values="cell"))
    base = means[means.line == ZEROSHOT]
    rest = means[means.line != ZEROSHOT].merge(
        base[["bed", "shots", "role", "accuracy", "nll"]], on=["bed", "shots", "role"], suffixes=("", "_0")
    )
    rest = rest.assign(worse=rest.nll - rest.nll_0, lost=rest.accuracy_0 - rest.accuracy)
    yield "\nLargest NLL above, and accuracy (points) below, tempered zero-shot on any bed; and the largest ECE %\n"
    worst = rest.groupby(["line", "role", "shots"]).agg(
        nll=("worse", "max"), lost=("lost", "max"), ece=("ece", "max")
    )
    worst = worst.reset_index()
    worst["cell"] = [f"{r.nll:+.3f} / {100 * r.lost:+.1f} / {100 * r.ece:.1f}" for r in worst.itertuples()]
    yield markdown(worst.pivot(index="line", columns=["role", "shots"], values="cell"))


def markdown(frame: pd.DataFrame) -> str:
    """A table of words, whose columns are (role, shots)."""
    head = ["method, predictive", *(f"{role} {shots}" for role, shots in frame.columns)]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *row] for name, row in zip(frame.index, frame.values, strict=True)),
    ]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help="folder of precomputed features")
    parser.add_argument("--out", type=Path, default=Path("uncertainty.csv"))
    parser.add_argument("--beds", nargs="+", help="names, or the first letters of them")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--shots", nargs="+", type=int, default=SHOTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--report", nargs="+", type=Path, help="print the tables of these files instead")
    options = parser.parse_args()
    if options.report:
        rows = pd.concat([pd.read_csv(path) for path in options.report])
        print("\n".join(report(rows)))
        return
    torch.set_num_threads(1)
    done = set()
    if options.out.is_file():
        done = set(pd.read_csv(options.out)[KEYS].itertuples(index=False, name=None))
    chosen = [
        one for one in beds(options.features) if not options.beds or one.name.startswith(tuple(options.beds))
    ]
    for data in chosen:
        for shots in options.shots:
            for seed in options.seeds:
                for method in options.methods:
                    if (data.name, shots, seed, method) in done:
                        continue
                    rows = pd.DataFrame(cell(data, method, shots, seed))
                    rows.to_csv(options.out, mode="a", header=not options.out.is_file(), index=False)
                print(data.name, shots, seed, flush=True)


if __name__ == "__main__":
    main()
