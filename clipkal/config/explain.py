"""One clear line for each way a command line can be wrong, with the nearest right spelling."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from clipkal.config import schema
from clipkal.config.compose import GROUP_SCHEMAS

_UNKNOWN_KEY = re.compile(
    r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in '?(?:struct|\w+)'?", re.I
)
_FULL_KEY = re.compile(r"full_key: (\S+)")
_UNKNOWN_OPTION = re.compile(r"Could not find '([^']+)/([^'/]+)'")
_UNKNOWN_GROUP = re.compile(r"Could not override '([^']+)'\.\s*No match in the defaults list")
_OPTIONS = re.compile(r"Available options in '[^']+':\s*(.*)", re.S)
_BAD_VALUE = re.compile(r"Error merging override (\S+)\n(.+)", re.S)
_MISSING = re.compile(r"Missing mandatory value: (\S+)")


def explain(message: str) -> str:
    """Hydra's or OmegaConf's message as one line; a message of an unknown kind keeps its first line."""
    if option := _UNKNOWN_OPTION.search(message):
        group, name = option.groups()
        known = _options(message)
        return f"unknown {group} '{name}'{_hint(name, known)}; {group} can be: {', '.join(known)}"
    if group_match := _UNKNOWN_GROUP.search(message):
        return f"unknown setting '{group_match[1]}'{_hint(group_match[1], known_keys())}"
    if missing := _MISSING.search(message):
        return f"{missing[1]} must be given: type {missing[1]}=…"
    if key := _UNKNOWN_KEY.search(message):
        full = _FULL_KEY.search(message)
        name = key[1] or (full[1] if full else key[2])
        return f"unknown setting '{name}'{_hint(name, known_keys())}"
    if merge := _BAD_VALUE.search(message):
        return f"{merge[1]}: {merge[2].splitlines()[0]}"
    if full := _FULL_KEY.search(message):
        return f"{full[1]}: {message.splitlines()[0]}"
    return message.splitlines()[0] if message else "the configuration could not be read"


def known_keys() -> list[str]:
    """Every dotted key of the schema, those of single options included."""
    keys = set(_keys(schema.Config))
    for group, nodes in GROUP_SCHEMAS.items():
        keys |= {f"{group}.{key}" for node in nodes.values() for key in _keys(node)}
    return sorted(keys)


def _keys(node: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(node)
    for item in fields(node):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _options(message: str) -> list[str]:
    found = _OPTIONS.search(message)
    names = found[1].split("\nConfig search path")[0].split() if found else []
    return [name for name in names if not name.endswith("_schema")]


def _hint(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f": did you mean '{close}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name, or None where nothing is near; a full dotted key beats its last part."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return close[0]
    last = {key.rsplit(".", 1)[-1]: key for key in known}
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
    return last[close[0]] if close else None
