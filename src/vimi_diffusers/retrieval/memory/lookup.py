# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where a pair is, by its id, and which pairs show the same: arrays on disk that are mapped, not read."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..recipe import RetrievalRecipe
from .shards import PairReader


SEGMENT_PAIRS = 1 << 24  # what is sorted at once, and so what building holds in memory: half a gigabyte
_NO_KIND = 255


@dataclass(frozen=True)
class Segment:
    """
    The arrays of a run of rows, as `<array>-<name>.npy`: `ids` (sorted hashes of the ids), `rows` (of these hashes,
    from the segment's first), and where the recipe asks for them `kinds` (their places in the recipe) and `groups`
    (hashes).
    """

    name: str
    pairs: int


def hash_of(text: str) -> int:
    """64 bits that stand for a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def group_of(id: str, metadata: str, group_by: str) -> str:
    """The text that names a pair's group: a value of its metadata, else its id."""
    value = json.loads(metadata).get(group_by)
    return id if value is None else str(value)


class Lookup:
    """
    Rows by id, and kinds and groups by row, over the segments of a folder.

    Args:
        folder (`Path`): Where the arrays lie.
        segments (`Sequence[Segment]`): In the order of their rows.
        reader ([`PairReader`]): The pairs, whose ids tell equal hashes apart.
        codes (`Sequence[str]`, *optional*): Which of `"kinds"` and `"groups"` there are; [`codes_of`] a recipe.
    """

    def __init__(self, folder: Path, segments: Sequence[Segment], reader: PairReader, codes: Sequence[str] = ()):
        self.folder = folder
        self.segments = tuple(segments)
        self._reader = reader
        self._starts = np.cumsum([0, *(segment.pairs for segment in segments)])
        self._arrays = {name: self._open(name) for name in ("ids", "rows", *codes)}

    def row_of(self, id: str) -> int | None:
        """The row of an id; `None` if there is no such id."""
        return next((row for row in self.rows_of_hash(hash_of(id)) if self._reader.value(row, "id") == id), None)

    def rows_of_hash(self, hash: int) -> list[int]:
        """All rows whose id has this hash."""
        rows = []
        for start, ids, order in zip(self._starts, self._arrays["ids"], self._arrays["rows"]):
            first, last = (np.searchsorted(ids, np.uint64(hash), side=side) for side in ("left", "right"))
            rows += [int(start + row) for row in order[first:last]]
        return rows

    def kinds(self) -> np.ndarray:
        """`uint8[len]`: the place of each pair's kind in the recipe."""
        return np.concatenate(self._arrays["kinds"])

    def groups_at(self, rows: np.ndarray) -> np.ndarray:
        """`uint64`: hashes of the groups of some rows."""
        return self._at("groups", rows)

    def kinds_at(self, rows: np.ndarray) -> np.ndarray:
        """`uint8`: the places in the recipe of the kinds of some rows."""
        return self._at("kinds", rows)

    def duplicate(self, hashes: np.ndarray) -> tuple[str, int, int] | None:
        """
        The first id that two rows have, and these rows.

        Args:
            hashes (`np.ndarray`): Sorted hashes of the last segment, the only one that was not looked at before.
        """
        alike = [hashes[1:][hashes[1:] == hashes[:-1]]]
        for ids in self._arrays["ids"][:-1]:
            place = np.searchsorted(ids, hashes)
            alike.append(hashes[ids[np.minimum(place, len(ids) - 1)] == hashes])
        for hash in np.unique(np.concatenate(alike)):
            seen: dict[str, int] = {}
            for row in self.rows_of_hash(int(hash)):
                id = self._reader.value(row, "id")
                if id in seen:
                    return id, seen[id], row
                seen[id] = row
        return None

    def _open(self, name: str) -> list[np.ndarray]:
        arrays = [np.load(array_file(self.folder, name, segment), mmap_mode="r") for segment in self.segments]
        for segment, values in zip(self.segments, arrays):
            if len(values) != segment.pairs:
                raise ValueError(f"{name}-{segment.name}.npy has {len(values)} entries where {segment.pairs} belong")
        return arrays

    def _at(self, name: str, rows: np.ndarray) -> np.ndarray:
        arrays = self._arrays[name]
        if len(arrays) == 1:
            return arrays[0][rows]
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        values = np.empty(len(rows), dtype=arrays[0].dtype)
        for number in np.unique(numbers):
            here = numbers == number
            values[here] = arrays[number][rows[here] - self._starts[number]]
        return values


class LookupWriter:
    """
    Writes the segments of new rows, which come after those of older segments.

    Args:
        folder (`Path`): Where new arrays go.
        first (`int`): Number of the first new segment.
    """

    def __init__(self, folder: Path, first: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.first = first
        self.segments: list[Segment] = []
        self._hashes = array("Q")

    def add(self, id: str) -> None:
        """Take in the id of the next row."""
        self._hashes.append(hash_of(id))

    @property
    def num_waiting(self) -> int:
        """Rows that belong to no segment yet."""
        return len(self._hashes)

    def write_segment(self) -> np.ndarray:
        """Sort the ids that came in since the last segment, and write it; the sorted hashes."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable").astype(np.uint32)
        hashes = hashes[order]
        segment = Segment(f"{self.first + len(self.segments):05d}", len(hashes))
        np.save(array_file(self.folder, "ids", segment), hashes)
        np.save(array_file(self.folder, "rows", segment), order)
        self.segments.append(segment)
        self._hashes = array("Q")
        return hashes


def codes_of(recipe: RetrievalRecipe) -> list[str]:
    """The arrays that a recipe asks for beside the ids."""
    return ["kinds"] * bool(recipe.kinds) + ["groups"] * bool(recipe.group_by)


def write_codes(
    folder: Path, segments: Iterable[Segment], reader: PairReader, recipe: RetrievalRecipe, start: int = 0
) -> None:
    """Write the kinds and groups that a recipe asks for, for the segments from row `start` on."""
    for segment in segments:
        if recipe.kinds:
            place = {kind: number for number, kind in enumerate(recipe.kinds)}
            kinds = (place.get(kind, _NO_KIND) for (kind,) in islice(reader.scan(["kind"], start), segment.pairs))
            np.save(array_file(folder, "kinds", segment), np.fromiter(kinds, np.uint8, segment.pairs))
        if recipe.group_by:
            rows = islice(reader.scan(["id", "metadata"], start), segment.pairs)
            groups = (hash_of(group_of(id, metadata, recipe.group_by)) for id, metadata in rows)
            np.save(array_file(folder, "groups", segment), np.fromiter(groups, np.uint64, segment.pairs))
        start += segment.pairs


def array_file(folder: Path, name: str, segment: Segment) -> Path:
    """Where an array of a segment lies."""
    return folder / f"{name}-{segment.name}.npy"
