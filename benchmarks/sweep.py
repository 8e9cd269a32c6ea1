"""What a job of a sweep costs: processor seconds, and jobs a minute on one core; then memory and disk a job.

python -m benchmarks.sweep                # make bench-sweep, about a minute
python -m benchmarks.sweep --seeds 500    # is memory flat? 1000 jobs
python -m benchmarks.sweep --seeds 500 --tracking offline    # the same with W&B's record of every job

The jobs are tiny: the embedded digits and their eight OOD sets, kalman and zeroshot, every seed once. To start, to import
torch and to fill the caches is left out: counted are the jobs from the fifth on, and the check of all jobs before the first.
To hold against a target compare with the row `import torch`, which says how fast the machine is just now.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.start import seconds

FIRST = 4
HERE = "CLIPKAL_BENCH_SWEEP"
SWEEP = ["dataset=digits", "threads=1"]
METHODS = "method=kalman,zeroshot"  # after the seeds, so that new shots are drawn to the end


class Meter:
    """A callback of Hydra: notes processor seconds and resident MiB at the start, before the first job and after every job."""

    def __init__(self) -> None:
        self.began = False

    def on_multirun_start(self, **_: object) -> None:
        self.note()

    def on_job_start(self, **_: object) -> None:
        if not self.began:
            self.began = True
            self.note()

    def on_job_end(self, **_: object) -> None:
        self.note()

    def note(self) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = [sum((one.ru_utime, one.ru_stime)) for one in (usage, children)]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        noted = {"user": usage.ru_utime + children.ru_utime, "all": sum(used), "mib": pages * 4096 / 2**20}
        with Path(os.environ[HERE]).open("a") as file:
            file.write(json.dumps(noted) + "\n")

    def __getattr__(self, name: str) -> object:
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


def main() -> None:
    """Prints processor seconds a job, jobs a minute, MiB of memory and of disk a job."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12, help="two jobs each")
    parser.add_argument("--tracking", default="disabled", help="an option of conf/tracking")
    options = parser.parse_args()
    seeds = ",".join(map(str, range(1, options.seeds + 1)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, HERE: str(folder / "meter")}
        meter = "+hydra.callbacks.meter._target_=benchmarks.sweep.Meter"
        command = [
            sys.executable,
            "-m",
            "clipkal",
            "-m",
            *SWEEP,
            f"tracking={options.tracking}",
            f"seed={seeds}",
            METHODS,
            f"output_dir={folder}/runs",
            meter,
        ]
        ran = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(ran.stdout + ran.stderr)
        noted = [json.loads(line) for line in (folder / "meter").read_text().splitlines()]
        size = sum(
            path.stat().st_size
            for path in (folder / "runs").rglob("*")
            if path.is_file() and not path.is_symlink()
        )
    start, checked, *noted = noted
    counted = len(noted) - FIRST
    each = {
        key: (noted[-1][key] - noted[FIRST - 1][key]) / counted + (checked[key] - start[key]) / len(noted)
        for key in ("user", "all")
    }
    late = len(noted) // 2  # buffers grow over the first jobs
    grown = (noted[-1]["mib"] - noted[late]["mib"]) / (len(noted) - 1 - late)
    print(f"{seconds(['-c', 'import torch'], Path.cwd(), 0):8.2f} s  import torch")
    print(
        f"{each['user']:8.3f} s  of the processor a job, {each['all']:.3f} s with the system's, over {counted} jobs"
    )
    print(f"{60 / each['all']:8.0f} jobs a minute on a core of its own")
    print(f"{grown:8.3f} MiB of memory a job over the second half, {noted[-1]['mib']:.0f} MiB at the end")
    print(f"{size / len(noted) / 2**20:8.2f} MiB of disk a job")


if __name__ == "__main__":
    main()
