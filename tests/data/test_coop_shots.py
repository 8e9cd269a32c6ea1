"""The shots of Caltech-101 are CoOp's, by a second reading of its rule on the published split file."""

import json
import random
import shutil

import pytest

from clipkal import files
from clipkal.config import compose
from clipkal.data import draw_task, load_dataset


@pytest.fixture(scope="module")
def root(shared_data, tmp_path_factory):
    """Caltech-101 in CoOp's layout: the published split file, and class folders that share empty files."""
    root = tmp_path_factory.mktemp("data")
    (root / "store").mkdir()
    (root / "caltech-101/101_ObjectCategories").mkdir(parents=True)
    split = shared_data / "meta/split_zhou_Caltech101.json"
    shutil.copy(split, root / "caltech-101")
    paths = [path.split("/") for rows in json.loads(split.read_text()).values() for path, _, _ in rows]
    for name in {name for _, name in paths}:
        (root / "store" / name).touch()
    for folder in {folder for folder, _ in paths}:
        (root / "caltech-101/101_ObjectCategories" / folder).symlink_to(root / "store")
    return root


@pytest.fixture(scope="module")
def caltech101(root):
    return load_dataset(compose(["dataset=caltech101"]).dataset, root)


def by_coops_rule(split, shots, seed):
    """Paths of train and val: classes in the order of the file, one stream, val after train with min(shots, 4)."""
    before = random.getstate()
    random.seed(seed)
    drawn = []
    for part, k in (("train", shots), ("val", min(shots, 4))):
        of_class = {}
        for path, label, _ in split[part]:
            of_class.setdefault(label, []).append(path)
        drawn.append([path for paths in of_class.values() for path in random.sample(paths, k)])
    random.setstate(before)
    return drawn


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_caltech101_gives_the_shots_of_coop(root, caltech101, seed):
    file = root / "caltech-101/split_zhou_Caltech101.json"
    assert files.sha256(file) == compose(["dataset=caltech101"]).dataset.split_sha256
    for shots in (1, 4, 16):
        train, val = by_coops_rule(json.loads(file.read_text()), shots, seed)
        record = draw_task(caltech101, shots, seed, "fewshot").record
        assert [item["id"] for item in record["train"]] == train
        assert [item["id"] for item in record["val"]] == val
        assert len(set(train)) == 100 * shots
