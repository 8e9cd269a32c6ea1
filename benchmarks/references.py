"""`kalman` beside what anyone would ask it to be compared with, every read-out of each from one training.

    python -m benchmarks.references [--features FOLDER] [--shots 4] [--seeds 1 2 3] [--save FILE.csv]

Laplace on AdamW needs laplace-torch, IVON ivon-opt (GPL-3, of the benchmarks only); without them their rows are left out with a
line. Nothing is tuned here: rates, epochs and temperatures come from few-shot validation images, as in any run. Accuracy, NLL
and ECE (%) on the ID test set and in the mean over the OOD sets, then over seeds.
"""

import argparse
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.ivon import RATES, Ivon
from benchmarks.study_cell import configuration, task_of
from benchmarks.study_plan import LONG, Data, Entry, data_sets
from clipkal.evaluation import evaluate, fit_temperatures
from clipkal.methods import build_adapter, make_build, make_plan
from clipkal.optim import Posterior
from clipkal.training import Plan, train
from clipkal.uncertainty import (
    Novelty,
    Plugin,
    Predictive,
    Probit,
    RangeMatched,
    Reader,
    Sampled,
    Tempered,
)

METRICS = ("accuracy", "nll", "ece")
FILES = ("grocery", "cifar9_shift_vitb32", "caltech_inet_vitb32", "stanford_cars_vitb32")


@dataclass(frozen=True)
class Reference:
    """A method and how it is read.

    method: a word of conf/method/, or "ivon". predictives: by their names. scaled: those that are reported at a fitted
    temperature as well. package: what it cannot do without.
    """

    method: str
    predictives: dict[str, type[Predictive]]
    scaled: tuple[str, ...] = ()
    package: str | None = None


REFERENCES = (
    Reference("zeroshot", {"plugin": Plugin, "tempered": Tempered}),
    Reference("adamw", {"plugin": Plugin, "range_matched": RangeMatched, "novelty": Novelty}, ("plugin",)),
    Reference("laplace", {"sampled": Sampled, "probit": Probit, "novelty": Novelty}, ("sampled",), "laplace"),
    Reference("ensemble", {"sampled": Sampled, "novelty": Novelty}, ("sampled",)),
    Reference("ivon", {"plugin": Plugin, "sampled": Sampled}, ("sampled",), "ivon"),
    Reference("kalman", {"plugin": Plugin, "sampled": Sampled, "novelty": Novelty}),
)


def rows_of(data: Data, reference: Reference, shots: int, seed: int) -> list[dict[str, Any]]:
    """One row for every predictive of a trained reference."""
    known = "adamw" if reference.method == "ivon" else reference.method
    cfg, task = configuration(data, Entry(known, known, LONG), shots, seed), task_of(data, shots, seed)
    torch.manual_seed(seed)
    adapter = build_adapter(cfg, task.text_features, task.logit_scale)
    posterior = learnt(cfg, reference, adapter, task)
    reader = Reader(adapter, posterior, seed)
    predictives = {
        name: made(samples=cfg.predictive.samples) if made is Sampled else made()
        for name, made in reference.predictives.items()
    }
    for one in predictives.values():
        one.fit(reader, task.shots, task.val)
    temperatures = fit_temperatures(reader, task.val, predictives)
    sets = {"test": ("id", task.test)} | {name: ("ood", one) for name, one in task.ood.items()}
    found = evaluate(reader, sets, predictives, temperatures, spaces=task.label_spaces).sets
    names = [*predictives, *(f"{name}_scaled" for name in reference.scaled)]
    row = {"dataset": data.name, "shots": shots, "seed": seed, "method": reference.method}
    return [row | {"predictive": name} | scores(found, name) for name in names]


def learnt(cfg: Any, reference: Reference, adapter: Any, task: Any) -> Posterior | None:
    """Fine-tunes the adapter; what is known beside the point, if anything."""
    if reference.method == "zeroshot":
        return None
    if reference.method != "ivon":
        return train(adapter, make_build(cfg), task, make_plan(cfg, has_validation=True)).posterior
    build = lambda model, rate: Ivon(model, len(task.shots.labels), rate)
    start = {name: value.clone() for name, value in adapter.state_dict().items()}
    plan = Plan(rates=RATES, epochs=50, batch_size=32, schedule="cosine", keep="last", seed=cfg.seed)
    rate = train(adapter, build, task, plan).kept.rate
    adapter.load_state_dict(start)
    return train(adapter, build, task, replace(plan, rates=(rate,))).posterior


def scores(found: dict[str, Any], predictive: str) -> dict[str, float]:
    """Of the ID set, and the mean over the OOD sets."""
    row = {}
    for role in ("id", "ood"):
        values = [one.metrics[predictive] for one in found.values() if one.role == role]
        row |= {f"{role} {m}": sum(one[m] for one in values) / len(values) for m in METRICS if values}
    return row


def beds(features: Path | None) -> list[Data]:
    """Those of the study, and further files of precomputed features."""
    more = [(name, features / f"{name}.npz") for name in FILES] if features else []
    words = lambda path: ("dataset=features", f"dataset.path={path.resolve()}")
    return [*data_sets(features), *(Data(name, words(path)) for name, path in more if path.is_file())]


def printed(found: pd.DataFrame) -> str:
    """The means over seeds, in percent where they are shares."""
    means = found.groupby(["dataset", "shots", "method", "predictive"], sort=False).mean(numeric_only=True)
    means = means.drop(columns="seed")
    shares = [name for name in means if not name.endswith("nll")]
    means[shares] *= 100
    return means.round(dict.fromkeys(shares, 1)).round(3).to_string()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help="folder of precomputed features")
    parser.add_argument("--datasets", nargs="+", default=["digits", "grocery"])
    parser.add_argument("--shots", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--save", type=Path, help="a CSV file of every row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [one for one in beds(options.features) if one.name in options.datasets]
    for name in sorted(set(options.datasets) - {one.name for one in chosen}):
        print(f"{name}: left out, its file is not in --features")
    rows = []
    for reference in REFERENCES:
        if reference.package and importlib.util.find_spec(reference.package) is None:
            print(f"{reference.method}: left out, the package {reference.package} is not installed")
            continue
        for data in chosen:
            for shots in options.shots:
                for seed in options.seeds:
                    rows += rows_of(data, reference, shots, seed)
                    print(data.name, reference.method, shots, seed, flush=True)
    found = pd.DataFrame(rows)
    if options.save:
        found.to_csv(options.save, index=False)
    print(printed(found))


if __name__ == "__main__":
    main()
