"""One folder of synthetic runs, made once: two datasets, three methods, two numbers of shots, three seeds."""

from pathlib import Path

import pytest
from synthetic_runs import write_run


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    for dataset, sets in (("digits", ("test", "sketch", "photo")), ("shapes", ("test", "sketch"))):
        for method in ("zeroshot", "adamw", "kalman"):
            for shots in (1, 16):
                for seed in (1, 2, 3):
                    write_run(root, dataset=dataset, method=method, shots=shots, seed=seed, n=60, sets=sets)
    return root
