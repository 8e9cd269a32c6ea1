"""Where the constants of predictive=novelty come from: simulated shift, from training and validation images alone.

    python -m benchmarks.simulated_shift --data ../shared/data --out beds
    python -m benchmarks.novelty_constants beds/*.npz --left-out ../shared/data/features/officecaltech10.npz

A bed is a file of `benchmarks.simulated_shift`: clean development images and shifted copies of them; or, of a file with several
domains, one of them as the clean one and the training and validation images of the others as shifted ones. With the MAP of
`kalman` and zero-shot at their temperatures, and the standardised distance t of every development image, the loss of

    v = doubt + (1 − doubt) · failure · σ(logit shift + separation · t − separation²/2)

is the NLL on the clean images plus the mean of those on the shifted ones, averaged over beds, shots and seeds. Printed are the
loss of the defaults and of no mixture, of each constant changed, what is best, what is best without one bed and how it does
there, and what the mean distance to several nearest shots would do. Two minutes. docs/study/uncertainty.md has the tables.
"""

import argparse
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkal.adapters import LinearAdapter
from clipkal.optim import Kalman
from clipkal.uncertainty import Novelty, Reader

CLEAN = "clean"
NAMES = ("shift", "separation", "failure", "doubt")
DEFAULTS = (0.1, 2.0, 0.5, 0.02)
CHANGES = {"shift": (0.03, 0.3), "separation": (1.5, 3.0), "failure": (0.3, 0.7), "doubt": (0.005, 0.05)}
MOST = 400
"""Development images of a domain."""


@dataclass(frozen=True)
class Domain:
    """Development images of one domain: how probable the two models hold their labels, and how far they are, by k."""

    bed: str
    clean: bool
    weight: float
    learnt: np.ndarray
    zeroshot: np.ndarray
    distance: dict[int, np.ndarray]


Arrays = dict[str, np.ndarray]


def left_out(path: Path) -> Iterator[tuple[str, Arrays]]:
    """A bed for each domain of a file of features: half of its training images are learnt from; no test image is in it."""
    whole = dict(np.load(path))
    for domain, name in enumerate(whole["domains"]):
        kept = whole["split"] < 2
        rows = {key: whole[key][kept] for key in ("image_features", "label", "domain", "split")}
        mine = rows["domain"] == domain
        order = np.random.default_rng(domain).permutation(int(mine.sum()))
        rows["split"] = np.full(len(mine), 2)
        rows["split"][np.flatnonzero(mine)[order[::2]]] = 0
        rows["domain"] = np.where(
            mine, 0, np.where(rows["domain"] < domain, rows["domain"] + 1, rows["domain"])
        )
        others = [str(one) for one in whole["domains"] if one != name]
        rest = {key: whole[key] for key in ("text_features", "logit_scale")}
        yield f"{path.stem}:{name}", {**rows, **rest, "domains": np.array([CLEAN, *others])}


def domains(title: str, bed: Arrays, shots: int, seed: int) -> Iterator[Domain]:
    """Learns from `shots` clean images a class, judged by as many others (at most 4) as validation images."""
    features = torch.nn.functional.normalize(torch.from_numpy(bed["image_features"].astype("float32")), dim=1)
    labels = torch.from_numpy(bed["label"].astype("int64"))
    generator = torch.Generator().manual_seed(seed)
    chosen: list[list[int]] = [[], []]
    train = torch.from_numpy((bed["domain"] == 0) & (bed["split"] == 0))
    test = torch.from_numpy((bed["domain"] == 0) & (bed["split"] == 2))
    for label in range(len(bed["text_features"])):
        mine = _shuffled(train & (labels == label), generator)
        others = mine[shots:] or _shuffled(test & (labels == label), generator)[::2]
        chosen[0] += mine[:shots]
        chosen[1] += others[: min(shots, 4)]
    given = [SimpleNamespace(inputs=features[rows], labels=labels[rows], ids=rows) for rows in chosen]
    adapter = LinearAdapter(
        torch.from_numpy(bed["text_features"]).float(), float(bed["logit_scale"]), "classes"
    )
    optimizer = Kalman(adapter)
    optimizer.hold_out(given[1].inputs, given[1].labels)
    optimizer.step(given[0].inputs, given[0].labels)
    reader, novelty = Reader(adapter), Novelty()
    novelty.fit(reader, *given)  # type: ignore[arg-type]
    names = [str(name) for name in bed["domains"]]
    scale = {k: _reference(given, k) for k in (1, 3, 10)}
    for index, name in enumerate(names):
        rows = _shuffled(torch.from_numpy((bed["domain"] == index) & (bed["split"] == 2)), generator)
        rows = [row for row in rows if row not in set(chosen[1])][:MOST]
        chunk = reader.whole(features[rows], len(rows), novelty.needs, name)
        learnt, zeroshot = (
            part.exp().gather(1, labels[rows, None])[:, 0].numpy() for part in novelty._parts(chunk)
        )
        far = torch.cdist(features[rows], given[0].inputs).sort(1).values
        distance = {k: ((far[:, :k].mean(1) - m) / s).numpy() for k, (m, s) in scale.items()}
        weight = 1.0 if name == CLEAN else 1.0 / (len(names) - 1)
        yield Domain(title, name == CLEAN, weight, learnt, zeroshot, distance)


