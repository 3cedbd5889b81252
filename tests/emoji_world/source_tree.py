"""A small copy of the packages' layout: four concepts and two panoramas, drawn here."""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vimi_diffusers.emoji_world import sources


CLIP_LENGTH = 24  # longer than the 16 frames that are kept

_RECORDS = [
    ("1F98A", "fox", "\N{FOX FACE}", 1, 1, ["animal", "face"]),
    ("1F415", "dog", "\N{DOG}", 1, 1, ["pet"]),
    ("2764-FE0F", "red heart", "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", 0, 0, ["love"]),
    ("1F469-200D-1F373", "woman cook", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{COOKING}", 2, 2, ["chef"]),
]
_MESSAGES = {
    "groups": [
        {"order": order, "key": key} for order, key in enumerate(["smileys-emotion", "animals-nature", "people-body"])
    ],
    "subgroups": [{"order": order, "key": key} for order, key in enumerate(["heart", "animal-mammal", "person-role"])],
}


def _drawing(shift: int = 0) -> Image.Image:
    image = Image.new("RGBA", (256, 256))
    ImageDraw.Draw(image).ellipse((20 + shift, 40, 200 + shift, 220), fill=(220, 10 * shift, 40, 255))
    return image


def _save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "WEBP", lossless=True, **options)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_tables(modules: Path) -> None:
    records = [
        {"hexcode": code, "label": label, "emoji": emoji, "group": group, "subgroup": subgroup, "tags": tags}
        for code, label, emoji, group, subgroup, tags in _RECORDS
    ]
    records.insert(
        0, {"hexcode": "1F1E6", "label": "regional indicator A", "emoji": "\N{REGIONAL INDICATOR SYMBOL LETTER A}"}
    )
    _write_json(modules / "emojibase-data/en/data.json", records)
    _write_json(modules / "emojibase-data/en/messages.json", _MESSAGES)
    # Without the variation selector that the other table has.
    keywords = {"\N{FOX FACE}": ["fox_face", "animal", "Red_Dog"], "\N{HEAVY BLACK HEART}": ["valentines_day"]}
    _write_json(modules / "emojilib/dist/emoji-en-US.json", keywords)


def _write_pictures(modules: Path) -> None:
    stills = modules / "@lobehub/fluent-emoji-3d/assets"
    for name in ("1f98a", "1f415", "2764-fe0f", "1f98a-1f3fb"):
        _save(_drawing(), stills / f"{name}.webp")
    frames = [_drawing(shift) for shift in range(CLIP_LENGTH)]
    clip = {"save_all": True, "append_images": frames[1:], "duration": 42}
    _save(frames[0], modules / "@lobehub/fluent-emoji-anim-1/assets/1f98a.webp", **clip)
    _save(frames[0], modules / "@lobehub/fluent-emoji-anim-2/assets/1f415.webp", **clip)
    _save(frames[0], modules / "@lobehub/fluent-emoji-anim-3/assets/2764-fe0f.webp")  # a single frame: no clip
    _save(frames[0], modules / "@lobehub/fluent-emoji-anim-4/assets/1f44b-1f3fb.webp", **clip)

    circle = {"body": '<circle cx="16" cy="16" r="12" fill="#c33"/>'}
    for name, characters in {
        "noto": {"1f98a": "fox", "1f415": "dog", "2764": "heart"},
        "fluent-emoji-flat": {"1f98a": "fox", "2764-fe0f": "heart"},
        "twemoji": {"1f98a": "fox", "1f415": "dog", "2764": "heart", "1f469-200d-1f373": "cook"},
    }.items():
        icons = dict.fromkeys(characters.values(), circle)
        folder = modules / "@iconify-json" / name
        _write_json(folder / "chars.json", characters)
        _write_json(folder / "icons.json", {"prefix": name, "width": 32, "height": 32, "icons": icons})


def write_panorama(path: Path, radiance: np.ndarray) -> None:
    """Write linear light as a JavaScript module with an OpenEXR file in it."""
    import OpenEXR

    path.parent.mkdir(parents=True, exist_ok=True)
    exr = path.with_suffix("")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": radiance.astype(np.float16)}).write(str(exr))
    path.write_text(f"export default 'data:application/exr;base64,{base64.b64encode(exr.read_bytes()).decode()}'")
    exr.unlink()


def write_source_tree(npm_dir: Path) -> tuple[sources.Package, ...]:
    """Write the packages into `npm_dir/node_modules`; returns their pins, with digests of what was written."""
    modules = npm_dir / "node_modules"
    _write_tables(modules)
    _write_pictures(modules)
    ramp = np.linspace(0, 2, 512 * 256 * 3).reshape(256, 512, 3)
    for place in ("park", "dawn"):
        write_panorama(modules / f"@pmndrs/assets/hdri/{place}.exr.js", ramp)
    for package in sources.PACKAGES:
        _write_json(modules / package.name / "package.json", {"name": package.name, "version": package.version})
    return pin(npm_dir)


def pin(npm_dir: Path) -> tuple[sources.Package, ...]:
    """Pins of the packages as they are in `npm_dir` now."""
    return tuple(
        dataclasses.replace(
            package,
            sha256=sources.content_digest(npm_dir / "node_modules" / package.name, package.files),
        )
        for package in sources.PACKAGES
    )
