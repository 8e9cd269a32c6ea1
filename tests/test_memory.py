"""The memory that a run says it took."""

from pathlib import Path

import numpy as np
import pytest

from clipkal.recording.memory import PeakMemory


def test_the_peak_is_that_of_the_run_and_not_of_one_before_it_in_the_process():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system cannot begin its count of the peak anew")
    before = PeakMemory().record()["peak_memory_mib"]
    busy = PeakMemory()
    np.ones((300, 2**17)).sum()  # 300 MiB, for a moment
    during = busy.record()["peak_memory_mib"]
    after = PeakMemory().record()["peak_memory_mib"]
    assert during - before == pytest.approx(300, abs=30)
    assert after - before == pytest.approx(0, abs=30)
