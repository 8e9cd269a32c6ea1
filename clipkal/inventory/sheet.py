"""A contact sheet: for some classes, what a run learns from and what it is tested on, in and out of distribution.

One row is a class, one group of columns a set. Images are shown whole, not cropped; an image that cannot be
read is a red cell.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipkal.data import FewShotTask, ImageSet
from clipkal.data.names import spoken
from clipkal.errors import DataError

INK, MUTED, RULE, PAPER, CELL, BROKEN = "#1f2430", "#6b7280", "#d8dce3", "#ffffff", "#f3f4f6", "#f6c9b8"
SIDE, GAP, GROUP_GAP, MARGIN, LABEL = 84, 4, 18, 20, 150
HEAD = MARGIN + 118  # title, ID or OOD, names of the sets in at most two lines, and how many images they have
SHOTS = 4  # of a class that are shown at most
MANY = 4  # with more OOD sets than this, each shows one image a class instead of two


@dataclass(frozen=True)
class Group:
    """Columns of the sheet: for each label shown, the positions of its samples in the set."""

    title: str
    ood: bool
    images: ImageSet
    columns: int
    samples: dict[int, list[int]]


def contact_sheet(task: FewShotTask, rows: int) -> tuple[Image.Image, list[str]]:
    """Draws the sheet.

    Args:
        task: the drawn task; its record's seed chooses the test samples.
        rows: how many classes to show at most, evenly spread over the labels.

    Returns:
        The picture, and one line for each image on it that could not be read.

    Raises:
        DataError: the dataset holds features, of which there is no picture.
    """
    labels = spread(len(task.class_names), rows)
    stream = random.Random(task.record["seed"])
    groups = [_group(task.name, "shots", False, task.shots, labels, SHOTS, None)]
    groups.append(_group(task.name, "test", False, task.test, labels, 1, stream))
    each = 1 if len(task.ood) > MANY else 2
    groups += [_group(task.name, name, True, one, labels, each, stream) for name, one in task.ood.items()]
    return _draw(task, labels, groups)


def spread(classes: int, rows: int) -> list[int]:
    """At most `rows` labels, evenly spread from the first to the last."""
    if rows >= classes:
        return list(range(classes))
    return [round(i * (classes - 1) / max(rows - 1, 1)) for i in range(rows)]


def _group(
    owner: str,
    title: str,
    ood: bool,
    one: object,
    labels: list[int],
    columns: int,
    stream: random.Random | None,
) -> Group:
    """Samples of a set; the first ones of each class where there is no stream."""
    if not isinstance(one, ImageSet):
        raise DataError(f"dataset {owner!r} holds features, not images; there is nothing to preview")
    places: dict[int, list[int]] = {label: [] for label in labels}
    for i, label in enumerate(one.labels.tolist()):
        if label in places:
            places[label].append(i)
    samples = {
        label: found[:columns] if stream is None else stream.sample(found, min(columns, len(found)))
        for label, found in places.items()
    }
    return Group(title, ood, one, max(1, *map(len, samples.values())), samples)


def _draw(task: FewShotTask, labels: list[int], groups: Sequence[Group]) -> tuple[Image.Image, list[str]]:
    widths = [g.columns * (SIDE + GAP) - GAP for g in groups]
    width = MARGIN + LABEL + sum(w + GROUP_GAP for w in widths) - GROUP_GAP + MARGIN
    sheet = Image.new("RGB", (width, HEAD + len(labels) * (SIDE + GAP) + MARGIN + 20), PAPER)
    pen = ImageDraw.Draw(sheet)
    title = spoken(task.name)
    pen.text((MARGIN, MARGIN), title, INK, font(17, bold=True))
    after = MARGIN + max(LABEL, int(font(17, bold=True).getlength(title)) + GROUP_GAP)
    pen.text((after, MARGIN + 3), _subtitle(task), MUTED, font(13))
    for row, label in enumerate(labels):
        y = HEAD + row * (SIDE + GAP)
        lines = wrapped(spoken(task.class_names[label]), LABEL - 12, font(13), 4)
        _text(pen, MARGIN, y + (SIDE - 16 * len(lines)) // 2, lines, INK, font(13))
    broken: list[str] = []
    x = MARGIN + LABEL
    _spans(pen, x, groups, widths)
    for group, group_width in zip(groups, widths, strict=True):
        lines = wrapped(spoken(group.title), group_width, font(12, bold=True), 2)
        _text(pen, x, HEAD - 22 - 16 * len(lines), lines, INK, font(12, bold=True))
        pen.text((x, HEAD - 21), f"{len(group.images):,}", MUTED, font(11))
        for row, label in enumerate(labels):
            y = HEAD + row * (SIDE + GAP)
            for column in range(group.columns):
                corner = (x + column * (SIDE + GAP), y)
                if column < len(group.samples[label]):
                    broken += _cell(sheet, corner, group.images, group.samples[label][column])
                else:
                    _nothing(pen, corner)
        x += group_width + GROUP_GAP
    shown = f"{len(labels)} of {len(task.class_names)} classes; under each set the number of its images"
    pen.text((MARGIN, sheet.height - MARGIN - 12), shown, MUTED, font(11))
    return sheet, broken


def _spans(pen: ImageDraw.ImageDraw, x: int, groups: Sequence[Group], widths: Sequence[int]) -> None:
    """A line over the sets in distribution, and one over those out of it."""
    for ood, words in ((False, "in distribution"), (True, "out of distribution")):
        mine = [w for group, w in zip(groups, widths, strict=True) if group.ood == ood]
        if mine:
            width = sum(mine) + GROUP_GAP * (len(mine) - 1)
            pen.text((x, MARGIN + 36), _cut(words, width, font(12)), MUTED, font(12))
            pen.line((x, MARGIN + 54, x + width - 1, MARGIN + 54), RULE, 2)
            x += width + GROUP_GAP


def _subtitle(task: FewShotTask) -> str:
    shots = task.record["shots"]
    many = "all training images" if shots == "all" else f"{shots} shot{'s' * (shots != 1)} a class"
    return f"{many}, seed {task.record['seed']}, {task.record['protocol']} protocol"


def _cell(sheet: Image.Image, corner: tuple[int, int], images: ImageSet, position: int) -> list[str]:
    """Pastes one image; returns the line of its error if it has one."""
    x, y = corner
    pen = ImageDraw.Draw(sheet)
    try:
        image = images.decode(position)
    except DataError as error:
        pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=BROKEN)
        _text(pen, x + 8, y + SIDE // 2 - 16, ["cannot", "be read"], INK, font(12))
        return [str(error)]
    pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=CELL)
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (SIDE - size[0]) // 2, y + (SIDE - size[1]) // 2))
    return []


def _nothing(pen: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    x, y = corner
    pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=RULE)
    pen.text((x + SIDE // 2, y + SIDE // 2), "–", RULE, font(13), anchor="mm")


def _text(
    pen: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], colour: str, font: ImageFont.FreeTypeFont
) -> None:
    for i, line in enumerate(lines):
        pen.text((x, y + 16 * i), line, colour, font)


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont, most: int) -> list[str]:
    """The text in at most `most` lines of `width` pixels, broken between words, cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
