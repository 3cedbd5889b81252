# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A pair of an image and its text."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageOps


def decode_image(data: Any) -> Image.Image:
    """Encoded bytes -> upright RGB or RGBA image. Raises what Pillow raises."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGBA" if upright.has_transparency_data else "RGB")


class StoredImage:
    """
    An encoded image that is read when it is asked for. It travels to other processes as its bytes.

    Args:
        read (`Callable[[], bytes]`): Reads it.
    """

    def __init__(self, read: Callable[[], bytes]):
        self.read = read

    def __reduce__(self) -> tuple:
        return bytes, (self.read(),)


class _DecodedOnAccess:
    """Field that keeps an image as it was given, encoded or not, and decodes it when it is first asked for."""

    def __set__(self, pair: "ImageTextPair", value: Any) -> None:
        pair.__dict__["image"] = value

    def __get__(self, pair: "ImageTextPair | None", owner: type | None = None) -> Image.Image:
        if pair is None:
            raise AttributeError("image")  # no default: the field is required
        value = pair.__dict__["image"]
        if isinstance(value, StoredImage):
            value = value.read()
        if not isinstance(value, Image.Image):
            value = pair.__dict__["image"] = decode_image(value)
        return value


@dataclass(frozen=True, repr=False, eq=False)
class ImageTextPair:
    """
    One image with its text.

    Args:
        id (`str`):
            Name of the pair, unique in its memory.
        text (`str`):
            Caption.
        image (`PIL.Image.Image` or encoded `bytes`):
            The image; bytes are decoded to an RGB or RGBA image when `pair.image` is first read.
        score (`float`, *optional*):
            How well the pair matches the prompt that found it.
        kind (`str`, *optional*):
            What kind of thing the pair shows, e.g. `"subject"` or `"place"`.
        metadata (`Mapping`, *optional*):
            Whatever else is known of the pair.
    """

    id: str
    text: str
    image: Image.Image = _DecodedOnAccess()
    score: float | None = None
    kind: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def encoded(self) -> bytes:
        """`bytes`: The image as it is stored; a decoded one is encoded as PNG."""
        value = self.__dict__["image"]
        if isinstance(value, StoredImage):
            return value.read()
        if isinstance(value, Image.Image):
            data = io.BytesIO()
            value.save(data, "PNG")
            return data.getvalue()
        return bytes(value)

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score={self.score:.3f}"
        kind = "" if self.kind is None else f", kind={self.kind!r}"
        return f"ImageTextPair(id={self.id!r}, text={self.text!r}{score}{kind})"
