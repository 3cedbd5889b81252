# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tables of a built emoji world, without its pixels: concepts, places, memory entries and their rows in the atlas."""

import json
from dataclasses import dataclass, field
from pathlib import Path


CLIP_FRAMES = 16


@dataclass(frozen=True)
class Concept:
    """One concept that has at least one drawing; fields as in `concepts.jsonl`."""

    concept: str
    label: str
    phrase: str
    plural: bool
    group: str
    key: str
    split: str
    styles: tuple[str, ...]
    clip: bool


@dataclass(frozen=True)
class Place:
    """One place; fields as in `places.jsonl`."""

    place: str
    phrase: str
    text: str
    kind: str
    split: str
    file_name: str


@dataclass(frozen=True)
class MemoryEntry:
    """One image-text pair of the memory; fields as in `memory/metadata.jsonl`."""

    id: str
    file_name: str
    text: str
    kind: str
    concept: str
    style: str | None
    yaw: float | None
    split: str


def _read_jsonl(path: Path, row_type: type) -> list:
    names = row_type.__dataclass_fields__
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        missing = [name for name in names if name not in record]
        if missing:
            raise ValueError(f"{path}, line {number}, has no field {missing[0]!r}: build the emoji world again.")
        values = {name: tuple(v) if isinstance(v := record[name], list) else v for name in names}
        rows.append(row_type(**values))
    return rows


@dataclass
class WorldIndex:
    """
    What an emoji world on disk contains, and where each image lies in the atlas of [`render.EmojiWorldAssets`].

    Atlas rows: memory entries in the order of `memory/metadata.jsonl`, then 16 frames for each concept with a clip, in
    the order of `concepts.jsonl`. Place rows: panoramas in the order of `places.jsonl`.

    Attributes:
        root (`Path`): Folder of the world.
        version (`str`): Version of the world; part of every sample's seed.
        size (`int`): Side of its images in pixels.
        concepts (`dict[str, Concept]`): By concept.
        places (`dict[str, Place]`): Panoramas by name. Photos are memory images only: no second view of them exists.
        memory (`dict[str, MemoryEntry]`): By id.
    """

    root: Path
    version: str
    size: int
    concepts: dict[str, Concept]
    places: dict[str, Place]
    memory: dict[str, MemoryEntry]
    memory_rows: dict[str, int] = field(init=False)
    clip_rows: dict[str, int] = field(init=False)
    place_rows: dict[str, int] = field(init=False)

    def __post_init__(self):
        self.memory_rows = {entry: row for row, entry in enumerate(self.memory)}
        clips = [concept.concept for concept in self.concepts.values() if concept.clip]
        self.clip_rows = {concept: len(self.memory) + CLIP_FRAMES * n for n, concept in enumerate(clips)}
        self.place_rows = {place: row for row, place in enumerate(self.places)}

    @classmethod
    def load(cls, root: str | Path) -> "WorldIndex":
        """
        Reads the tables of the world in `root`.

        Args:
            root (`str` or `Path`): A folder written by `vimi emoji-world build`.

        Raises:
            `FileNotFoundError`: If `root` is not such a folder.
            `ValueError`: If a table lacks a field, or the world is not usable for samples.
        """
        root = Path(root)
        names = ("manifest.json", "concepts.jsonl", "places.jsonl", "memory/metadata.jsonl")
        for name in names:
            if not (root / name).is_file():
                raise FileNotFoundError(
                    f"{root} is not an emoji world: {name} is missing. Build one with `vimi emoji-world build {root}`."
                )
        manifest = json.loads((root / names[0]).read_text(encoding="utf-8"))
        places = [place for place in _read_jsonl(root / names[2], Place) if place.kind == "panorama"]
        return cls(
            root=root,
            version=str(manifest["version"]),
            size=int(manifest["size"]),
            concepts={concept.concept: concept for concept in _read_jsonl(root / names[1], Concept)},
            places={place.place: place for place in places},
            memory={entry.id: entry for entry in _read_jsonl(root / names[3], MemoryEntry)},
        )

    def image_row(self, image: str) -> int:
        """Atlas row of `"memory/<id>"` or `"clips/<concept>@<frame>"`."""
        kind, _, name = image.partition("/")
        try:
            if kind == "memory":
                return self.memory_rows[name]
            if kind == "clips":
                concept, _, frame = name.partition("@")
                return self.clip_rows[concept] + int(frame) % CLIP_FRAMES
        except KeyError:
            pass
        raise ValueError(
            f"The emoji world in {self.root} has no image {image!r}: use the world the sample was made on."
        )
