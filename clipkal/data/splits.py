"""What splits are called: one vocabulary for folders, tables, packed files and the Hub.

A word that is not in it is an error, since what it holds would be left out without a word; so are two words for
one role. Words whose meaning differs from place to place (eval, query, gallery, trainval, …) are not in it:
`dataset.splits` says what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clipkal.data.names import choose, shortened
from clipkal.errors import ConfigError, DataError

ROLES = ("train", "val", "test")
WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def role_of(word: str) -> str | None:
    """train, val or test, whatever the case and the blanks around the word; None for any other word."""
    return next((role for role, words in WORDS.items() if _folded(word) in words), None)


def roles_of(place: object, found: Iterable[str], what: str = "splits") -> dict[str, list[str]]:
    """Role -> the word for it, in every case it is written in.

    Args:
        place: where the words were found, for messages.
        found: the distinct words.
        what: what they are, for messages.

    Raises:
        DataError: a word is not in the vocabulary, or two of them mean the same.
    """
    words = list(found)
    if unknown := [word for word in words if role_of(word) is None]:
        known = "; ".join(", ".join(of) for of in WORDS.values())
        raise DataError(
            f"{place}: has {what} whose role is not known: {shortened([*map(repr, unknown)])} (known are {known}); "
            f"{way_out(words)}"
        )
    roles: dict[str, list[str]] = {}
    for word in words:
        same = roles.setdefault(role_of(word) or "", [])
        if same and _folded(same[0]) != _folded(word):
            raise DataError(f"{place}: both {same[0]!r} and {word!r} are {role_of(word)}; {way_out(words)}")
        same.append(word)
    return {role: roles[role] for role in ROLES if role in roles}


def _folded(word: str) -> str:
    return word.strip().lower()


def way_out(words: Iterable[str]) -> str:
    """How to say which word is what; `dataset.splits` leaves out what it does not name."""
    known = {role_of(word): word for word in words}
    shown = ", ".join(f"{role}: {known.get(role, '…')}" for role in ("train", "test"))
    return f"say which is which, leaving out the others, with '+dataset.splits={{{shown}}}'"


def chosen_words(splits: Mapping[str, Any], found: Iterable[str]) -> dict[str, list[str]]:
    """`dataset.splits` of a source that has nothing but words: role -> its words.

    Raises:
        ConfigError: a key is no role, or a value is no word of those found or no list of them.
    """
    words = list(found)
    roles: dict[str, list[str]] = {}
    for role, given in splits.items():
        choose("dataset.splits:", role, ROLES, ConfigError)
        listed = given if isinstance(given, list) else [given]
        roles[role] = [choose(f"dataset.splits.{role}:", str(word), words, ConfigError) for word in listed]
    taken = [word for of in roles.values() for word in of]
    if twice := sorted({word for word in taken if taken.count(word) > 1}):
        raise ConfigError(f"dataset.splits: {twice[0]!r} has two roles; each image may have one")
    return roles
