"""What validation images and shots say of two defaults: kalman's hyper-prior on p₀, and how fast an estimated noise forgets.

    python -m benchmarks.defaults [--features FOLDER] [--datasets NAME …] [--seeds 4 5 6]

* prior_logit_sd and prior_spread of `Kalman`, by the mean NLL of few-shot validation images over data sets, 1 to 16
  shots and seeds that the study does not use.
* beta of `ResidualNoise` (one image of `LoKO` at a time), by the mean loss of every shot before it is taken in, in one pass.

Tables on standard output; about two minutes. `--features` as for the study. docs/study/findings.md says what was made of them.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn import functional as F

from benchmarks.study_cell import configuration, task_of
from benchmarks.study_plan import LONG, Data, Entry, data_sets
from clipkal.adapters import LinearAdapter
from clipkal.methods import build_adapter
from clipkal.optim import Kalman, LoKO

CENTRES, WIDTHS = (4.0, 6.0, 8.0, 10.0, 13.0, 16.0), (0.5, 1.0, 2.0, 3.0)
BETAS = (0.99, 0.998, 0.9995, 0.9999)
KALMAN = Entry("kalman", "kalman", LONG)
Measure = Callable[[Any, Callable[[], LinearAdapter]], Iterator[dict[str, Any]]]


def hyper_priors(task: Any, fresh: Callable[[], LinearAdapter]) -> Iterator[dict[str, Any]]:
    """Validation NLL of the MAP under every hyper-prior."""
    for centre, width in product(CENTRES, WIDTHS):
        adapter = fresh()
        Kalman(adapter, prior_logit_sd=centre, prior_spread=width, max_direct=4096).step(
            task.shots.inputs, task.shots.labels
        )
        with torch.no_grad():
            nll = F.cross_entropy(adapter(task.val.inputs).double(), task.val.labels)
        yield {"prior_logit_sd": centre, "prior_spread": width, "nll": float(nll)}


def forgetting(task: Any, fresh: Callable[[], LinearAdapter]) -> Iterator[dict[str, Any]]:
    """Mean loss of every shot before it is taken in, in one order for all values."""
    order = torch.randperm(len(task.shots.labels), generator=torch.Generator().manual_seed(0))
    for beta in BETAS:
        optimizer = LoKO(fresh(), beta=beta)
        losses = [optimizer.step(task.shots.inputs[i], task.shots.labels[i]).loss for i in order[:, None]]
        yield {"beta": beta, "nll": sum(losses) / len(losses)}


def measured(measure: Measure, data: list[Data], shots: list[int], seeds: list[int]) -> pd.DataFrame:
    """Rows of `measure` over data sets, shots and seeds."""
    rows = []
    for one, count, seed in product(data, shots, seeds):
        cfg, task = configuration(one, KALMAN, count, seed), task_of(one, count, seed)
        fresh = lambda c=cfg, t=task: build_adapter(c, t.text_features, t.logit_scale)
        rows += [{"shots": count, **row} for row in measure(task, fresh)]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, help="folder of precomputed features")
    parser.add_argument("--datasets", nargs="+", default=["rendered", "digits", "office", "caltech8"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6])
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = [one for one in data_sets(options.features) if one.name in options.datasets]
    found = measured(hyper_priors, data, [1, 2, 4, 8, 16], options.seeds)
    print("mean NLL of few-shot validation images")
    print(
        found.pivot_table(index="prior_logit_sd", columns="prior_spread", values="nll").round(4).to_string()
    )
    found = measured(forgetting, data, [4, 16], options.seeds)
    print("\nmean loss of a shot before it is taken in")
    print(found.pivot_table(index="beta", columns="shots", values="nll").round(4).to_string())


if __name__ == "__main__":
    main()
