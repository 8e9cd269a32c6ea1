"""The optimisers against AdamW: steps and whole fits of the linear adapter, one table, one JSON file.

    python -m benchmarks.optim [--out outputs/bench/optim.json] [--quick] [--device cpu]

Every ratio is of medians (clock.py) to a fused AdamW that took turns with the method in this run; the bound, where
there is one, stands beside it. optim_step.py and function_space.py say what is measured. One thread.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

from benchmarks import function_space, optim_step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/optim.json"))
    parser.add_argument("--quick", action="store_true", help="few repeats, no 1000 classes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for row in optim_step.rows(list(optim_step.METHODS), 15 if args.quick else 60, args.device):
        optim_step.show(row)
        found.append(row)
    classes = [10, 100] if args.quick else [10, 100, 1000]
    for row in function_space.rows(classes, repeats=1 if args.quick else 5, device=args.device):
        optim_step.show(row)
        found.append(row)
    peak = max(row["found"]["peak_gib"] for row in found if "found" in row)
    limit = function_space.GIB
    print(f"peak memory: {peak:.2f} GiB  ≤ {limit:g} {'yes' if peak <= limit else 'NO'}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "device": args.device,
    }
    args.out.write_text(
        json.dumps({**machine, "threads": 1, "rows": found, "peak_gib": peak}, indent=2) + "\n"
    )
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
