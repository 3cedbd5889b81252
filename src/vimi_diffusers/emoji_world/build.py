# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Building emoji world on disk: `vimi emoji-world build`."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from . import sources
from .art import (
    IconSet,
    find_pictures,
    is_clip,
    read_clip,
    read_concepts,
    read_panorama,
    read_photo,
    read_photo_square,
    read_still,
)
from .captions import PLACE_NAMES
from .concepts import Concept
from .phrases import noun_phrase
from .places import MEMORY_FIELD_OF_VIEW, MEMORY_YAWS, PANORAMAS, PHOTOS, Place, panorama_view, tone_map
from .sources import Report, SourceError


FORMAT_VERSION = "1"
# in the order of the memory, where the first of equally good pairs wins: the drawings that clips are not made of first
STYLES = ("noto", "twemoji", "flat", "fluent3d")
PHOTO_WIDTH = 384

_TABLES = "emojibase-data"
_KEYWORDS = "emojilib"
_STILLS = "@lobehub/fluent-emoji-3d"
_CLIPS = tuple(f"@lobehub/fluent-emoji-anim-{number}" for number in range(1, 5))
_ICONS = {"noto": "@iconify-json/noto", "flat": "@iconify-json/fluent-emoji-flat", "twemoji": "@iconify-json/twemoji"}
_PANORAMAS = "@pmndrs/assets"

# `method=6` takes seconds a strip for a few per cent; drawings of few colours are smaller lossless.
_LOSSY = {"quality": 80, "alpha_quality": 60, "method": 4}
_LOSSLESS = {"lossless": True, "method": 4}
_PLACE = {"quality": 90, "method": 4}
_WEBP_OF_STYLE = {"fluent3d": _LOSSY, "noto": _LOSSY, "flat": _LOSSLESS, "twemoji": _LOSSLESS}

# What the pinned packages give; anything else is a fault in a join.
EXPECTED_COUNTS = {
    "concepts": 1923,
    "concepts_with_images": 1914,
    "pairs": 7012,
    "pairs_fluent3d": 1852,
    "pairs_noto": 1652,
    "pairs_flat": 1594,
    "pairs_twemoji": 1914,
    "clips": 734,
    "groups": 248,
    "groups_with_clips": 194,
    "held_out_groups": 36,
    "held_out_groups_with_clips": 30,
    "held_out_concepts": 138,
    "held_out_pairs": 548,
    "held_out_clips": 89,
}


@dataclass(frozen=True)
class _Picture:
    """A picture to be written: where, how to draw it, how to store it, and what it comes from."""

    path: str
    draw: Callable[[], Image.Image]
    webp: dict
    source: str
    licence: str


@dataclass
class _Plan:
    """Everything that a build writes."""

    concepts: list[Concept] = field(default_factory=list)
    concept_rows: list[dict] = field(default_factory=list)
    memory_rows: list[dict] = field(default_factory=list)
    place_rows: list[dict] = field(default_factory=list)
    pictures: list[_Picture] = field(default_factory=list)

    def add(self, path: str, draw: Callable[[], Image.Image], webp: dict, package: str) -> None:
        source = sources.find_package(package)
        self.pictures.append(_Picture(path, draw, webp, source.pin, source.licence))


def build_emoji_world(
    out: str | Path,
    size: int = 64,
    photos: bool = False,
    npm_dir: str | Path | None = None,
    report: Report | None = None,
) -> dict:
    """Build emoji world into a folder, whole or not at all.

    The same packages, size and library versions give the same bytes.

    Args:
        out (`str` or `Path`): Folder to make; it must not exist, or be empty.
        size (`int`, *optional*, defaults to `64`): Side of memory pictures and clip frames in pixels.
        photos (`bool`, *optional*, defaults to `False`): Whether to add photos to the panoramas; they come from a
            Debian package, which is fetched with apt-get.
        npm_dir (`str` or `Path`, *optional*): Folder with a `node_modules` that holds the packages. By default npm
            fetches them, once, into [`~emoji_world.sources.cache_dir`].
        report (`Callable[[str, int, int], None]`, *optional*): Called with a stage, its steps done, and its steps.

    Returns:
        `dict`: The manifest, as in `out/manifest.json`.

    Raises:
        ValueError: `size` is not between 16 and 256 pixels.
        FileExistsError: `out` exists and is not an empty folder.
        SourceError: npm is missing, or a package is missing, changed, or has a broken picture.
    """
    out = Path(out).resolve()
    if not 16 <= size <= 256:
        raise ValueError(f"size is {size}, but must be from 16 to 256 pixels, the size of the source pictures")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: name a new folder, or remove it first")
    report = report or (lambda stage, done, steps: None)
    folders = sources.provide_packages(npm_dir, report)
    photo_folder = sources.provide_photos(report) if photos else None

    plan = _Plan()
    _plan_concepts(plan, folders, size, report)
    _plan_panoramas(plan, folders[_PANORAMAS], size)
    if photo_folder is not None:
        _plan_photos(plan, photo_folder, size)
    counts = _count(plan)
    _check_counts(counts)

    with sources.whole_folder(out) as world:
        files = _write(plan, world, report)
        packages = [*sources.PACKAGES, *([sources.PHOTO_PACKAGE] if photos else [])]
        manifest = {
            "version": FORMAT_VERSION,
            "size": size,
            "sources": [package.manifest_entry() for package in packages],
            "counts": counts,
            "files": files,
        }
        (world / "manifest.json").write_text(_manifest_json(manifest), encoding="utf-8")
    return manifest


