"""Class names and class maps as a config gives them: written out, or in a file."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from clipkal import files
from clipkal.errors import DataError

CLASS_MAPS = Path(__file__).parent / "class_maps"
WHAT = "class names"
ClassNames = Mapping[str, str] | Sequence[str] | None


def class_names(given: Any, root: Path) -> ClassNames:
    """A mapping or a list of names as text.

    Args:
        given: what `dataset.class_names` says: a mapping key -> name, a list, None, or a file below `root`: JSON
            of one of the two, or lines of a key, a space and the name.
        root: where relative paths start.

    Raises:
        DataError: the file cannot be read, or a name is no text.
    """
    key = "dataset.class_names"
    if given is None:
        return None
    if isinstance(given, str):
        path = root / files.expanded(given)
        way_out = f"check {key}"
        given = files.read_json(path, WHAT, way_out) if path.suffix == ".json" else _lines(path, way_out)
        key = str(path)
    given = _plain(given)
    if not isinstance(given, Mapping | list | tuple) or not given:
        raise DataError(
            f"{key}: holds no class names; expected a list of them, or a mapping of class to name"
        )
    if isinstance(given, Mapping):
        return {str(k): _name(key, str(k), name) for k, name in given.items()}
    return [_name(key, f"number {i}", name) for i, name in enumerate(given)]


def class_map(key: str, given: Any, root: Path) -> dict[str, str] | None:
    """Class of an OOD set -> class of ID, as text.

    Args:
        key: what the config calls it, for messages.
        given: a mapping, None, a .json file of one below `root`, or the name of one that comes with clipkal.
        root: where relative paths start.

    Raises:
        DataError: the file cannot be read, or it is no mapping of texts.
    """
    if given is None:
        return None
    if isinstance(given, str):
        own = {path.stem: path for path in CLASS_MAPS.glob("*.json")}
        path = own.get(given, root / files.expanded(given))
        given, key = files.read_json(path, "class map", f"check {key}"), str(path)
    given = _plain(given)
    if not isinstance(given, Mapping) or not given:
        raise DataError(f"{key}: must map each class of the OOD set to one class of ID, {{there: here, …}}")
    return {str(there): _name(key, str(there), here) for there, here in given.items()}


def _plain(given: Any) -> Any:
    return OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given


def _name(key: str, of: str, name: Any) -> str:
    """A name that is text, or a number that someone wrote without quotes."""
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        hint = "; put such words in quotes" if name is None or isinstance(name, bool) else ""
        raise DataError(f"{key}: {of[:60]!r} must be given one name as text, not {reprlib.repr(name)}{hint}")
    return str(name)


def _lines(path: Path, way_out: str) -> dict[str, str]:
    """The names of a text file; CoOp's classnames.txt is one."""
    found: dict[str, str] = {}
    for number, line in enumerate(files.read_text(path, WHAT, way_out).split("\n"), 1):
        if not line.strip():
            continue
        word, *rest = line.split(maxsplit=1)
        if not rest or word in found:
            raise DataError(
                f"{path}: line {number}: the class {word[:60]!r} {'appears twice' if rest else 'has no name'}; "
                "expected lines of a class, a space and its name (a plain list of names is a .json)"
            )
        found[word] = rest[0].strip()
    return found
