"""The parts of a filter by their names."""

from collections.abc import Callable, Mapping
from typing import TypeVar

Part = TypeVar("Part")


def named(part: str | Part, kind: str, table: Mapping[str, Callable[[], Part]]) -> Part:
    """The part that `table` makes under this name, or the part itself; ValueError for a name that is not there.

    kind: what such a part is called in the error.
    """
    if not isinstance(part, str):
        return part
    if part not in table:
        raise ValueError(f"unknown {kind} {part!r}; one of {', '.join(table)}")
    return table[part]()
