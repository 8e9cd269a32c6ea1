"""Every reader of a file, given thousands of damaged ones: it reads them, or says in one line what is wrong."""

import numpy as np
import pytest
from mutations import COUNTS, damaged, disarrayed, tally
from test_archive import pack
from test_features import arrays as features

from clipkal.data import load_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # numpy's, on what is made wrong here
TABLE = "path,label,split,domain\n" + "".join(
    f'img/{label}/{i}.png,"{label}",{split},{domain}\n'
    for label in ("crow", "a duck")
    for i, (split, domain) in enumerate(
        [("train", "sky"), ("train", "sky"), ("test", "sky"), ("test", "sea")]
    )
)


@pytest.fixture
def trial(config, tmp_path, make_tree, monkeypatch):
    """Loads `file` as a dataset, or as an OOD set of one, and decodes an image."""
    make_tree(
        tmp_path / "own", {f"{split}/{label}": 1 for split in ("train", "test") for label in ("cup", "pen")}
    )

    def trial(source, file):
        def load():
            if source == "arrays":
                dataset = load_dataset(
                    config("folder", path="own", val_fraction=0.0, ood=[f"far:{file}"]), tmp_path
                )
                return dataset.ood["far"].decode(0)
            dataset = load_dataset(config(source, path=file), tmp_path)
            return source == "archive" and dataset.train.decode(0)

        return load

    return trial


def check(outcomes):
    """Most are refused, some are read; else the damage would be too small or too great to tell anything."""
    assert 0.01 < np.mean(outcomes) < 0.9, np.mean(outcomes)


@pytest.mark.parametrize("count", COUNTS)
def test_tables(trial, tmp_path, count):
    for line in TABLE.splitlines()[1:]:
        path = tmp_path / line.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    load = trial("table", "toy.csv")
    outcomes = []
    for content in damaged(TABLE.encode(), 0, count):
        (tmp_path / "toy.csv").write_bytes(content)
        outcomes.append(tally(load, (str(tmp_path), "toy")))
    check(outcomes)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("source", ["archive", "features"])
def test_packed_files(trial, tmp_path, source, count):
    whole = features()
    if source == "archive":
        whole = dict(np.load(pack(tmp_path / "whole.npz")))
    load = trial(source, "toy.npz")
    outcomes = []
    for content in disarrayed(whole, 1, count // 2):
        np.savez(tmp_path / "toy.npz", **content)
        outcomes.append(tally(load, "toy"))
    whole_file = (tmp_path / "whole.npz") if source == "archive" else tmp_path / "toy.npz"
    for content in damaged(whole_file.read_bytes(), 2, count // 2):
        (tmp_path / "toy.npz").write_bytes(content)
        outcomes.append(tally(load, "toy"))
    check(outcomes)


@pytest.mark.parametrize("count", COUNTS)
def test_arrays(trial, tmp_path, count):
    whole = {"data": np.zeros((3, 4, 4, 3), np.uint8), "labels": np.array([0, 1, 1])}
    load = trial("arrays", "toy_data.npy")
    outcomes = []
    for content in disarrayed(whole, 3, count // 2):
        for key in whole:
            (tmp_path / f"toy_{key}.npy").unlink(missing_ok=True)
            if key in content:
                np.save(tmp_path / f"toy_{key}.npy", content[key])
        outcomes.append(tally(load, "toy"))
    for key in whole:
        np.save(tmp_path / f"toy_{key}.npy", whole[key])
    whole_labels = (tmp_path / "toy_labels.npy").read_bytes()
    for content in damaged(whole_labels, 4, count // 2):
        (tmp_path / "toy_labels.npy").write_bytes(content)
        outcomes.append(tally(load, "toy"))
    check(outcomes)
