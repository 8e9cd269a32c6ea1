"""How clipkal 0.1 named its run directories, so that runs made by it are still found."""

import re
from collections.abc import Iterable
from urllib.parse import quote

from clipkal import files

LONGEST = 120


def parts(top: Iterable[str], start: str, others: Iterable[str]) -> list[str]:
    """The path's parts: `top`, and `<start>,<key>=<value>,…` with %XX for what is no letter of a file name."""
    return [*(_component(part) for part in top), _component(start) + _overrides(others)]


def overrides(name: str) -> list[str]:
    """The overrides in a directory's name, as far as they can be read."""
    match = re.fullmatch(r"\w+shot-seed-?\d+,(.+)", name)
    return match[1].split(",") if match else []


def _overrides(others: Iterable[str]) -> str:
    words = []
    for override in others:
        key, equals, value = override.partition("=")
        words.append(_escape(key) + equals + _escape(value))
    return "," + _shorten(",".join(words)) if words else ""


def _component(text: str) -> str:
    name = _escape(text)
    return _shorten(f"%2E{name[1:]}" if name.startswith(".") else name or "%00")


def _escape(text: str) -> str:
    return quote(text, safe="=[]@,", errors="backslashreplace").replace(",", "+")


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 13]}~{files.digest(name)[:12]}"