def _plan_concepts(plan: _Plan, folders: dict[str, Path], size: int, report: Report) -> None:
    """Add the concepts, their memory pairs (style by style, in Unicode's order) and their clips."""
    plan.concepts = read_concepts(folders[_TABLES], folders[_KEYWORDS])
    stills = find_pictures(folders[_STILLS])
    icon_sets = {style: IconSet(folders[package]) for style, package in _ICONS.items()}
    clips = _find_clips(plan.concepts, folders, report)
    drawings = {"fluent3d": stills, **icon_sets}
    for concept in plan.concepts:
        styles = [style for style in STYLES if concept.concept in drawings[style]]
        if styles:
            plan.concept_rows.append(_concept_row(concept, styles, concept.concept in clips))

    packages = {"fluent3d": _STILLS, **_ICONS}
    for style in STYLES:
        for row in plan.concept_rows:
            concept = row["concept"]
            if style not in row["styles"]:
                continue
            if style == "fluent3d":
                draw = partial(read_still, stills[concept], size)
            else:
                draw = partial(icon_sets[style].render, concept, size)
            pair = _subject_pair(row, style)
            plan.memory_rows.append(pair)
            plan.add(f"memory/{pair['file_name']}", draw, _WEBP_OF_STYLE[style], packages[style])
    for row in plan.concept_rows:
        if row["clip"]:
            package, path = clips[row["concept"]]
            plan.add(f"clips/{row['concept']}.webp", partial(read_clip, path, size), _LOSSY, package)


def _find_clips(concepts: list[Concept], folders: dict[str, Path], report: Report) -> dict[str, tuple[str, Path]]:
    """Package and file of every concept that moves."""
    files: dict[str, tuple[str, Path]] = {}
    for package in _CLIPS:
        for hexcode, path in find_pictures(folders[package]).items():
            files.setdefault(hexcode, (package, path))
    clips = {}
    for done, concept in enumerate(concepts, start=1):
        found = files.get(concept.concept)
        if found is not None and is_clip(found[1]):
            clips[concept.concept] = found
        report("Looking for clips", done, len(concepts))
    return clips


def _concept_row(concept: Concept, styles: list[str], clip: bool) -> dict:
    phrase = noun_phrase(concept.label, concept.group, concept.subgroup)
    return {
        "concept": concept.concept,
        "label": concept.label,
        "phrase": phrase.text,
        "plural": phrase.plural,
        "keywords": list(concept.keywords),
        "group": concept.group,
        "subgroup": concept.subgroup,
        "key": concept.key,
        "split": concept.split,
        "styles": styles,
        "clip": clip,
    }


def _subject_pair(row: dict, style: str) -> dict:
    name = f"{style}/{row['concept']}"
    return {
        "id": name,
        "file_name": f"{name}.webp",
        "text": row["phrase"][0].upper() + row["phrase"][1:],
        "keywords": " ".join(row["keywords"]),
        "kind": "subject",
        "concept": row["concept"],
        "style": style,
        "yaw": None,
        "split": row["split"],
    }


def _place_pair(place: Place, yaw: int | None) -> dict:
    name = f"place/{place.name}" if yaw is None else f"place/{place.name}@{yaw}"
    return {
        "id": name,
        "file_name": f"{name}.webp",
        "text": place.text,
        "keywords": " ".join(noun for _, _, noun in PLACE_NAMES.get(place.name, ())),
        "kind": "place",
        "concept": place.name,
        "style": None,
        "yaw": yaw,
        "split": place.split,
    }


def _place_row(place: Place) -> dict:
    return {
        "place": place.name,
        "phrase": place.phrase,
        "text": place.text,
        "kind": place.kind,
        "split": place.split,
        "file_name": f"places/{place.name}.webp",
    }


