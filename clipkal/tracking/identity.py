"""What a run is called: its id, the name of its folder, and the environment it ran in."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from clipkal import files
from clipkal.tracking import old_names

EXCLUDED = (
    "output_dir",  # where results go
    "dataset.download",  # whether missing files may be fetched
    "data.root",  # where the same data lies on this machine
    "data.workers",  # how many processes decode it
    "data.cache",  # where features are cached
    "data.progress",  # what the terminal shows
    "data.verify",  # how closely the data are looked at
    "figures",  # whether a diagram is drawn
    "keep",  # which of its files a run leaves behind
    "checkpoint_every",  # how often a run can be taken up again
    "validate_every",  # how many points its curves have
    "sweep",  # what becomes of other jobs
    "tracking",  # what is mirrored to W&B
    "wandb",
    "hydra",  # how the run was launched
)
"""Keys, with all below them, that do not change numbers. `device` and `threads` do, in the last digits."""

NAMED = ("dataset", "dataset.name", "backbone", "method", "fewshot.shots", "seed")
"""Keys that already are a part of the run's path, so that they are not repeated among its overrides."""

LONGEST = 120
"""Letters of one part of a run's path; file systems take 255 bytes, of which locks and `.old-…` need some."""
ID_LENGTH = 16
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._]*(-[A-Za-z0-9._]+)*")
OTHER_CHARACTERS = re.compile(r"[^A-Za-z0-9._]+")
PACKAGES = ("clipkal", "torch", "torchvision", "open_clip_torch", "timm", "hydra-core", "numpy", "wandb")


def run_id(config: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name the resolved scientific configuration, whatever the order of its keys.

    Everything in `config` counts but the keys of `EXCLUDED`. Seed 0 and seed null are different runs; 1 and
    1.0 are one.
    """
    kept = {key: value for key, value in flatten(config).items() if not _below(key, EXCLUDED)}
    return files.digest("clipkal run 1", json.dumps(kept, sort_keys=True))[:ID_LENGTH]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The scientific keys in which two configurations differ, each as `key: old → new`."""
    before, after = flatten(old), flatten(new)
    keys = sorted(key for key in before.keys() | after.keys() if not _below(key, EXCLUDED))
    absent = "(absent)"
    pairs = [(key, before.get(key, absent), after.get(key, absent)) for key in keys]
    return [f"{key}: {was} → {now}" for key, was, now in pairs if was != now]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys, with JSON values."""
    if isinstance(value, Mapping) and (value or not prefix):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: _canonical(value)}


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _below(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def other_choices(overrides: Iterable[str], named: Iterable[str] = NAMED) -> list[str]:
    """Hydra's task overrides, sorted; the last of two overrides of one key counts, as in Hydra.

    Left out are those that have a place of their own in the path (`named`) and those that do not change numbers.
    """
    kept: dict[str, str] = {}
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        plain = key.lstrip("~").replace("/", ".")
        if plain not in set(named) and not _below(plain, EXCLUDED):
            kept[key] = override.lstrip("+")
    return [kept[key] for key in sorted(kept)]


def run_path(
    output_dir: str | Path,
    *,
    dataset: str,
    backbone: str,
    method: str,
    shots: int | str,
    seed: int | None,
    overrides: Iterable[str] = (),
) -> Path:
    """`<output_dir>/<dataset>/<backbone>/<method>/<shots>shot-seed<seed>[--<key>-<value>…]`.

    Every part is made of letters, digits and `._-`, which no shell needs quoted, and has at most 120 of them.
    Where other characters had to give way to `-`, or the part was cut, it ends in a digest of the whole, so
    that different choices have different names. A run that lies under the name that clipkal 0.1 gave it
    keeps that name.
    """
    others, top = other_choices(overrides), (dataset, backbone, method)
    start = f"{shots}shot-seed{seed}"
    path = Path(output_dir).joinpath(*(_component([part]) for part in top), _component([start, *others]))
    before = Path(output_dir).joinpath(*old_names.parts(top, start, others))
    return before if before != path and not path.exists() and before.is_dir() else path


def _component(words: Sequence[str]) -> str:
    """A name and the overrides after it, joined by `--`, in plain characters.

    With a digest where these do not tell it from others.
    """
    pairs = [override.partition("=") for override in words[1:]]
    exact = "--".join([words[0], *(f"{key}-{value}" for key, _, value in pairs)])
    parts = [words[0], *(part for key, _, value in pairs for part in (key, value))]
    if (
        len(exact) <= LONGEST
        and all(map(PLAIN.fullmatch, parts))
        and not any("-" in key for key, *_ in pairs)
    ):
        return exact
    readable = "--".join("-".join(filter(None, OTHER_CHARACTERS.split(word))) for word in words)
    return f"{readable[: LONGEST - 9].strip('.-')}-{files.digest(*words)[:8]}".lstrip("-")


def environment() -> dict[str, Any]:
    """Versions, commit and hardware: what one needs to know to explain a difference in the last digits."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "git": _git_at_start(Path.cwd()),
        "cpu": _cpu_name(),
        **_torch_state(),
    }


def versions() -> dict[str, str | None]:
    """Installed versions of what decides the numbers; None for what is not installed."""
    return {name: _version(name) for name in PACKAGES}


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the folder's repository and whether tracked files changed; None where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


_git_at_start = cache(git_state)
"""The code that this process runs; jobs of a sweep share one process."""


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=quiet, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _torch_state() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # a run has long imported it; nobody else needs it for a version
    if torch is None:
        return {"threads": os.cpu_count(), "gpu": None, "cuda": None}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "gpu": gpu, "cuda": torch.version.cuda}
