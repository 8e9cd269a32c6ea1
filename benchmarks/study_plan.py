"""What the study compares: the data sets, and the entries (a method, how many passes, and what is searched).

Equal search: whatever is searched is searched over five values by the NLL of the few-shot validation images (min(shots, 4)
a class), never a test image. Gradient methods search their learning rate, and in many epochs the epoch too (epoch 0, zero-shot,
included). Kalman-type methods come twice: with nothing searched, which is their promise, and with five prior variances, multiples
of the one that their own rule gives.
"""

from dataclasses import dataclass
from pathlib import Path

SHOTS = (1, 4, 16)
SEEDS = (1, 2, 3)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of the default prior ratio that a recursive filter searches."""
WIDE_FACTORS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Multiples of the cross-validated p₀ that `kalman` searches."""
PASSES = 4
"""Passes of a recursive filter in its long form."""
ONE, LONG = "one epoch", "converged"

GRADIENT = ("sgd", "adamw", "adagrad", "sam", "sophia")
NATURAL = ("kfac", "ring", "reng")
RECURSIVE = ("kalman_online", "rkalman", "kalman_clip", "loko")


@dataclass(frozen=True)
class Data:
    """A data set: its name in the study, the words of the command line that select it, and the adapter's coordinates."""

    name: str
    words: tuple[str, ...]
    coordinates: str = "classes"


@dataclass(frozen=True)
class Entry:
    """One line of the tables.

    label: how it is called; method: a word of conf/method/.
    regime: ONE or LONG. search: what five values are tried of, "learning rate", "prior" or "".
    words: further words of the command line. with_val: learns from the shots and the validation images together.
    """

    label: str
    method: str
    regime: str
    search: str = ""
    words: tuple[str, ...] = ()
    with_val: bool = False

    @property
    def key(self) -> str:
        """Tells it from every other entry."""
        return f"{self.regime}: {self.label}"


def data_sets(features: Path | None, coordinates: str = "classes") -> list[Data]:
    """The two embedded sets, and those of the precomputed features whose file is in the folder `features`."""
    found = [Data(name, (f"dataset={name}",), coordinates) for name in ("rendered", "digits")]
    for name, file, domain in (
        ("office", "officecaltech10.npz", "amazon"),
        ("caltech8", "caltech8_cues.npz", "caltech101"),
        ("caltech53", "caltech53.npz", "caltech101"),
    ):
        path = features / file if features else None
        if path is not None and path.is_file():
            words = ("dataset=features", f"dataset.path={path.resolve()}", f"dataset.id_domain={domain}")
            found.append(Data(name, words, coordinates))
    return found


def entries() -> list[Entry]:
    """Every line of the tables, in their order."""
    return [Entry("zeroshot", "zeroshot", LONG), *_gradient(), *_recursive(), *_exact()]


def _gradient() -> list[Entry]:
    """One epoch with the app's grid times three, since few steps want larger rates; then the app's own settings."""
    rate = "learning rate"
    grids = {
        "adamw": "0.0003,0.001,0.003,0.01,0.03",
        "sophia": "0.0003,0.001,0.003,0.01,0.03",
        "adagrad": "0.001,0.003,0.01,0.03,0.1",
        "sgd": "0.003,0.01,0.03,0.1,0.3",
        "sam": "0.003,0.01,0.03,0.1,0.3",
    }
    once = "optimizer.epochs=1"
    found = [Entry(m, m, ONE, rate, (once, f"optimizer.lr_grid=[{grids[m]}]")) for m in GRADIENT]
    small = (once, f"optimizer.lr_grid=[{grids['adamw']}]", "optimizer.batch_size=4")
    found.append(Entry("adamw, batch 4", "adamw", ONE, rate, small))
    found += [Entry(m, m, ONE, rate, (once,)) for m in NATURAL]
    return found + [Entry(m, m, LONG, rate) for m in GRADIENT + NATURAL]


def _recursive() -> list[Entry]:
    found = []
    for method in RECURSIVE:
        found += [Entry(method, method, ONE), Entry(f"{method}, prior searched", method, ONE, "prior")]
        found.append(Entry(method, method, LONG))
    return [*found, Entry("kalman_online, prior searched", "kalman_online", LONG, "prior")]


def _exact() -> list[Entry]:
    return [
        Entry("kalman", "kalman", LONG),
        Entry("kalman, prior searched", "kalman", LONG, "prior"),
        Entry("kalman, prior by evidence", "kalman", LONG, "", ("optimizer.prior=evidence",)),
        Entry("kalman, shots + val", "kalman", LONG, with_val=True),
    ]
