# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The BM25 indexes of a memory: one for each field of each kind, written from the stored pairs in streams."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..bm25 import BM25Index
from ..recipe import RetrievalRecipe, tokenize
from .shards import PairReader


def index_name(kind: str, field_name: str) -> str:
    """Name of an index: `"text"`, or `"subject.text"` with kinds."""
    return f"{kind}.{field_name}" if kind else field_name


def index_names(recipe: RetrievalRecipe) -> list[str]:
    """The names of a recipe's indexes: one for each field of each kind."""
    return [index_name(kind, one.name) for kind in recipe.kinds or ("",) for one in recipe.fields]


def write_indexes(folder: Path, reader: PairReader, recipe: RetrievalRecipe, start: int = 0) -> bool:
    """
    Build the index of each field of each kind, or extend those that are there.

    Args:
        folder (`Path`): Where they lie, each in a folder of its name.
        reader ([`PairReader`]): The pairs.
        recipe ([`RetrievalRecipe`]): What to index.
        start (`int`, *optional*, defaults to `0`): The first row that the indexes lack; all of them if 0.

    Returns:
        `bool`: whether any text had a searchable word.
    """
    has_words = False
    stop_words = frozenset(recipe.stop_words)

    def documents(name: str, kind: str) -> Iterator[list[str]]:
        nonlocal has_words
        for text in field_texts(reader, name, kind, start):
            words = tokenize(text, stop_words)
            has_words = has_words or bool(words)
            yield words

    for kind in recipe.kinds or ("",):
        for one in recipe.fields:
            place = folder / index_name(kind, one.name)
            if start:
                BM25Index.load(place, verify=False).add(documents(one.name, kind))
            else:
                BM25Index.create(place, documents(one.name, kind), recipe.k1, recipe.b)
    return has_words


def field_texts(reader: PairReader, name: str, kind: str = "", start: int = 0) -> Iterator[str]:
    """A field's texts of the pairs of a kind from row `start` on."""
    if name == "text" and not kind:
        yield from (text for (text,) in reader.scan(["text"], start))
        return
    columns = ("id", "text", "kind") if name == "text" else ("id", "text", "kind", "metadata")
    for values in reader.scan(columns, start):
        row = dict(zip(columns, values))
        if not kind or row["kind"] == kind:
            yield field_text(row, name)


def field_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a pair's field to index, its metadata as JSON; empty if the pair has none."""
    if name in ("id", "text", "kind"):
        return row[name] or ""
    value = json.loads(row["metadata"]).get(name)
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    if not isinstance(value, str):
        raise ValueError(f"Pair {row['id']!r}: {name!r} is indexed: it must be a text or several, not {value!r}.")
    return value
