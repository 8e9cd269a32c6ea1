"""What a run was made from: the files and folders it reads, told apart from what they may have become.

A finished run is not done again as long as its inputs are what they were. Cheap to ask: the names, sizes and
times of change of the files (of more than `SAMPLE`, all names but the stamps of an even sample). Where these
differ, the contents decide, if they are known: those of single files and of folders of at most `SMALL` bytes
are digested when a run is made, those of larger folders only with `data.verify=true`. With it the contents
are compared even where the stamps agree. An input that is no longer there says nothing: on a machine without
the data a finished run stays finished.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import clipkal
from clipkal import files

SAMPLE = 20_000
SMALL = 64 << 20
PACKAGE = "clipkal:"  # before what came with the package, wherever that is installed
Record = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Look:
    """One input: how many files and bytes (of the sample), and the digests of its stamps and its contents."""

    files: int
    bytes: int
    stamps: str
    contents: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Looks at the inputs of a run.

    Attributes:
        root: `data.root`; the names of inputs below it are relative to it, so that it may move.
        verify: `data.verify`.
        without: folders that are left out where an input holds them: where results and features go.
    """

    root: Path
    verify: bool = False
    without: Sequence[Path] = ()

    def record(self, places: Iterable[Path]) -> Record:
        """What finished.json keeps: name -> look, of the places that are there."""
        looks = {self._name(place): self._look(place, contents=True) for place in places}
        return {name: asdict(look) for name, look in looks.items() if look is not None}

    def changes(self, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """One phrase for each input that is there and no longer what it was."""
        then = {name: Look(**look) for name, look in record.items()}
        phrases = ((name, self._change(look, self._place(name))) for name, look in then.items())
        return [f"{name} {phrase}" for name, phrase in phrases if phrase]

    def unknown(self, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The inputs whose contents nobody has digested, so that `verify` cannot compare them."""
        return [name for name, look in record.items() if look["contents"] is None]

    def _change(self, then: Look, place: Path) -> str:
        now = self._look(place, contents=False)
        if now is None or (now.stamps == then.stamps and not (self.verify and then.contents)):
            return ""
        if then.contents is not None:
            now = self._look(place, contents=True, anyway=True)
            if now is None or now.contents == then.contents:
                return ""
        if (then.files, then.bytes) != (now.files, now.bytes):
            return f"held {_size(then)} and now holds {_size(now)}"
        return "has other contents" if now.contents else "has files that were changed, renamed or copied anew"

    def _look(self, place: Path, contents: bool, anyway: bool = False) -> Look | None:
        folder, names = (place, self._listed(place)) if place.is_dir() else (place.parent, [place.name])
        stamps = _present(files.stamps(folder, names[:: 1 + len(names) // SAMPLE]))
        if not stamps:
            return None
        size = sum(int(stamp.partition(":")[0]) for stamp in stamps)
        few = anyway or self.verify or len(names) == 1 or (size <= SMALL and len(names) <= SAMPLE)
        read = _contents.__wrapped__ if anyway or self.verify else _contents
        known = read(folder, tuple(names), tuple(stamps)) if contents and few else None
        return Look(len(names), size, _digest(names, stamps), known)

    def _listed(self, folder: Path) -> list[str]:
        """All files below a folder, sorted; hidden ones, and loops of links, are left out."""
        closed = {_node(str(path)) for path in self.without} - {None}
        found: list[str] = []
        for place, inside, names in os.walk(folder, followlinks=True):
            closed.add(_node(place))
            inside[:] = sorted(i for i in inside if i[0] != "." and _node(f"{place}/{i}") not in closed)
            base = os.path.relpath(place, folder)
            found += [name if base == "." else f"{base}/{name}" for name in names if name[0] != "."]
        return sorted(found)

    def _name(self, place: Path) -> str:
        for start, prefix in ((_package(), PACKAGE), (self.root, "")):
            if place.is_relative_to(start):
                return prefix + place.relative_to(start).as_posix()
        return place.as_posix()

    def _place(self, name: str) -> Path:
        return _package() / name.removeprefix(PACKAGE) if name.startswith(PACKAGE) else self.root / name


def inputs_of(config: Any) -> Inputs:
    """How a run with this configuration looks at its inputs: `data.root`, `data.verify`, and what is left out."""
    root, cache = (OmegaConf.select(config, key) for key in ("data.root", "data.cache"))
    own = [OmegaConf.select(config, "output_dir") or "outputs", *([cache] if cache else [])]
    return Inputs(
        files.expanded(root or "data").absolute(),
        bool(OmegaConf.select(config, "data.verify")),
        [files.expanded(folder) for folder in own],
    )


def is_record(value: Any) -> bool:
    """Whether JSON is what `Inputs.record` gives."""
    kinds = {"files": int, "bytes": int, "stamps": str, "contents": str | None}
    return isinstance(value, dict) and all(
        isinstance(look, dict)
        and look.keys() == kinds.keys()
        and all(isinstance(look[key], kind) for key, kind in kinds.items())
        and "\0" not in name
        for name, look in value.items()
    )


def _package() -> Path:
    return Path(clipkal.__file__).parent


def _present(stamps: Iterable[str | None]) -> list[str]:
    return [stamp for stamp in stamps if stamp is not None]


def _digest(names: Iterable[str], stamps: Iterable[str | None]) -> str:
    return files.digest("\n".join(names), "\n".join(map(str, stamps)))


@lru_cache(maxsize=64)
def _contents(folder: Path, names: tuple[str, ...], stamps: tuple[str, ...]) -> str:
    """The digest of files' contents, for other jobs of this process too as long as all stamps are the same."""
    return _digest(names, files.stamps(folder, names, contents=True))


def _node(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _size(look: Look) -> str:
    return f"{look.files:,} file{'s' * (look.files != 1)} of {look.bytes:,} bytes"
