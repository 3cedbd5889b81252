# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From rows to a memory's folder: checking, writing the pairs, indexing. Rows are a stream; one is held at a time."""

import io
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..pairs import decode_image
from ..recipe import RetrievalRecipe
from . import storage
from .indexing import write_indexes
from .lookup import SEGMENT_PAIRS, Lookup, LookupWriter, Segment, write_codes
from .shards import PairReader, PairWriter, Shard, open_local


logger = logging.getLogger(__name__)

BAD_IMAGES = ("raise", "drop", "keep")


def create_memory(
    folder: Path, rows: Iterable[Mapping[str, Any]], recipe: RetrievalRecipe | None, bad_images: str
) -> None:
    """Build a memory; see [`ImageTextMemory.create`]."""
    _check_bad_images(bad_images)
    with storage.whole_memory(folder) as new:
        done = write_rows(rows, new, recipe, bad_images)
        if not done.num_pairs:
            raise ValueError("There is no pair with a text: nothing to search.")
        recipe = _settled_recipe(recipe, done)
        index = "index/00000"
        reader = _reader(new, done.shards)
        if not write_indexes(new / index, reader, recipe):
            raise ValueError("There is no text with a searchable word: all are stop words or signs.")
        write_codes(new / "lookup", done.segments, reader, recipe)
        storage.Manifest(
            num_pairs=done.num_pairs,
            num_dropped=done.num_dropped,
            kinds=_count_kinds(recipe, new, done.segments, reader),
            recipe=recipe.to_dict(),
            index=index,
            shards=tuple(done.shards),
            segments=tuple(done.segments),
            arrays=storage.describe(new, done.segments),
        ).write(new)


def add_rows(folder: Path, rows: Iterable[Mapping[str, Any]], bad_images: str) -> int:
    """Append rows to a memory; see [`ImageTextMemory.add`]. The number of new pairs."""
    _check_bad_images(bad_images)
    with storage.changing(folder) as old:
        recipe = RetrievalRecipe.from_dict(old.recipe)
        done = write_rows(rows, folder, recipe, bad_images, old.shards, old.segments)
        if not done.num_pairs:
            return 0
        reader = _reader(folder, done.shards)
        index = storage.next_index(folder, old.index)
        write_indexes(folder / index, reader, recipe, start=old.num_pairs)
        new_segments = done.segments[len(old.segments) :]
        write_codes(folder / "lookup", new_segments, reader, recipe, start=old.num_pairs)
        replace(
            old,
            num_pairs=old.num_pairs + done.num_pairs,
            num_dropped=old.num_dropped + done.num_dropped,
            kinds=_count_kinds(recipe, folder, done.segments, reader),
            index=index,
            shards=tuple(done.shards),
            segments=tuple(done.segments),
            arrays=old.arrays + storage.describe(folder, new_segments),
        ).write(folder)
    return done.num_pairs


@dataclass
class Written:
    """
    What came of a stream of rows: all shards and segments, the new ones last, and what was counted on the way.

    Attributes:
        shards (`list[Shard]`): Their paths are below the memory's folder.
        segments (`list[Segment]`): Sorted ids.
        num_pairs (`int`): Pairs that were written.
        num_dropped (`int`): Pairs that were left out.
        kinds (`set`): Kinds that the pairs have: a few at most, more of them tell no more.
        names (`set[str]`): Those of the recipe's names that some pair has.
    """

    shards: list[Shard]
    segments: list[Segment]
    num_pairs: int = 0
    num_dropped: int = 0
    kinds: set[str | None] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    recipe: RetrievalRecipe | None,
    bad_images: str,
    shards: Iterable[Shard] = (),
    segments: Iterable[Segment] = (),
) -> Written:
    """
    Write a stream of rows into a memory's folder as shards (`data`) and sorted ids (`lookup`), beside those there.

    Args:
        rows (`Iterable[Mapping[str, Any]]`): As in [`ImageTextMemory.create`].
        folder (`Path`): The memory's folder.
        recipe ([`RetrievalRecipe`], *optional*): If given, rows must fit it.
        bad_images (`str`): `"raise"`, `"drop"` or `"keep"`.
        shards (`Iterable[Shard]`, *optional*): Those that are there.
        segments (`Iterable[Segment]`, *optional*): Those that are there.

    Raises:
        `ValueError`: for the first row that cannot be used, and for an id that is given twice.
    """
    done = Written(list(shards), list(segments))
    recipe_names = _names(recipe) if recipe else ()
    lookup = LookupWriter(folder / "lookup", first=len(done.segments))
    with PairWriter(folder / "data") as writer:

        def write_segment() -> None:
            hashes = lookup.write_segment()
            found = Lookup(
                folder / "lookup",
                done.segments + lookup.segments,
                _reader(folder, done.shards + _below(writer.shards)),
            ).duplicate(hashes)
            if found:
                id, one, other = found
                raise ValueError(f"Id {id!r} is that of two pairs, {one} and {other} from 0: ids must be unique.")

        for number, row in enumerate(rows):
            where = getattr(row, "where", f"row {number}")
            has_text = _checked_row(row, where, recipe)
            image = _checked_image(row.get("image"), where, bad_images) if has_text else None
            if image is None:
                done.num_dropped += 1
                continue
            if len(done.kinds) < 4:
                done.kinds.add(row.get("kind"))
            done.names.update(name for name in recipe_names if row.get(name) is not None)
            metadata = {name: value for name, value in row.items() if name not in ("id", "text", "kind", "image")}
            try:
                is_shard_full = writer.write(row["id"], row["text"].strip(), row.get("kind"), metadata, image)
            except UnicodeEncodeError as error:
                raise ValueError(f"{where}: a text is no valid Unicode ({error}): repair it.") from error
            lookup.add(row["id"])
            if is_shard_full and lookup.num_waiting >= SEGMENT_PAIRS:
                write_segment()
        writer.close()
        if lookup.num_waiting:
            write_segment()
    done.shards += _named(folder, len(done.shards), _below(writer.shards))
    done.segments += lookup.segments
    done.num_pairs = writer.num_pairs
    if done.num_dropped:
        total = done.num_pairs + done.num_dropped
        logger.warning("Dropped %d of %d pairs: their text is empty or their image bad.", done.num_dropped, total)
    return done


