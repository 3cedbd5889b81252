# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A picture with one row for each held-out concept: its images, the true clip, and what was generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import replacing
from ..media import to_uint8, wrap_text


CELL = 128  # pixels, about: pictures are enlarged by a whole factor, so that every pixel stays a square
LABEL_WIDTH, GAP, GROUP_GAP = 210, 2, 14


@dataclass
class SheetRow:
    """
    One row.

    Attributes:
        label (`str`): Name of the concept.
        text (`str`): The prompt, shown below the name.
        groups (`Sequence[np.ndarray]`): For each heading, pictures `(n, height, width, 3)`, float in [0, 1] or uint8.
    """

    label: str
    text: str
    groups: Sequence[np.ndarray]


def write_sheet(path: str | Path, title: str, headings: Sequence[str], rows: Sequence[SheetRow]) -> None:
    """
    Writes the rows as a PNG of 256 colours, whole or not at all.

    Args:
        path (`str` or `Path`): The file.
        title (`str`): First line of the picture.
        headings (`Sequence[str]`): Title of each group of columns.
        rows (`Sequence[SheetRow]`): The rows; a row may have fewer pictures in a group than another.
    """
    groups = [[to_uint8(pictures) for pictures in row.groups] for row in rows]
    factor = max(1, CELL // groups[0][0].shape[1])
    cell = factor * groups[0][0].shape[1]
    counts = [max(len(row[column]) for row in groups) for column in range(len(headings))]
    lefts = [GAP + LABEL_WIDTH]
    for count in counts:
        lefts.append(lefts[-1] + count * (cell + GAP) - GAP + GROUP_GAP)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    wrapped = [wrap_text(heading, large, count * (cell + GAP)) for heading, count in zip(headings, counts)]
    top = 30 + 19 * max(map(len, wrapped)) + 6

    sheet = Image.new("RGB", (lefts[-1] - GROUP_GAP + GAP, top + len(rows) * (cell + 2 * GAP)), "white")
    pencil = ImageDraw.Draw(sheet)
    pencil.text((GAP + 4, 6), title, fill="#444444", font=large)
    for left, lines in zip(lefts, wrapped):
        pencil.text((left, 30), "\n".join(lines), fill="black", font=large)
    for number, (row, pictures) in enumerate(zip(rows, groups)):
        y = top + number * (cell + 2 * GAP)
        label = wrap_text(row.label, large, LABEL_WIDTH - 16)
        pencil.text((GAP + 4, y), "\n".join(label), fill="black", font=large)
        text = "\n".join(wrap_text(row.text, small, LABEL_WIDTH - 16))
        pencil.text((GAP + 4, y + 20 * len(label) + 2), text, fill="#666666", font=small)
        for left, group in zip(lefts, pictures):
            for place, picture in enumerate(group):
                enlarged = picture.repeat(factor, axis=0).repeat(factor, axis=1)
                sheet.paste(Image.fromarray(enlarged), (left + place * (cell + GAP), y))
    # A palette keeps a picture of a few hundred photographic cells at about a megabyte.
    sheet = sheet.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    with replacing(Path(path)) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
