"""A contact sheet: the least and the most certain images, with what they were taken for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from clipkal import files
from clipkal.commandline import picture_format
from clipkal.inventory.sheet import CELL, INK, MARGIN, MUTED, PAPER, RULE, font, wrapped
from clipkal.tracking.writing import printable, writing

SIDE, GAP, COLUMNS = 112, 12, 8
TEXT = 54  # pixels below an image: what it was taken for in two lines, and one about it
HEADING, TOP = 38, 54
WRONG = "#b3400a"


@dataclass(frozen=True)
class Card:
    """One image of the sheet.

    Attributes:
        image: RGB, of any size.
        title: what it was taken for, in at most two lines.
        note: one line below, such as its entropy.
        name: of the image; shown after the note where there is room.
        wrong: whether the title is known to be wrong; it is then in another colour.
    """

    image: Image.Image
    title: str
    note: str = ""
    name: str = ""
    wrong: bool = False


def certainty_sheet(title: str, groups: Mapping[str, Sequence[Card]]) -> Image.Image:
    """Draws the cards of each group, such as "least certain", below its heading, `COLUMNS` in a row."""
    rows = {heading: -(-len(cards) // COLUMNS) for heading, cards in groups.items()}
    height = TOP + sum(HEADING + count * (SIDE + TEXT + GAP) for count in rows.values()) + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + COLUMNS * (SIDE + GAP) - GAP, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    head = font(17, bold=True)
    pen.text((MARGIN, MARGIN), wrapped(printable(title), sheet.width - 2 * MARGIN, head, 1)[0], INK, head)
    y = TOP
    for heading, cards in groups.items():
        pen.text((MARGIN, y + 4), heading, MUTED, font(13))
        pen.line((MARGIN, y + 26, sheet.width - MARGIN, y + 26), RULE, 2)
        y += HEADING
        for place, card in enumerate(cards):
            row, column = divmod(place, COLUMNS)
            _draw(sheet, pen, (MARGIN + column * (SIDE + GAP), y + row * (SIDE + TEXT + GAP)), card)
        y += rows[heading] * (SIDE + TEXT + GAP)
    return sheet


def _draw(sheet: Image.Image, pen: ImageDraw.ImageDraw, corner: tuple[int, int], card: Card) -> None:
    x, y = corner
    pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=CELL)
    scale = SIDE / max(card.image.size)
    size = (max(1, round(card.image.width * scale)), max(1, round(card.image.height * scale)))
    small = card.image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    sheet.paste(small, (x + (SIDE - size[0]) // 2, y + (SIDE - size[1]) // 2))
    lines = wrapped(printable(card.title), SIDE, font(12), 2)
    for i, line in enumerate(lines):
        pen.text((x, y + SIDE + 3 + 15 * i), line, WRONG if card.wrong else INK, font(12))
    note = f"{card.note}  {printable(card.name)}".strip()
    pen.text(
        (x, y + SIDE + 4 + 15 * len(lines)),
        wrapped(note, SIDE, font(10), 1)[0] if note else "",
        MUTED,
        font(10),
    )


def save(sheet: Image.Image, path: Path) -> None:
    """Writes the sheet, whole or not at all."""
    with writing(path, "write to another folder"), files.atomic_path(path) as temporary:
        sheet.save(temporary, picture_format("--sheet", path))
