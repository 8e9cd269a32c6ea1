"""What starting costs: processor seconds of whole processes, their children included, median of three.

python -m benchmarks.start           # make bench-start, about a minute
python -m benchmarks.start --demo    # and what `make demo` runs, once, from warm caches

To hold against a target compare with the row `import torch`, which says how fast the machine is just now.
"""

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

TIMES = 3
CLIPKAL = ["-m", "clipkal", "output_dir=runs"]


def seconds(arguments: list[str], folder: Path, status: int) -> float:
    """User and system seconds of `python <arguments>` run in `folder`; it must end with `status`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    here = {"OMP_NUM_THREADS": "1", "CLIPKAL_CACHE": str(folder / "cache")}
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | here | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode != status:
        raise SystemExit(f"python {' '.join(arguments)}: exit {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(
    name: str,
    arguments: list[str],
    folder: Path,
    status: int = 0,
    before: Callable[[], object] = lambda: None,
    times: int = TIMES,
) -> None:
    """Prints the median over `times` runs, `before` called ahead of each."""
    found = []
    for _ in range(times):
        before()
        found.append(seconds(arguments, folder, status))
    print(f"{statistics.median(found):8.2f} s  {name}", flush=True)


def main() -> None:
    """Prints one line for each way to start."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--demo", action="store_true", help="measure the runs of `make demo` as well: minutes"
    )
    demo = parser.parse_args().demo
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        remove = lambda: shutil.rmtree(folder / "runs", ignore_errors=True)
        seconds(CLIPKAL, folder, 0)  # fills the caches
        measured("import torch", ["-c", "import torch"], folder)
        measured("clipkal --help", ["-m", "clipkal", "--help"], folder)
        measured("clipkal seed=-1 (a bad value)", [*CLIPKAL, "seed=-1"], folder, status=2)
        measured("clipkal, already finished", CLIPKAL, folder)
        measured("clipkal, from warm caches", CLIPKAL, folder, before=remove)
        if demo:
            runs = re.search(
                r"DEMO = clipkal (.*?)\n\n", Path("Makefile").read_text("utf-8"), flags=re.DOTALL
            )
            assert runs is not None
            command = ["-m", "clipkal", *runs[1].replace("\\\n", " ").split()]
            seconds([*command, "method=zeroshot", "fewshot.shots=1", "seed=1"], folder, 0)
            clear = lambda: shutil.rmtree(folder / "outputs", ignore_errors=True)
            measured("the runs of make demo", command, folder, before=clear, times=1)


if __name__ == "__main__":
    main()