def _reader(folder: Path, shards: Iterable[Shard]) -> PairReader:
    return PairReader(tuple(shards), partial(open_local, folder, mmap=True))


def _check_bad_images(bad_images: str) -> None:
    if bad_images not in BAD_IMAGES:
        raise ValueError(f"`bad_images` is one of {', '.join(BAD_IMAGES)}, not {bad_images!r}.")


def _count_kinds(recipe: RetrievalRecipe, folder: Path, segments: list[Segment], reader: PairReader) -> dict[str, int]:
    if not recipe.kinds:
        return {}
    counts = np.bincount(Lookup(folder / "lookup", segments, reader, ["kinds"]).kinds(), minlength=len(recipe.kinds))
    return {kind: int(count) for kind, count in zip(recipe.kinds, counts)}


def _below(shards: Iterable[Shard]) -> list[Shard]:
    return [replace(shard, path=f"data/{shard.path}") for shard in shards]


def _named(folder: Path, first: int, shards: list[Shard]) -> list[Shard]:
    """Give new shards the names by which the Hub and `datasets` know a split."""
    total = first + len(shards)
    named = [
        replace(shard, path=f"data/train-{number:05d}-of-{total:05d}.parquet")
        for number, shard in enumerate(shards, start=first)
    ]
    for old, new in zip(shards, named):
        os.replace(folder / old.path, folder / new.path)
    return named


def _names(recipe: RetrievalRecipe) -> list[str]:
    """The names of values that a recipe uses."""
    return [*(one.name for one in recipe.fields), *filter(None, [recipe.group_by])]


def _checked_row(row: Mapping[str, Any], where: str, recipe: RetrievalRecipe | None) -> bool:
    """Whether the row has a text; raises for one that cannot be used."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be a mapping with `id`, `text` and `image`, not {row!r}.")
    for name in ("id", "text", "kind"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise ValueError(f"{where}: {name!r} must be a string, not {row[name]!r}.")
    if not row.get("id"):
        raise ValueError(f"{where}: the id is empty: name the pair.")
    if not (row.get("text") or "").strip():
        return False
    if recipe and recipe.kinds and row.get("kind") not in recipe.kinds:
        raise ValueError(
            f"Pair {row['id']!r} is of kind {row.get('kind')!r}, which is none of the recipe's: {recipe.kinds}."
        )
    return True


def _checked_image(value: Any, where: str, bad_images: str) -> bytes | None:
    """The encoded bytes of a row's image; `None` if it is bad and to be dropped."""
    try:
        data = _encoded(value)
        if bad_images != "keep":
            decode_image(data)
    except Exception as error:  # Pillow's decoders raise many types
        if bad_images == "drop":
            logger.info("%s is left out: %s", where, error)
            return None
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{where}: image {error.filename} is missing: add it or remove the row.") from error
        raise ValueError(f"{where} is not a readable image ({error}): replace it or remove it.") from error
    return data


def _encoded(value: Any) -> bytes:
    """Encoded bytes of an image given as bytes, as a path, as `datasets` has it, or decoded."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (str, os.PathLike)):
        return Path(value).read_bytes()
    if isinstance(value, Image.Image):
        encoded = io.BytesIO()
        value.save(encoded, "PNG")
        return encoded.getvalue()
    raise ValueError(f"no image but {value!r}")


def _settled_recipe(recipe: RetrievalRecipe | None, done: Written) -> RetrievalRecipe:
    """The recipe for what was written; one that was given must name what the pairs have."""
    if recipe is None:
        return RetrievalRecipe.for_kinds(done.kinds)
    for name in _names(recipe):
        if name not in done.names:
            raise ValueError(f"The recipe uses {name!r}, which no pair has.")
    return recipe
