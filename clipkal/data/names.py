"""Names that people type: nearest matches in errors, class names, and the prompts made of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from clipkal.errors import ClipkalError, ConfigError, DataError

# Not none, null and NA, which are classes of some datasets
_MISSING = {"", "nan", "<na>", "nat", "-1", "-1.0"}


def choose(kind: str, name: str, known: Sequence[str], error: type[ClipkalError] = DataError) -> str:
    """`name` if it is known; else raises `error`, which lists the known names and points to the nearest."""
    if name in known:
        return name
    by_lower = {str(k).lower(): str(k) for k in known}
    near = get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ""
    raise error(f"{kind} {name!r} is unknown{hint} (known: {shortened(known)})")


def shortened(names: Sequence[object], most: int = 12) -> str:
    """The names with commas; of a long list the first `most` and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_printable(str(n)) for n in list(names)[:most]) + rest


def shown(name: object, most: int = 80) -> str:
    """A name for a message: quoted, what cannot be printed escaped, and its middle left out where it is long."""
    text = ascii(name) if not is_text(str(name)) else repr(name)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def spoken(name: str) -> str:
    """A class name as it stands in a sentence: underscores become spaces (as in CoOp)."""
    return name.replace("_", " ")


def _printable(name: str, most: int = 200) -> str:
    return name if is_text(name) and len(name) <= most and "\n" not in name else shown(name, most)


def composed(name: str) -> str:
    """A name with its accents in one piece (NFC); file systems and editors also write them in two."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What is equal for names that a prompt cannot tell apart: case, blanks, underscores and accents aside."""
    return " ".join(composed(spoken(name)).casefold().split())


def is_text(name: str) -> bool:
    """Whether a name can be written to a file: no NUL, and no half of a surrogate pair (bytes that were no UTF-8)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def refuse_missing(place: object, what: str, values: Iterable[str], where: Sequence[object]) -> None:
    """Raises `DataError` where a value stands for none: blank, nan or -1.

    Args:
        place: the file, for the message.
        what: "label" or "domain".
        values: N of them.
        where: N places, such as row numbers.
    """
    missing = [(row, value) for row, value in zip(where, values, strict=True) if is_missing(value)]
    if missing:
        words = ", ".join(sorted({repr(value) for _, value in missing}))
        raise DataError(
            f"{place}: {len(missing)} of {len(where)} rows have no {what} ({words}), the first: "
            f"{shortened([row for row, _ in missing], 5)}; fill them in, or remove these rows"
        )


def is_missing(value: str) -> bool:
    """Whether a word of a table stands for no value at all."""
    return value.strip().casefold() in _MISSING


def renamed(keys: Sequence[str], names: Mapping[str, str] | Sequence[str] | None) -> list[str]:
    """The class names to show for `keys` (folder names, or the names a file gives).

    Args:
        keys: C keys in label order.
        names: None to keep the keys; a mapping key -> name for some of them, or for all of them and others;
            or a list of C names in label order.

    Raises:
        DataError: a list of another length, or a mapping of some with a key that is no class.
    """
    if names is None:
        return list(keys)
    if isinstance(names, Mapping):
        if not all(key in names for key in keys):
            for key in names:
                choose("dataset.class_names: class", str(key), keys)
        return [str(names.get(key, key)) for key in keys]
    if len(names) != len(keys):
        raise DataError(
            f"dataset.class_names lists {len(names)} names but the dataset has {len(keys)} classes"
        )
    return [str(name) for name in names]


def fill_templates(templates: Sequence[str], phrases: Sequence[Sequence[str]]) -> list[list[str]]:
    """Every template with every phrase of a class in place of its `{}`.

    Args:
        templates: sentences such as "a photo of a {}."
        phrases: for each class the ways to name it.

    Raises:
        ConfigError: no template, or one without exactly one `{}`.
    """
    if not templates:
        raise ConfigError(
            "dataset.templates is empty; give at least one sentence with {}, e.g. 'a photo of a {}.'"
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(f"dataset.templates: {template!r} must contain {{}} exactly once")
    return [[t.replace("{}", spoken(p)) for t in templates for p in ways] for ways in phrases]
