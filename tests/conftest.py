"""What every test shares: no network, one thread, and the read-only evaluation data where it is at hand."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600), append=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """The feature cache of the tests, and of the processes that they start, stays out of the user's home."""
    os.environ["CLIPKAL_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(autouse=True)
def _commands_leave_nothing():
    """What a test that types a command leaves in Hydra, and among the options, does not reach the next one."""
    from hydra.core.hydra_config import HydraConfig

    from clipkal.config.options import OPTIONS

    before = set(OPTIONS)
    yield
    HydraConfig.instance().cfg = None
    for name in set(OPTIONS) - before if before else ():
        del OPTIONS[name]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and features beside the checkout; skips the test where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no evaluation data: ../shared/data is absent")
    return folder
