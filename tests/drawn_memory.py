"""A memory of two subjects and two places, drawn here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw


if TYPE_CHECKING:
    from vimi_diffusers import ImageTextMemory


def _subject(colour: str) -> Image.Image:
    image = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(image).ellipse((6, 6, 26, 26), fill=colour)
    return image


def draw_memory(folder: Path) -> "ImageTextMemory":
    """Write the pictures and their metadata.jsonl into `folder`, and build the memory of them."""
    from vimi_diffusers import ImageTextMemory

    pairs = [
        ("turtle", "A sea turtle", "subject", _subject("green")),
        ("fox", "A fox", "subject", _subject("orange")),
        ("park", "A grassy park", "place", Image.new("RGB", (32, 32), "darkgreen")),
        ("sea", "A calm sea", "place", Image.new("RGB", (32, 32), "navy")),
    ]
    lines = []
    for name, text, kind, image in pairs:
        image.save(folder / f"{name}.png")
        lines.append(
            json.dumps(
                {"id": name, "file_name": f"{name}.png", "text": text, "kind": kind, "keywords": text, "concept": name}
            )
        )
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return ImageTextMemory.from_folder(folder)
