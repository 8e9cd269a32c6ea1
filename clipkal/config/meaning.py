"""What a setting means, in words: from the comments of the schema, and from the docstring of the class that takes it.

Like signatures.py this reads sources and imports no class.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from clipkal.config import schema
from clipkal.config.signatures import docstrings_of, target_of

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}
BOUNDS = {"gt": "above {}", "ge": "from {}", "lt": "below {}", "le": "to {}"}

_FIELD = re.compile(r"^    (\w+): ")
_COMMENT = re.compile(r"(?:^|\s)# (.+)$")
_ENTRY = re.compile(r"^((?:\*{0,2}[a-z]\w*(?:, )?)+): (.*)$")
_SEE = re.compile(r"^(?:see|as for) `(\w+)`")


def described(kind: Any) -> str:
    """What a value of a type may be, such as "a whole number from 1" or "base | new | all"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(inner[0], inner[1:])
    if origin is Literal:
        return " | ".join(map(_shown, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(described, inner))
    if origin in (list, Sequence):
        return f"a list, each {described(inner[0])}"
    if origin is dict or kind is dict or is_dataclass(kind):
        return "a mapping"
    return WORDS.get(kind, "any value")


def _annotated(kind: Any, notes: Sequence[Any]) -> str:
    for note in notes:
        if said := getattr(note, "description", None):
            return str(said)
    found = [one for note in notes for one in getattr(note, "metadata", ())]
    bounds = [
        said.format(_number(getattr(one, name)))
        for one in found
        for name, said in BOUNDS.items()
        if hasattr(one, name)
    ]
    return " ".join([described(kind), *bounds])


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def meaning_of(kind: type, name: str, target: str | None = None) -> str:
    """What the setting `name` of a class of the schema means; "" where nothing is said.

    Args:
        kind: the schema class; those it descends from are asked as well.
        target: what the option calls, whose docstring is asked where the schema is silent.
    """
    for base in kind.__mro__:
        if said := _comments().get((base.__name__, name)):
            return said
    return _arguments(target).get(name, "") if target else ""


@cache
def _comments() -> dict[tuple[str, str], str]:
    """The comment behind or above each field of schema.py, by class and field."""
    found: dict[tuple[str, str], str] = {}
    owner, last = "", None
    above: list[str] = []
    for line in inspect.getsource(schema).splitlines():
        comment = _COMMENT.search(line)
        if line.startswith("class "):
            owner, above = re.split(r"\W", line)[1], []
        elif field := _FIELD.match(line):
            last = (owner, field[1])
            found[last] = " ".join([*above, *([comment[1]] if comment else [])])
            above = []
        elif comment and line.startswith("    #"):
            above.append(comment[1])
        elif comment and last and line.startswith("    )"):
            found[last] = comment[1]
        elif comment and last and line.startswith("        "):
            found[last] = f"{found[last]} {comment[1]}".strip()
    return found


@cache
def _arguments(target: str) -> dict[str, str]:
    """What docstrings say of the arguments of a class or function, those of its bases included."""
    found: dict[str, str] = {}
    for module, text in docstrings_of(target):
        for names, said in _entries(text):
            for name in names:
                if name not in found or _SEE.match(found[name]):
                    found[name] = _followed(module, target, name, said)
    return found


def _followed(module: str, target: str, name: str, said: str) -> str:
    """The meaning itself where a docstring says to see that of another class."""
    see = _SEE.match(said)
    other = target_of(module, see[1]) if see else None
    return _arguments(other).get(name, said) if other and other != target else said


def _entries(text: str) -> Iterator[tuple[list[str], str]]:
    """(names, meaning) of the paragraphs "name: meaning" of a docstring, at its margin or under "Args:"."""
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        depth = len(line) - len(line.lstrip())
        if (entry := _ENTRY.match(line.strip())) and depth <= 4:
            said = [entry[2]]
            while lines and lines[0].strip() and len(lines[0]) - len(lines[0].lstrip()) > depth:
                said.append(lines.pop(0).strip())
            yield re.findall(r"\w+", entry[1]), " ".join(said)


def summary_of(target: str) -> str:
    """The first paragraph of the docstring of a class or function, on one line."""
    text = docstrings_of(target)[0][1]
    return " ".join(text.partition("\n\n")[0].split())
