"""Times one optimiser step of the linear adapter against fused AdamW, interleaved; prints a table, writes JSON.

    python -m benchmarks.optim_step [--out results.json] [--repeats 25] [--threads 0] [--wall]

Each ratio is the median over repeats of one step's time, divided by AdamW's median in the same run, the two
taking turns so that other load falls on both. The clock is processor time (all threads) unless --wall: on a
shared machine that is the steadier of the two. Synthetic unit features; d = 512, logit scale 100.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim import FirstOrder, KalmanFilter
from clipkal.optim.observation import Categorical


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


def adapter(classes: int, width: int) -> LinearAdapter:
    generator = torch.Generator().manual_seed(0)
    return LinearAdapter(F.normalize(torch.randn(classes, width, generator=generator), dim=-1), 100.0)


def adamw(model: nn.Module) -> FirstOrder:
    return FirstOrder(model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "categorical": lambda model: KalmanFilter(model),
    "categorical, merge=0.01": lambda model: KalmanFilter(model, observation=Categorical(merge=0.01)),
    "categorical, block=1": lambda model: KalmanFilter(model, block=1),
    "categorical, joint": lambda model: KalmanFilter(model, block=None),
    "softmax": lambda model: KalmanFilter(model, observation="softmax"),
    "rkalman": lambda model: KalmanFilter(model, rho=1e-3, store_regularisation=False),
}
CASES = [(1, 10), (32, 10), (32, 100), (1, 1000)]


def time_case(
    batch: int, classes: int, methods: list[str], repeats: int, clock: Callable[[], float], width: int = 512
) -> dict[str, float]:
    """Median seconds a step, by method; AdamW takes its turn before each of them."""
    generator = torch.Generator().manual_seed(1)
    inputs = F.normalize(torch.randn(repeats, batch, width, generator=generator), dim=-1)
    targets = torch.randint(classes, (repeats, batch), generator=generator)
    makers = {"adamw": adamw, **{name: METHODS[name] for name in methods}}
    optimisers = {name: make(adapter(classes, width)) for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in optimisers}
    for step in range(repeats):
        for name, optimiser in optimisers.items():
            start = clock()
            optimiser.step(inputs[step], targets[step])
            times[name].append(clock() - start)
    return {name: statistics.median(values[3:]) for name, values in times.items()}


def report(cases: list[tuple[int, int]], wanted: list[str], repeats: int, clock: Callable[[], float]) -> list:
    """Times every case and prints its ratios."""
    rows = []
    for batch, classes in cases:
        methods = [m for m in wanted if not (classes > 50 and m.endswith("joint"))]
        seconds = time_case(batch, classes, methods, repeats, clock)
        rows.append({"batch": batch, "classes": classes, "seconds": seconds})
        print(f"B = {batch}, C = {classes}: AdamW {1e3 * seconds['adamw']:.2f} ms")
        for name in methods:
            ratio = seconds[name] / seconds["adamw"]
            print(f"    {name:24} {1e3 * seconds[name]:8.2f} ms   {ratio:6.2f} × AdamW")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/optim_step.json"))
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--wall", action="store_true", help="wall time instead of processor time")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.wall else time.process_time
    record = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": args.repeats,
        "clock": clock.__name__,
        "rows": report(CASES, args.methods, args.repeats, clock),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
