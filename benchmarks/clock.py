"""The clock and the memory gauge of the benchmarks, on a CPU or a GPU."""

import time
from collections.abc import Callable
from pathlib import Path

import torch


def clock_of(device: str) -> Callable[[], float]:
    """Seconds: of processor time, all threads, on the CPU (on a shared machine steadier than the wall clock); on a GPU of
    wall time, once it has done all its work."""
    if device == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def peak_mib(device: str) -> float:
    """Most memory so far: resident in this process (getrusage would count the parent's before exec), or on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
