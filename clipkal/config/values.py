"""What a setting may be: its range or its words, declared beside its default in `schema.py`.

`check.py` holds every configuration against these rules before anything slow is imported, so that a value that
makes no sense costs a second and one line. The same limits stand in the library, for those who call it from
Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rule:
    """says: what a value must be, after "must be". holds: whether it is."""

    says: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.says} or {other.says}", lambda value: self.holds(value) or other.holds(value))

    def because(self, reason: str) -> Rule:
        """The same rule, which gives its reason."""
        return Rule(f"{self.says} ({reason})", self.holds)


def setting(default: Any, rule: Rule) -> Any:
    """A field of the schema with its default and its rule; a list is copied for every configuration."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


def words(*allowed: str) -> Rule:
    """One of these words."""
    return Rule(allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}", lambda v: v in allowed)


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from `low` to `high`, or on."""
    end = "on" if high is None else f"to {high}"
    most = math.inf if high is None else high
    is_whole = lambda v: isinstance(v, int) and not isinstance(v, bool)
    return Rule(f"a whole number from {low} {end}", lambda v: is_whole(v) and low <= v <= most)


def number(low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False) -> Rule:
    """A finite number from `low` (or `above` it) to `high` (or `below` it)."""
    start = f"above {low:g}" if above else f"from {low:g}"
    end = (
        ("" if above else " on") if high == math.inf else f" to below {high:g}" if below else f" to {high:g}"
    )
    end = f" and at most {high:g}" if above and high < math.inf else end
    says = "a number" if low == -math.inf else f"a number {start}{end}"
    is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    lower = lambda v: v > low or (v == low and not above)
    upper = lambda v: v < high or (v == high and not below)
    return Rule(says, lambda v: is_number(v) and lower(v) and upper(v))


def matching(pattern: str, says: str) -> Rule:
    """A text that the whole pattern matches, in words."""
    return Rule(says, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None)


def each(rule: Rule, count: int | None = None) -> Rule:
    """A list of `count` such values, or of one or more."""
    fits = lambda v: len(v) == count if count else len(v) > 0
    says = f"a list of {count or 'one or more'}, each {rule.says}"
    return Rule(says, lambda v: isinstance(v, list) and fits(v) and all(map(rule.holds, v)))


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
NULL = Rule("null", lambda v: v is None)
POSITIVE = number(0, above=True)
SHARE = number(0, 1, below=True)
SHA256 = matching("[0-9a-fA-F]{64}", "a sha256, 64 hexadecimal digits")
