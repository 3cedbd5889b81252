"""From images with texts to what a memory holds: reading, checking, indexing."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from .bm25 import BM25Index, RetrievalRecipe, tokenize
from .pairs import decode_image


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("group", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ]
)
_ROWS_PER_BATCH = 1024


def read_metadata(folder: Path) -> Iterator[tuple[dict, str]]:
    """The objects of a folder's metadata.jsonl, each with the place it stands at."""
    path = folder / "metadata.jsonl"
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no metadata.jsonl: write one line for each image, "
            'such as {"file_name": "fox.png", "text": "A fox"}.'
        )
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON ({error}).") from error
            if not isinstance(record, dict) or not isinstance(record.get("file_name"), str) or "text" not in record:
                raise ValueError(f'{where} must be an object with "file_name" and "text".')
            yield record, where


def check_rows(rows: Sequence[tuple[dict, str]]) -> None:
    """Raise a `ValueError` for the first row whose id, text or kind cannot be used."""
    seen = {}
    for row, where in rows:
        for name in ("id", "text", "kind"):
            if row.get(name) is not None and not isinstance(row[name], str):
                raise ValueError(f"{where}: {name!r} must be a string, not {row[name]!r}.")
        if not row["id"]:
            raise ValueError(f"{where}: the id is empty.")
        if row["id"] in seen:
            raise ValueError(f"{where}: id {row['id']!r} is already that of {seen[row['id']]}: ids must be unique.")
        seen[row["id"]] = where


def checked_recipe(recipe: RetrievalRecipe | None, rows: Sequence[dict]) -> RetrievalRecipe:
    """The recipe for the rows; one that was given must name what the rows have."""
    if recipe is None:
        return RetrievalRecipe.for_kinds(row.get("kind") for row in rows)
    for row in rows:
        if recipe.kinds and row.get("kind") not in recipe.kinds:
            raise ValueError(
                f"Pair {row['id']!r} is of kind {row.get('kind')!r}, which is none of the recipe's: {recipe.kinds}."
            )
    for name in filter(None, (*(one.name for one in recipe.fields), recipe.group_by)):
        if all(row.get(name) is None for row in rows):
            raise ValueError(f"The recipe uses {name!r}, which no pair has.")
    return recipe


def build_indexes(recipe: RetrievalRecipe, rows: Sequence[dict]) -> dict[str, BM25Index]:
    """An index for each field of each kind that has words, by name: `"text"`, or `"subject.text"` with kinds."""
    indexes = {}
    stop_words = frozenset(recipe.stop_words)
    for kind in recipe.kinds or ("",):
        of_kind = [row for row in rows if not kind or row.get("kind") == kind]
        for one in recipe.fields:
            documents = [tokenize(field_text(row, one.name), stop_words) for row in of_kind]
            index = BM25Index.build(documents, recipe.k1, recipe.b)
            if index is not None:
                indexes[f"{kind}.{one.name}" if kind else one.name] = index
    return indexes


def field_text(row: dict, name: str) -> str:
    """The text of a row's field to index; empty if the row has none."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    if not isinstance(value, str):
        raise ValueError(f"Pair {row['id']!r}: {name!r} is indexed: it must be a text or several, not {value!r}.")
    return value


def batches(rows: Sequence[dict], images: Iterable[bytes], group_by: str | None) -> Iterator[pa.RecordBatch]:
    """The rows with their images as Arrow batches of [`SCHEMA`]."""
    images = iter(images)
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        batch = []
        for row in rows[start : start + _ROWS_PER_BATCH]:
            group = row.get(group_by) if group_by else None
            metadata = {name: value for name, value in row.items() if name not in ("id", "text", "kind")}
            batch.append(
                {
                    "id": row["id"],
                    "text": row["text"].strip(),
                    "kind": row.get("kind"),
                    "group": row["id"] if group is None else str(group),
                    "metadata": json.dumps(metadata, ensure_ascii=False, default=str),
                    "image": next(images),
                }
            )
        yield pa.RecordBatch.from_pylist(batch, schema=SCHEMA)


def checked_image(data: bytes, where: str) -> bytes:
    """The bytes, once they have been decoded without an error."""
    try:
        decode_image(data)
    except Exception as error:  # Pillow's decoders raise many types
        raise ValueError(f"{where} is not a readable image ({error}): replace it or remove it.") from error
    return data


def dataset_image(value: Mapping[str, Any] | None, number: int) -> bytes:
    """Encoded bytes of an undecoded `datasets.Image` value, which holds bytes or the path of a file."""
    if not value or (value.get("bytes") is None and not value.get("path")):
        raise ValueError(f"row {number} has no image: remove it.")
    if value.get("bytes") is not None:
        return value["bytes"]
    if not Path(value["path"]).is_file():
        raise ValueError(f"row {number}: image {value['path']} is missing: add it or remove the row.")
    return Path(value["path"]).read_bytes()
