"""How much memory a run has taken: the most that was resident in its process, and on a GPU the most that was allocated there."""

import sys
from contextlib import suppress
from pathlib import Path

import torch

MIB = 2**20


class PeakMemory:
    """The peak from its making on.

    Jobs of a sweep share a process. So Linux is asked to begin its count of the peak anew (`/proc/self/clear_refs`, "5"),
    which makes it that of one job, with what the process keeps in memory for all of them. Where that cannot be asked, the
    count is that of the whole process so far.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def record(self) -> dict[str, float]:
        """`peak_memory_mib`, and where a GPU was used `peak_gpu_memory_mib`."""
        found = {"peak_memory_mib": round(_resident(), 1)}
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        return found | ({"peak_gpu_memory_mib": round(allocated / MIB, 1)} if allocated else {})


def _resident() -> float:
    """MiB; getrusage would count on Linux what the parent had before it started this process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux, or one that hides it
        import resource  # Windows has none

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024
