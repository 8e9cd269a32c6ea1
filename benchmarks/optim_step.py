"""Times one optimiser step of the linear adapter against fused AdamW, and says which bounds hold.

    python -m benchmarks.optim_step [--repeats 60] [--threads 1] [--device cpu] [--methods NAME …]

Each method takes turns with an AdamW of its own, so that other load falls on both; a ratio is of the two medians (clock.py
says of what). Synthetic unit features; d = 512, logit scale 100; 7 labels of 10 are what the model says at the start.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clock import clock_of
from clipkal.optim import KFAC, SAM, AdamW, KalmanFilter, OnlineKalman, RKalman, Sophia
from clipkal.optim.kalman.covariance.subspace import Subspace

Row = dict[str, Any]


class LinearAdapter(nn.Module):
    """logits = scale · f (I + W)ᵀ Tᵀ, as bare as can be."""

    left: Tensor

    def __init__(self, text: Tensor, scale: float):
        super().__init__()
        self.register_buffer("left", scale * text)
        self.weight = nn.Parameter(torch.zeros(text.shape[1], text.shape[1]))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs + inputs @ self.weight.mT) @ self.left.mT

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.left, inputs


def adapter(classes: int, width: int = 512) -> LinearAdapter:
    generator = torch.Generator().manual_seed(0)
    return LinearAdapter(F.normalize(torch.randn(classes, width, generator=generator), dim=-1), 100.0)


FILTERS: dict[str, Callable[[nn.Module], Any]] = {
    "kalman (preset: iterated)": OnlineKalman,
    "kalman, linearised once": lambda m: KalmanFilter(
        m, "categorical_merged", covariance=Subspace(iterations=1)
    ),
    "kalman, once, no merging": lambda m: KalmanFilter(m, covariance=Subspace(iterations=1)),
    "diagonal in W's own axes": KalmanFilter,
    "rkalman": RKalman,
    "one scalar an image": lambda m: KalmanFilter(m, "softmax", covariance="subspace"),
}
PEERS: dict[str, Callable[[nn.Module], Any]] = {
    "sam (pytorch_optimizer)": lambda m: SAM(m, lr=1e-4),
    "sophia (pytorch_optimizer)": lambda m: Sophia(m, lr=1e-4),
    "kfac": lambda m: KFAC(m, lr=1e-3),
}
METHODS = FILTERS | PEERS
# (B, C) and the bound on the filters' ratio; none was set for 1000 classes.
CASES: dict[tuple[int, int], float | None] = {(1, 10): 1.2, (32, 10): 5.0, (32, 100): 8.0, (1, 1000): None}


def ratio(
    make: Callable[[nn.Module], Any], batch: int, classes: int, repeats: int, device: str
) -> tuple[float, float]:
    """Median seconds a step of a method and of the AdamW that took turns with it; five steps of warming up."""
    generator = torch.Generator().manual_seed(1)
    inputs = F.normalize(torch.randn(repeats + 5, batch, 512, generator=generator), dim=-1)
    targets = torch.randint(classes, (repeats + 5, batch), generator=generator)
    right = torch.rand(targets.shape, generator=generator) < 0.7
    targets = torch.where(right, adapter(classes)(inputs).argmax(-1), targets)
    optimisers = (make(adapter(classes).to(device)), AdamW(adapter(classes).to(device), lr=1e-4))
    times: tuple[list[float], list[float]] = ([], [])
    clock = clock_of(device)
    for x, y in zip(inputs.to(device), targets.to(device), strict=True):
        for optimiser, seconds in zip(optimisers, times, strict=True):
            start = clock()
            optimiser.step(x, y)
            seconds.append(clock() - start)
    return statistics.median(times[0][5:]), statistics.median(times[1][5:])


def rows(methods: list[str], repeats: int, device: str = "cpu") -> Iterator[Row]:
    """One row a case and method."""
    for (batch, classes), bound in CASES.items():
        for name in methods:
            seconds, theirs = ratio(METHODS[name], batch, classes, repeats, device)
            yield {
                "case": f"a step, B = {batch}, C = {classes}",
                "method": name,
                "seconds": seconds,
                "adamw_seconds": theirs,
                "ratio": seconds / theirs,
                "bound": bound if name in FILTERS else None,
            }


def show(row: Row) -> None:
    """One line of the table."""
    bound = row["bound"]
    verdict = "" if bound is None else f"≤ {bound:<4g} {'yes' if row['ratio'] <= bound else 'NO'}"
    times = f"{1e3 * row['seconds']:10.2f} ms  {row['ratio']:7.2f} × AdamW"
    print(f"{row['case']:32}  {row['method']:28} {times}  {verdict}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for row in rows(args.methods, args.repeats, args.device):
        show(row)


if __name__ == "__main__":
    main()
