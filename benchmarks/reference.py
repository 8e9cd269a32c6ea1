"""The numbers of three short runs, to compare one Python, library version or state of the code with another.

    python -m benchmarks.reference --write outputs/reference.json
    python -m benchmarks.reference --compare outputs/reference.json      # exits with 1 if a number differs

The runs take the analytic route of the recursive filter, the Kronecker-factored natural gradient and the
full-covariance filter. The features are computed anew for every call, so that a cache cannot hide a difference.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

RUNS = {
    method: [
        f"method={method}",
        "dataset=digits",
        "fewshot.shots=4",
        "tracking=disabled",
        "data.progress=false",
    ]
    for method in ("kalman_online", "kfac", "kalman")
}


def measure(overrides: list[str]) -> dict[str, float]:
    """Every metric of every set and predictive of one run, as <set>/<predictive>/<metric>."""
    from clipkal.app import run
    from clipkal.config import compose

    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLIPKAL_CACHE"] = f"{folder}/cache"
        run(compose([*overrides, f"output_dir={folder}", "threads=1"]))
        (results,) = Path(folder).glob("**/results.json")
        sets = json.loads(results.read_text())["sets"]
    return {
        f"{name}/{predictive}/{metric}": value
        for name, one in sets.items()
        for predictive, metrics in one["predictive"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    }


def difference(here: dict[str, float], there: dict[str, float]) -> tuple[float, str]:
    """The largest absolute difference and the metric that has it; infinite where a metric is on one side only."""
    if odd := sorted(set(here) ^ set(there)):
        return float("inf"), odd[0]
    return max((abs(here[key] - there[key]), key) for key in here)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--write", metavar="FILE", type=Path, help="run and write the numbers")
    which.add_argument(
        "--compare", metavar="FILE", type=Path, help="run and compare with the numbers in FILE"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-6, help="largest difference allowed (default 1e-6)"
    )
    options = parser.parse_args()
    numbers = {name: measure(overrides) for name, overrides in RUNS.items()}
    about = f"Python {platform.python_version()}, torch {torch.__version__}"
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps({"about": about, "runs": numbers}, indent=1))
        print(f"reference runs of {about}: {options.write}")
        return
    other = json.loads(options.compare.read_text())
    worst = {name: difference(numbers[name], other["runs"][name]) for name in RUNS}
    print(f"reference runs of {about} against {other['about']}:")
    for name, (size, metric) in worst.items():
        print(f"  {name:18} largest difference {size:.1e} ({metric})")
    sys.exit(any(size > options.tolerance for size, _ in worst.values()))


if __name__ == "__main__":
    main()
