# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Reading the sources: the tables of concepts and the pictures of every style, as Pillow images."""

import base64
import io
import json
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .concepts import Concept, assign_split, normalise_hexcode
from .sources import SourceError


NUM_CLIP_FRAMES = 16
_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def _read_json(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not readable JSON: {error}") from error


def read_concepts(emojibase: Path, emojilib: Path) -> list[Concept]:
    """Read the table of concepts, with keywords and split, in Unicode's order.

    Args:
        emojibase (`Path`): Folder of the package `emojibase-data`.
        emojilib (`Path`): Folder of the package `emojilib`.

    Returns:
        `list[Concept]`: Every emoji that has a group, without skin tones.
    """
    messages = _read_json(emojibase / "en" / "messages.json")
    groups = {entry["order"]: entry["key"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    further_keywords = {
        hexcode_of(emoji): words for emoji, words in _read_json(emojilib / "dist" / "emoji-en-US.json").items()
    }
    concepts = []
    for record in _read_json(emojibase / "en" / "data.json"):
        if "group" not in record:
            continue
        concept = normalise_hexcode(record["hexcode"])
        words = [*record.get("tags", ()), *further_keywords.get(concept, ())]
        concepts.append(
            Concept(
                concept=concept,
                label=record["label"],
                keywords=tuple(dict.fromkeys(word.replace("_", " ").lower() for word in words)),
                group=groups[record["group"]],
                subgroup=subgroups[record["subgroup"]],
            )
        )
    assign_split(concepts)
    return concepts


def hexcode_of(emoji: str) -> str:
    """Normalised hexcode of an emoji character."""
    return normalise_hexcode("-".join(f"{ord(character):04x}" for character in emoji))


def find_pictures(folder: Path) -> dict[str, Path]:
    """Picture files of a package by normalised hexcode, skin tones left out; the first of two spellings wins."""
    pictures: dict[str, Path] = {}
    for path in sorted(folder.glob("assets/*.webp")):
        hexcode = normalise_hexcode(path.stem)
        if _SKIN_TONES.isdisjoint(hexcode.split("-")):
            pictures.setdefault(hexcode, path)
    return pictures


def is_clip(path: Path) -> bool:
    """Whether a picture is animated; many files of the clip packages are a single frame."""
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except OSError as error:
        raise SourceError(f"{path} is not a readable picture: {error}") from error


def read_still(path: Path, size: int) -> Image.Image:
    """Read a picture and shrink it to `size` pixels a side, RGBA."""
    try:
        with Image.open(path) as image:
            return image.convert("RGBA").resize((size, size), Image.Resampling.BOX)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not a readable picture: {error}") from error


def read_photo(path: Path, width: int) -> Image.Image:
    """Read a photo and shrink it to `width` pixels, RGB."""
    try:
        with Image.open(path) as image:
            height = round(image.height * width / image.width)
            return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    except OSError as error:
        raise SourceError(f"{path} is not a readable photo: {error}") from error


def read_photo_square(path: Path, size: int) -> Image.Image:
    """Read the largest square in the middle of a photo, `size` pixels a side, RGB."""
    try:
        with Image.open(path) as image:
            return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    except OSError as error:
        raise SourceError(f"{path} is not a readable photo: {error}") from error


def read_clip(path: Path, size: int) -> Image.Image:
    """Read one loop of an animated picture as a vertical strip.

    Args:
        path (`Path`): An animated picture.
        size (`int`): Side of a frame in pixels.

    Returns:
        `Image.Image`: RGBA, `size` wide and `16 * size` tall; frame `k` is frame `floor(k * n / 16)` of the source.
    """
    strip = Image.new("RGBA", (size, size * NUM_CLIP_FRAMES))
    try:
        with Image.open(path) as image:
            for index in range(NUM_CLIP_FRAMES):
                image.seek(index * image.n_frames // NUM_CLIP_FRAMES)
                # The area filter adds no ringing to the alpha channel, which would cost bytes.
                frame = image.convert("RGBA").resize((size, size), Image.Resampling.BOX)
                strip.paste(frame, (0, index * size))
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path} is not a readable animated picture: {error}") from error
    return strip


class IconSet:
    """The drawings of an Iconify package, by normalised hexcode.

    Args:
        folder (`Path`): The package's folder, with `chars.json` and `icons.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        icon_set = _read_json(folder / "icons.json")
        self._icons = icon_set["icons"]
        # Defaults of the format, then of the set.
        self._defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
        self._defaults |= {key: icon_set[key] for key in self._defaults if key in icon_set}
        characters = _read_json(folder / "chars.json")
        self._names = {normalise_hexcode(hexcode): name for hexcode, name in sorted(characters.items())}
        # Aliases are names for drawings that have another; in the pinned sets no character points to one.
        missing = [name for name in self._names.values() if name not in self._icons]
        if missing:
            raise SourceError(f"{folder / 'icons.json'} has no icon {missing[0]!r}, but chars.json names it")

    def __contains__(self, concept: str) -> bool:
        return concept in self._names

    def svg(self, concept: str) -> str:
        """SVG document of a concept's drawing, in a square view."""
        icon = {**self._defaults, **self._icons[self._names[concept]]}
        side = max(icon["width"], icon["height"])
        left = icon["left"] - (side - icon["width"]) / 2
        top = icon["top"] - (side - icon["height"]) / 2
        # resvg needs both namespaces.
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left:g} {top:g} {side:g} {side:g}">{icon["body"]}</svg>'
        )

    def render(self, concept: str, size: int) -> Image.Image:
        """Render a drawing at `size` pixels a side, RGBA, not larger and shrunk."""
        import resvg_py

        icon = f"icon {self._names[concept]!r} of {self.folder / 'icons.json'}"
        try:
            png = resvg_py.svg_to_bytes(svg_string=self.svg(concept), width=size)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        except (OSError, ValueError) as error:
            raise SourceError(f"{icon} cannot be rendered: {error}") from error
        if image.getchannel("A").getextrema()[1] == 0:
            raise SourceError(f"{icon} is blank")
        return image


def read_panorama(path: Path) -> np.ndarray:
    """Read a panorama that is an OpenEXR file inside a JavaScript module.

    Args:
        path (`Path`): A module whose default export is a base64 data URL.

    Returns:
        `np.ndarray` of shape `(256, 512, 3)`: Linear light.
    """
    import OpenEXR

    try:
        encoded = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text(encoding="ascii"))
        if encoded is None:
            raise ValueError("no base64 data in it")
        with tempfile.NamedTemporaryFile(suffix=".exr") as file:
            file.write(base64.b64decode(encoded[1], validate=True))
            file.flush()
            return OpenEXR.File(file.name).channels()["RGB"].pixels
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SourceError(f"{path} is not a readable panorama: {error}") from error
