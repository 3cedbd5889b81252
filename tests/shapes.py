"""Pictures that perceptual hashes can tell apart."""

import io
import random

from PIL import Image, ImageDraw


def draw(seed: int, size: int = 96) -> Image.Image:
    """A picture of shapes, the same for the same seed."""
    dice = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(dice.randrange(256) for _ in range(3)))
    for _ in range(6):
        x, y = dice.randrange(size // 2), dice.randrange(size // 2)
        box = (x, y, x + dice.randrange(8, size // 2), y + dice.randrange(8, size // 2))
        ImageDraw.Draw(image).ellipse(box, fill=tuple(dice.randrange(256) for _ in range(3)))
    return image


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
