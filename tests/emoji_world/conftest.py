"""A small emoji world made of drawn shapes, with the layout of a built one."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw


SIZE = 32
STYLES = ("fluent3d", "noto", "flat", "twemoji")
# concept, phrase, plural, group, split, colour
CONCEPTS = (
    ("1f98a", "a fox", False, "animals-nature", "train", (230, 120, 30)),
    ("1f418", "an elephant", False, "animals-nature", "train", (120, 120, 140)),
    ("2694", "crossed swords", True, "objects", "train", (60, 60, 60)),
    ("1f385", "Santa Claus", False, "people-body", "train", (200, 20, 30)),
    ("2b50", "a star", False, "symbols", "train", (250, 220, 40)),
    ("1f436", "a dog", False, "animals-nature", "held_out", (150, 90, 40)),
    ("1f42f", "a tiger", False, "animals-nature", "held_out", (250, 160, 0)),
)
WITHOUT_CLIP = ("2b50",)
PLACES = (
    ("park", "in a grassy park", "A grassy park", "train"),
    ("city", "on a grey city square", "A grey city square", "train"),
    ("sky", "over a calm sea", "A calm sea", "train"),
    ("dawn", "in a rocky desert at dawn", "A rocky desert at dawn", "held_out"),
    ("venice", "on a quay at dusk", "A quay at dusk", "held_out"),
)


def _drawing(style: int, frame: int, color: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    pencil = ImageDraw.Draw(image)
    pencil.ellipse((3, 3 + style, SIZE - 4, SIZE - 4), fill=(*color, 255))
    pencil.rectangle((frame + 4, 10, frame + 8, 14), fill=(255, 255, 255, 128))
    return image


def _panorama(number: int) -> Image.Image:
    """Every column has its own hue, so that a view tells where it looks."""
    column = np.arange(512) / 512
    rgb = np.stack([column, np.full(512, (number + 1) / 8), 1 - column], -1)
    rows = np.linspace(0.5, 1, 256)[:, None, None]
    return Image.fromarray((rgb[None] * rows * 255).astype("uint8"))


def build_tiny_world(root) -> None:
    """Writes the world to the folder `root`."""
    for folder in ("memory/place", "clips", "places", *(f"memory/{style}" for style in STYLES)):
        (root / folder).mkdir(parents=True)
    concepts, memory, places = [], [], []
    for concept, phrase, plural, group, split, color in CONCEPTS:
        clip = concept not in WITHOUT_CLIP
        text = phrase[0].upper() + phrase[1:]
        concepts.append(
            {"concept": concept, "label": phrase, "phrase": phrase, "plural": plural, "keywords": [phrase],
             "group": group, "subgroup": group, "key": phrase, "split": split, "styles": list(STYLES), "clip": clip}
        )  # fmt: skip
        for number, style in enumerate(STYLES):
            file_name = f"{style}/{concept}.webp"
            _drawing(number, 0, color).save(root / "memory" / file_name, lossless=True)
            memory.append(
                {"id": f"{style}/{concept}", "file_name": file_name, "text": text, "keywords": phrase,
                 "kind": "subject", "concept": concept, "style": style, "yaw": None, "split": split}
            )  # fmt: skip
        if clip:
            strip = Image.new("RGBA", (SIZE, SIZE * 16))
            for frame in range(16):
                strip.paste(_drawing(0, frame, color), (0, SIZE * frame))
            strip.save(root / "clips" / f"{concept}.webp", lossless=True)
    for number, (place, phrase, text, split) in enumerate(PLACES):
        file_name = f"places/{place}.webp"
        panorama = _panorama(number)
        panorama.save(root / file_name, lossless=True)
        places.append(
            {
                "place": place,
                "phrase": phrase,
                "text": text,
                "kind": "panorama",
                "split": split,
                "file_name": file_name,
            }
        )
        for yaw in range(0, 360, 60):
            view = panorama.rotate(0).crop((yaw * 512 // 360, 80, yaw * 512 // 360 + SIZE, 80 + SIZE))
            view.save(root / "memory" / f"place/{place}@{yaw}.webp", lossless=True)
            memory.append(
                {"id": f"place/{place}@{yaw}", "file_name": f"place/{place}@{yaw}.webp", "text": text, "keywords": "",
                 "kind": "place", "concept": place, "style": None, "yaw": yaw, "split": split}
            )  # fmt: skip
    for name, rows in (("concepts", concepts), ("places", places), ("memory/metadata", memory)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manifest = {"version": "tiny", "size": SIZE, "sources": [], "counts": {}, "files": []}
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    """Folder of the small world."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_world(root)
    return root
