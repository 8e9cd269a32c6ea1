"""FGVC-Aircraft's own lists, the one dataset of CoOp's that has no split file.

`variants.txt` names the classes in label order; each line of `images_variant_{train,val,test}.txt` is the
number of an image and its class name; image 0034309 is `images/0034309.jpg`.
"""

from __future__ import annotations

from pathlib import Path

from clipkal import files
from clipkal.errors import DataError

VARIANTS = "variants.txt"
Rows = dict[str, list[tuple[str, int, str]]]  # part -> (path, label, class name)


def is_aircraft(folder: Path) -> bool:
    """Whether the folder holds FGVC-Aircraft's lists."""
    return (folder / VARIANTS).is_file()


def read_lists(folder: Path) -> Rows:
    """The rows of train, val and test, as a split file would hold them.

    Raises:
        DataError: a list is missing, or names a class that `variants.txt` does not.
    """
    classes = _lines(folder / VARIANTS)
    labels = {name: label for label, name in enumerate(classes)}
    rows: Rows = {}
    for part in ("train", "val", "test"):
        file = folder / f"images_variant_{part}.txt"
        rows[part] = []
        for line in _lines(file):
            number, _, name = line.partition(" ")
            if name not in labels:
                raise DataError(
                    f"{file}: the class {name[:80]!r} of image {number[:80]!r} is not in {VARIANTS}"
                )
            rows[part].append((f"{number}.jpg", labels[name], name))
    return rows


def _lines(file: Path) -> list[str]:
    text = files.read_text(file, "list", f"FGVC-Aircraft needs it beside {VARIANTS}")
    return [line.strip() for line in text.splitlines() if line.strip()]
