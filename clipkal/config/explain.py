"""One clear line for each way a command line can be wrong, with the nearest right spelling."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from clipkal.config import schema
from clipkal.config.compose import conf_dir
from clipkal.config.old_words import KEYS
from clipkal.config.options import KINDS, OPTIONS

_UNKNOWN_KEY = re.compile(
    r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in '?(?:struct|\w+)'?", re.I
)
_FULL_KEY = re.compile(r"full_key: (\S+)")
_UNKNOWN_OPTION = re.compile(r"Could not (?:find|load) '([^']+)/([^'/]*)'")
_UNKNOWN_GROUP = re.compile(r"Could not override '([^']+)'\.\s*No match in the defaults list")
_OPTIONS = re.compile(r"Available options in '[^']+':\s*(.*)", re.S)
_BAD_VALUE = re.compile(r"Error merging override (\S+)\n(.+)", re.S)
_TYPE = re.compile(r"object_type=(\w+)")
_SECTION = re.compile(r"is not a subclass of (\w+)Config")
_PLUGINS = {
    "hydra/launcher/joblib": "'clipkal[parallel]'",
    "hydra/launcher/ray": "'clipkal[ray]'",
    "hydra/launcher/submitit_local": "'clipkal[slurm]'",
    "hydra/launcher/submitit_slurm": "'clipkal[slurm]'",
    "hydra/sweeper/optuna": "'clipkal[tune]'",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
}
"""Options of Hydra that packages of their own bring."""
_ASKING = re.compile(r"In '([^']+)/([^'/]+)': Could not")
_OF_PLUGIN = re.compile(r"Could not override '(hydra\.(?:launcher|sweeper))\.(\w+)'")
LIKE = {
    "hydra/launcher": "hydra/launcher=joblib hydra.launcher.n_jobs=4",
    "hydra/sweeper": "hydra/sweeper=tune hydra.sweeper.n_trials=20",
}
NEW_SHIFT = (
    "a set from elsewhere is named in dataset.ood=[name:/its/path]; what more there is to say of it goes into a file "
    "like conf/dataset/imagenet_shifts.yaml, in a folder dataset/ of --config-dir"
)
PART = (
    "{}: the parts of a filter are chosen as optimizer=kalman_filter optimizer/covariance=lowrank, and their settings "
    "as optimizer.covariance.rank=8"
)
_SEVERAL = re.compile(r"Ambiguous value for argument '([^']+)'")
_MISSING = re.compile(r"Missing mandatory value: (\S+)")


def explain(message: str) -> str:
    """Hydra's or OmegaConf's message as one line; a message of an unknown kind keeps its first line."""
    if choice := _UNKNOWN_OPTION.search(message):
        group, name = choice.groups()
        if plugin := _PLUGINS.get(f"{group}/{name}"):
            asking = _ASKING.search(message)
            typed = asking[2] if asking and asking[1] == group else name
            return f"{group}={typed} needs a package of its own: pip install {plugin}"
        own = {path.stem for path in Path(conf_dir(), group).glob("*.yaml")}
        others = {key.rpartition("/")[2] for key in _PLUGINS if key.startswith(f"{group}/")}
        known = sorted({*_options(message), *own, *others})
        return f"unknown {group} '{name}'{_hint(name, known)}; {group} can be: {', '.join(known)}"
    if (group_match := _UNKNOWN_GROUP.search(message)) and group_match[1].replace("/", ".") in KINDS:
        return PART.format(group_match[1])
    if group_match and group_match[1] == "experiment":
        return (
            "an experiment is added with a plus: type +experiment=NAME; clipkal --help experiment lists them"
        )
    if setting := _OF_PLUGIN.search(message):
        group = setting[1].replace(".", "/")
        return f"{setting[1]}.{setting[2]}: {group} has no such setting as it is; choose the one that has, as in {LIKE[group]}"
    if group_match:
        return f"unknown setting '{group_match[1]}'{_hint(group_match[1], known_keys())}"
    if several := _SEVERAL.search(message):
        return f"{several[1]} asks for several runs: add -m"
    if missing := _MISSING.search(message):
        return f"{missing[1]} must be given: type {missing[1]}=…"
    if key := _UNKNOWN_KEY.search(message):
        full = _FULL_KEY.search(message)
        name = key[1] or (full[1] if full else key[2])
        if "reference_type=Dict" in message:
            if name.startswith("dataset.shifts"):
                return f"{name}: {NEW_SHIFT}"
            return f"'{name}' holds names of your own: type +{name}=… to add one"
        kind = _TYPE.search(message)
        option = OPTIONS.get(kind[1]) if kind else None
        return no_such_setting(name, option.kind if option else vars(schema).get(kind[1]) if kind else None)
    if (merge := _BAD_VALUE.search(message)) and merge[1].partition("=")[0] in KINDS:
        return PART.format(merge[1].partition("=")[0])
    if merge and "'dict'" in merge[2]:
        return f"{merge[1]}: {merge[1].rpartition('.')[0]} has no settings of its own"
    if merge and _SECTION.search(merge[2]):
        section = merge[1].partition("=")[0]
        return f"{merge[1]}: {section} is a group of settings; clipkal --help {section} lists them"
    if merge:
        return f"{merge[1]}: {merge[2].splitlines()[0]}"
    if full := _FULL_KEY.search(message):
        return f"{full[1]}: {message.splitlines()[0]}"
    return message.splitlines()[0] if message else "the configuration could not be read"


def no_such_setting(name: str, kind: type | None) -> str:
    """The line for a dotted key that is not in the schema class `kind` where it was looked for (None: unknown)."""
    prefix, _, last = name.rpartition(".")
    own = [one.name for one in fields(kind)] if is_dataclass(kind) else []
    if name in KINDS:
        return PART.format(name)
    if name.startswith("hydra."):
        return f"unknown setting '{name}'; clipkal --cfg hydra shows those of Hydra"
    if new := KEYS.get(name):
        return f"unknown setting '{name}': it is called {new} now"
    if prefix and (close := difflib.get_close_matches(last, own, n=1, cutoff=0.6)):
        return f"unknown setting '{name}': did you mean '{prefix}.{close[0]}'?"
    if prefix.replace("/", ".") in KINDS and own:
        option = OPTIONS.get(kind.__name__) if kind else None
        has = ", ".join(key for key in own if key not in ("name", "_target_"))
        return f"{prefix}={option.name if option else 'none'} has no setting '{last}'; it has {has or 'none at all'}"
    return f"unknown setting '{name}'{_hint(name, [key for key in known_keys() if key != name])}"


def lost_job(error: Exception) -> str | None:
    """The line for an error of a launcher whose worker went before its job had a result; None for any other error."""
    library = type(error).__module__.partition(".")[0]
    if library not in ("joblib", "ray", "submitit"):
        return None
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    more = (
        "; jobs that still run go on, and what each said is in .submitit/ in output_dir"
        if library == "submitit"
        else ""
    )
    return f"a job ended before it had a result ({why}){more}. The same command does what is not done"


def known_keys() -> list[str]:
    """Every dotted key of the schema, those of single options included."""
    keys = set(_keys(schema.Config))
    for option in OPTIONS.values():
        keys |= {f"{option.group.replace('/', '.')}.{key}" for key in _keys(option.kind)}
    return sorted(keys)


def _keys(node: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(node)
    for item in fields(node):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _options(message: str) -> list[str]:
    found = _OPTIONS.search(message)
    return found[1].split("\nConfig search path")[0].split() if found else []


def _hint(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f": did you mean '{close}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name, or None: one whose last part is just this, else the most similar key, else last part."""
    known = list(known)
    last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}  # of several keys the first
    if name in last:
        return last[name]
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return close[0]
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)
    return last[close[0]] if close else None