def _plan_panoramas(plan: _Plan, folder: Path, size: int) -> None:
    """Add the panoramas, and six views of each to the memory."""
    for place in PANORAMAS:
        panorama = tone_map(read_panorama(folder / "hdri" / f"{place.name}.exr.js"))
        row = _place_row(place)
        plan.place_rows.append(row)
        plan.add(row["file_name"], partial(Image.fromarray, panorama), _PLACE, _PANORAMAS)
        for yaw in MEMORY_YAWS:
            pair = _place_pair(place, yaw)
            plan.memory_rows.append(pair)
            view = panorama_view(panorama, yaw, MEMORY_FIELD_OF_VIEW, size)
            plan.add(f"memory/{pair['file_name']}", partial(Image.fromarray, view), _PLACE, _PANORAMAS)


def _plan_photos(plan: _Plan, folder: Path, size: int) -> None:
    """Add the photos, and the middle of each to the memory: a photo has no second view."""
    for place in PHOTOS:
        path = folder / place.file
        row, pair = _place_row(place), _place_pair(place, None)
        plan.place_rows.append(row)
        plan.memory_rows.append(pair)
        for file_name, draw in (
            (row["file_name"], partial(read_photo, path, PHOTO_WIDTH)),
            (f"memory/{pair['file_name']}", partial(read_photo_square, path, size)),
        ):
            plan.pictures.append(_Picture(file_name, draw, _PLACE, sources.PHOTO_PACKAGE.pin, place.licence))


def _count(plan: _Plan) -> dict[str, int]:
    """Counts of a build, for the manifest."""
    subjects = [row for row in plan.memory_rows if row["kind"] == "subject"]
    clips = [row for row in plan.concept_rows if row["clip"]]
    held_out = {concept.key for concept in plan.concepts if concept.split == "held_out"}
    per_style = Counter(row["style"] for row in subjects)
    return {
        "concepts": len(plan.concepts),
        "concepts_with_images": len(plan.concept_rows),
        "pairs": len(subjects),
        **{f"pairs_{style}": per_style[style] for style in STYLES},
        "clips": len(clips),
        "groups": len({concept.key for concept in plan.concepts}),
        "groups_with_clips": len({row["key"] for row in clips}),
        "held_out_groups": len(held_out),
        "held_out_groups_with_clips": len({row["key"] for row in clips} & held_out),
        "held_out_concepts": sum(row["split"] == "held_out" for row in plan.concept_rows),
        "held_out_pairs": sum(row["split"] == "held_out" for row in subjects),
        "held_out_clips": sum(row["split"] == "held_out" for row in clips),
        "places": len(plan.place_rows),
        "held_out_places": sum(row["split"] == "held_out" for row in plan.place_rows),
        "place_views": len(plan.memory_rows) - len(subjects),
    }


def _check_counts(counts: dict[str, int]) -> None:
    expected = EXPECTED_COUNTS.items()
    wrong = [f"{name} {counts[name]} instead of {count}" for name, count in expected if counts[name] != count]
    if wrong:
        raise SourceError(f"the pinned packages gave other counts than they should: {', '.join(wrong)}")


class _Writer:
    """Writes files into a folder and keeps their entries for the manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: list[dict] = []

    def write(self, path: str, data: bytes, licence: str, source: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self.entries.append({"path": path, "bytes": len(data), "sha256": digest, "licence": licence, "source": source})


def _encode(picture: _Picture) -> bytes:
    buffer = io.BytesIO()
    picture.draw().save(buffer, "WEBP", **picture.webp)
    return buffer.getvalue()


def _write(plan: _Plan, world: Path, report: Report) -> list[dict]:
    """Write tables and pictures; returns the manifest's entries, sorted by path."""
    writer = _Writer(world)
    tables = [sources.find_package(name) for name in (_TABLES, _KEYWORDS)]
    labels = {"licence": "MIT AND Unicode-3.0", "source": ", ".join(package.pin for package in tables)}
    writer.write("concepts.jsonl", _json_lines(plan.concept_rows), **labels)
    writer.write("memory/metadata.jsonl", _json_lines(plan.memory_rows), **labels)
    writer.write("places.jsonl", _json_lines(plan.place_rows), licence="Apache-2.0", source="vimi_diffusers")
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done, (picture, data) in enumerate(zip(plan.pictures, pool.map(_encode, plan.pictures)), start=1):
            writer.write(picture.path, data, picture.licence, picture.source)
            report("Drawing", done, len(plan.pictures))
    finally:
        pool.shutdown(cancel_futures=True)
    return sorted(writer.entries, key=lambda entry: entry["path"])


def _json_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _manifest_json(manifest: dict) -> str:
    """JSON with one line a file, so that two manifests can be compared."""
    files = ",\n".join(json.dumps(entry) for entry in manifest["files"])
    head = json.dumps({**manifest, "files": []}, indent=1)
    return head.replace('"files": []', f'"files": [\n{files}\n]') + "\n"