def _shuffled(mask: Tensor, generator: torch.Generator) -> list[int]:
    rows = mask.nonzero()[:, 0]
    return rows[torch.randperm(len(rows), generator=generator)].tolist()


def _reference(given: list[Any], k: int) -> tuple[float, float]:
    """Mean and deviation of the mean distance to the k nearest shots, over validation images and, from 2 a class, shots."""
    shots, others = given
    known = torch.cdist(others.inputs, shots.inputs).sort(1).values[:, :k].mean(1)
    if len(shots.labels) > len(shots.labels.unique()):
        own = torch.cdist(shots.inputs, shots.inputs).sort(1).values[:, 1 : k + 1].mean(1)
        known = torch.cat((known, own))
    return float(known.mean()), max(float(known.std()), 1e-3)


def loss(found: Iterable[Domain], constants: Iterable[float], k: int = 1) -> float:
    """Clean NLL plus mean shifted NLL, averaged over cells."""
    shift, separation, failure, doubt = constants
    total, cells = 0.0, 0
    for one in found:
        odds = math.log(shift / (1 - shift)) + separation * one.distance[k] - 0.5 * separation**2
        v = doubt + (1 - doubt) * failure / (1 + np.exp(-odds))
        total -= one.weight * float(np.log((1 - v) * one.learnt + v * one.zeroshot + 1e-300).mean())
        cells += one.clean
    return total / cells


def best(found: list[Domain], k: int = 1) -> tuple[float, ...]:
    """The constants of the least loss, from the defaults on."""
    from scipy.optimize import minimize

    logit = lambda p: math.log(p / (1 - p))
    sigmoid = lambda u: 1 / (1 + math.exp(-min(max(u, -20.0), 20.0)))
    there = lambda c: np.array([logit(c[0]), math.log(c[1]), logit(c[2]), logit(c[3])])
    back = lambda u: (sigmoid(u[0]), math.exp(min(u[1], 3.0)), sigmoid(u[2]), sigmoid(u[3]))
    options = {"maxfev": 250, "xatol": 1e-2, "fatol": 1e-5}
    result = minimize(
        lambda u: loss(found, back(u), k), there(DEFAULTS), method="Nelder-Mead", options=options
    )
    return back(result.x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("beds", nargs="+", type=Path, help="files of benchmarks.simulated_shift")
    parser.add_argument(
        "--left-out", nargs="+", type=Path, default=[], help="files of features with several domains"
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    beds = [(path.stem, dict(np.load(path))) for path in options.beds]
    beds += [one for path in options.left_out for one in left_out(path)]
    cells = product(beds, options.shots, options.seeds)
    found = [one for bed, shots, seed in cells for one in domains(*bed, shots, seed)]
    say = lambda constants: ", ".join(f"{n} {c:.3g}" for n, c in zip(NAMES, constants, strict=True))
    print(
        f"learnt model alone {loss(found, (0.1, 2.0, 1e-9, 1e-9)):.4f}, defaults {loss(found, DEFAULTS):.4f}: {say(DEFAULTS)}"
    )
    for name, values in CHANGES.items():
        for value in values:
            changed = [value if n == name else c for n, c in zip(NAMES, DEFAULTS, strict=True)]
            print(f"  {name} {value:<6} {loss(found, changed):.4f}")
    for k in (1, 3, 10):
        fitted = best(found, k)
        print(
            f"{k} nearest: defaults {loss(found, DEFAULTS, k):.4f}, best {loss(found, fitted, k):.4f}: {say(fitted)}"
        )
    for bed in sorted({one.bed for one in found}):
        without = best([one for one in found if one.bed != bed])
        there = [one for one in found if one.bed == bed]
        print(
            f"without {bed}: {say(without)}; there {loss(there, without):.4f}, defaults {loss(there, DEFAULTS):.4f}"
        )


if __name__ == "__main__":
    main()
