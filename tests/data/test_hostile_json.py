"""Hostile files: a reader gives what it promises or one line that names the file, whatever is in it."""

import copy
import json
import random
from itertools import chain

import pytest
from mutations import COUNTS, damaged, tally

from clipkal.data import draw_task
from clipkal.data.aircraft import read_lists
from clipkal.data.class_files import class_map, class_names
from clipkal.data.coop import checked, read_split
from clipkal.data.shotlist import list_items

SPLIT = {
    part: [
        [f"{name}/{part}{i}.jpg", label, name]
        for label, name in enumerate(("crow", "mute swan"))
        for i in (0, 1)
    ]
    for part in ("train", "val", "test")
}


def read_a_split(path):
    check_split(*read_split(path))


def read_variants(path):
    lists = {"train": "001 A320", "val": "", "test": "002 A320\n003 Boeing 707-320"}
    for part, lines in lists.items():
        if not (file := path.parent / f"images_variant_{part}.txt").exists():
            file.write_text(lines)
    check_split(*checked(path, read_lists(path.parent)))


def check_split(parts, names):
    assert all(type(name) is str and name.strip() for name in names)
    for part in parts.values():
        assert all(type(one) is str and ".." not in one.split("/") for one in part.paths)
        assert all(type(label) is int and 0 <= label < len(names) for label in part.labels)


def read_names(path):
    found = class_names(str(path), path.parent)
    for name in found.values() if isinstance(found, dict) else found:
        assert type(name) is str and name.strip()


def read_map(path):
    found = class_map("dataset.shifts.far.class_map", str(path), path.parent)
    assert found and all(type(here) is str and here.strip() for here in found.values())


def read_shots(path, dataset):
    task = draw_task(dataset, 1, 1, shot_list=path)
    assert set(task.shots.ids) <= set(dataset.train.ids)
    json.dumps(list_items(task.shots, task.class_names))


def content_of(kind, feature_dataset):
    """A good file, the file's name, and a reader of it that says whether what it gives is sound."""
    if kind in ("split", "names", "map", "lines", "variants"):
        return {
            "split": ("split.json", json.dumps(SPLIT), read_a_split),
            "variants": ("variants.txt", "A320\nBoeing 707-320\n", read_variants),
            "names": ("names.json", '{"n001": "crow", "n002": "mute swan", "n003": 7}', read_names),
            "lines": ("names.txt", "n001 crow\nn002 mute swan\n", read_names),
            "map": ("map.json", '{"wolf": "dog", "lynx": "cat"}', read_map),
        }[kind]
    dataset = feature_dataset([0, 0, 1, 1, 2, 2], [0, 1, 2])
    entries = [{"impath": f"./toy/train/000{i}", "label": 9, "classname": "class 0"} for i in (0, 1)]
    index = {"train": {"data": entries, "indices": [0, 1]}, "val": {"data": []}}
    record = draw_task(dataset, 1, 1).record
    return (
        f"{kind}.json",
        json.dumps({"shots": record, "index": index}[kind]),
        lambda path: read_shots(path, dataset),
    )


VALUES = (
    *(None, True, False, 0, -1, 7, 2.5, 10**30, float("nan"), float("inf"), "", " ", "x", "7", "-1", "\0"),
    *("\ud800", "\ufeff", "a\nb", "../x", "/x", "C:\\x", "é", "e\u0301", "y" * 5000),
    *([], {}, [[]], [None], {"": None}, {"id": 3}, {"data": None}, ["a", 0, "b"]),
)


def miswritten(text, seed, count):
    """Copies of a JSON file with one or two values replaced, left out, doubled, renamed or put into deeper lists."""
    stream = random.Random(seed)
    for _ in range(count):
        root = [json.loads(text)]
        for _ in range(stream.randint(1, 2)):
            parent, key = stream.choice(list(places(root)))
            match stream.randrange(5):
                case 0 if parent is not root:
                    del parent[key]
                case 1 if isinstance(parent, list) and parent is not root:
                    parent.insert(key, copy.deepcopy(parent[key]))
                case 2:
                    for _ in range(stream.choice((1, 1, 30, 300))):
                        parent[key] = [parent[key]]
                case 3 if isinstance(parent, dict):
                    parent[stream.choice(("", "\ud800", "x", "train", "id"))] = parent.pop(key)
                case _:
                    parent[key] = copy.deepcopy(stream.choice(VALUES))
        yield json.dumps(root[0]).encode()


def places(node, depth=0):
    """Every (parent, key) of a tree, but for what lies very deep."""
    for key, child in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield node, key
        if isinstance(child, dict | list) and depth < 30:
            yield from places(child, depth + 1)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["split", "variants", "names", "lines", "map", "shots", "index"])
def test_a_hostile_file_is_read_rightly_or_refused_in_one_line(kind, count, tmp_path, feature_dataset):
    name, text, read = content_of(kind, feature_dataset)
    values = miswritten(text, 1, count // 2) if name.endswith(".json") else []
    outcomes = []
    for content in chain(damaged(text.encode(), 0, count // 2), values):
        (tmp_path / name).write_bytes(content)
        outcomes.append(tally(lambda: read(tmp_path / name), name))
    assert 0.01 < sum(outcomes) / len(outcomes) < 0.9
