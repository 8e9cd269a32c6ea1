"""What every writer of results shares: one clear line when the disk refuses, and plain values for JSON."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clipkal.errors import ClipkalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BREAKS = re.compile(r"[\t\n\r\v\f\x85\u2028\u2029]+")
MOST_PIXELS = 65_000  # along one side of a PNG that matplotlib writes
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@contextmanager
def writing(path: str | Path, else_: str = "set output_dir=… to another folder") -> Iterator[None]:
    """Turns a full disk, a read-only folder and their like into one ClipkalError that names the path.

    `else_` is what to do where no space can be freed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ClipkalError(f"{path}: cannot be written ({reason}); free space there or {else_}") from error


def render(figure: "Figure", target: Path | IO[bytes], dpi: int, **how: Any) -> None:
    """Writes a figure as PNG, whatever its size, and without a warning for letters that no font here has: boxes stand for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(target, format="png", dpi=min(dpi, MOST_PIXELS / max(figure.get_size_inches())), **how)


def plain(value: Any, text: Callable[[str], str] = str) -> Any:
    """The same value in JSON's own types: numpy and torch scalars and arrays become numbers and lists.

    `text` is what becomes of strings and keys: `valid` for those who take nothing but Unicode.
    """
    if value is None or type(value) in (bool, int, float):  # first, since most are numbers
        return value
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, Mapping):
        return {text(str(key)): plain(item, text) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item, text) for item in value]
    if isinstance(value, Path):
        return text(value.as_posix())
    if hasattr(value, "tolist"):
        return plain(value.tolist(), text)
    return value


def valid(text: str) -> str:
    """The text with lone surrogates, which stand for bytes of file names that are no text, written \\udc80."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Valid text on one line: control characters are written \\x1b, line breaks and tabs are spaces."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", " ".join(BREAKS.split(valid(text))))
