"""Times one optimiser step of LoRA on a CLIP tower against fused AdamW, interleaved, and measures peak memory.

    python -m benchmarks.lora_step [--backbone ViT-B-32] [--batch 16] [--classes 10 100 1000] [--steps 20] [--device cpu]

Rank 4 on q, k, v of every block, random weights (time does not depend on them), random images. Ratios are of mean
seconds (clock.py) a step after ten untimed ones, over whole intervals of a natural gradient's refreshes (--steps a multiple of
ten); the methods take turns at every step.
Peak memory is a process of its own per method: what its steps add on top of the loaded model, and the whole process.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import open_clip
import torch
from torch.nn import functional as F

from benchmarks.clock import clock_of, peak_mib
from clipkal.adapters.lora import LoRAAdapter, LoRASettings
from clipkal.optim import KFAC, RENG, RING, SAM, AdamW, KalmanFilter
from clipkal.optim.kalman.observation import ResidualNoise

BOUNDS = {"kalman, scalar": 1.1, "loko, scalar": 1.1, "ring": 2.1, "reng": 2.5}
MEMORY_BOUNDS = {"kalman, scalar": 1.35, "loko, scalar": 1.35, "ring": 1.35, "reng": 2.4}
WARMUP = 10
"""Untimed steps of one image: natural gradients refresh at steps 0, 1, 2, 4, 8 and from then on at every tenth."""
CHEAP = ("adamw", "kalman, scalar", "loko, scalar", "kfac", "ring", "reng", "sam")


def scalar_filter(model: LoRAAdapter, **more: Any) -> KalmanFilter:
    return KalmanFilter(model, "softmax", block=None, priors=model.prior_variances(), **more)


METHODS: dict[str, Callable[[LoRAAdapter], Any]] = {
    "adamw": lambda model: AdamW(model, lr=1e-4),
    "kalman, scalar": scalar_filter,
    "loko, scalar": lambda model: scalar_filter(model, noise=ResidualNoise(), epochs_as="optimiser"),
    "kfac": lambda model: KFAC(model, lr=1e-4),
    "ring": lambda model: RING(model, lr=1e-4),
    "reng": lambda model: RENG(model, lr=1e-4),
    "sam": lambda model: SAM(model, lr=1e-4),
    "kalman, categorical": lambda model: KalmanFilter(model, block=None, priors=model.prior_variances()),
}


def tower(name: str, device: str) -> Any:
    torch.manual_seed(0)
    return open_clip.create_model(name, pretrained=None).eval().requires_grad_(False).to(device)


def lora(model: Any, classes: int) -> LoRAAdapter:
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(classes, model.text_projection.shape[1], generator=generator), dim=-1)
    device = model.text_projection.device
    return LoRAAdapter(model, text.to(device), 100.0, LoRASettings(rank=4)).to(device)


def batches(model: Any, batch: int, classes: int, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    side, device = model.visual.image_size[0], model.text_projection.device
    return [
        (
            torch.randn(batch, 3, side, side, generator=generator).to(device),
            torch.randint(classes, (batch,), generator=generator).to(device),
        )
        for _ in range(steps)
    ]


def seconds_per_step(
    model: Any, batch: int, classes: int, steps: int, methods: list[str]
) -> dict[str, list[float]]:
    optimisers = {name: METHODS[name](lora(model, classes)) for name in methods}
    times: dict[str, list[float]] = {name: [] for name in methods}
    clock = clock_of(model.text_projection.device.type)
    for images, labels in batches(model, 1, classes, WARMUP):
        for optimiser in optimisers.values():
            optimiser.step(images, labels)
    for images, labels in batches(model, batch, classes, steps):
        for name, optimiser in optimisers.items():
            start = clock()
            optimiser.step(images, labels)
            times[name].append(clock() - start)
    return times


def peak_of(backbone: str, batch: int, classes: int, name: str, device: str) -> dict[str, float]:
    """Peak memory in MiB of a process that takes three steps: `model` before them, `peak` after."""
    command = [sys.executable, "-m", "benchmarks.lora_step", "--backbone", backbone, "--batch", str(batch)]
    command += ["--classes", str(classes), "--peak", name, "--device", device]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def measure_peak(backbone: str, batch: int, classes: int, name: str, device: str) -> dict[str, float]:
    model = tower(backbone, device)
    optimiser = METHODS[name](lora(model, classes))
    before = peak_mib(device)
    for images, labels in batches(model, batch, classes, 3):
        optimiser.step(images, labels)
    return {"model": before, "peak": peak_mib(device)}


def row_of(name: str, times: dict[str, list[float]], peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
    row = {"method": name, "seconds": mean(times[name]), "bound": BOUNDS.get(name)}
    row["ratio"] = row["seconds"] / mean(times["adamw"])
    row["median_ratio"] = median(a / b for a, b in zip(times[name], times["adamw"], strict=True))
    if name in peaks:
        row["memory_mib"] = peaks[name]["peak"]
        row["memory_ratio"] = peaks[name]["peak"] / peaks["adamw"]["peak"]
        row["memory_bound"] = MEMORY_BOUNDS.get(name)
    return row


def show(classes: int, rows: list[dict[str, Any]]) -> None:
    print(f"C = {classes}: AdamW {rows[0]['seconds']:.2f} s a step")
    for row in rows:
        memory = f"   peak memory {row['memory_ratio']:.2f}" if "memory_ratio" in row else ""
        memory += f" (bound {row['memory_bound']})" if row.get("memory_bound") else ""
        bound = f" (bound {row['bound']})" if row["bound"] else ""
        print(
            f"    {row['method']:20} {row['ratio']:6.2f} × AdamW{bound}, median {row['median_ratio']:.2f}{memory}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="*", default=list(CHEAP), choices=list(METHODS))
    parser.add_argument("--peak", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/lora_step.json"))
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(measure_peak(args.backbone, args.batch, args.classes[0], args.peak, args.device)))
        return
    methods = list(dict.fromkeys(["adamw", *args.methods]))
    model, cases = tower(args.backbone, args.device), []
    for number, classes in enumerate(args.classes):
        times = seconds_per_step(model, args.batch, classes, args.steps, methods)
        peaks = {
            name: peak_of(args.backbone, args.batch, classes, name, args.device)
            for name in methods
            if not number
        }
        rows = [row_of(name, times, peaks) for name in methods]
        show(classes, rows)
        cases.append({"classes": classes, "batch": args.batch, "rows": rows})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "backbone": args.backbone,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cases": cases,
    }
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
