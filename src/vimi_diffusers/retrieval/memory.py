"""A memory of image-text pairs: built from a folder or a data set, saved whole, memory-mapped, searched by prompt."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from . import building, storage
from .bm25 import ENGLISH_STOP_WORDS, BM25Index, RetrievalRecipe, tokenize
from .pairs import ImageTextPair


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _KindIndex:
    """The pairs of one kind: their rows in the memory and the indexes of their fields by field name."""

    rows: np.ndarray
    fields: Mapping[str, BM25Index]


class ImageTextMemory:
    """
    Image-text pairs that a prompt retrieves (paper section 1.2).

    Make one with [`~ImageTextMemory.from_folder`], [`~ImageTextMemory.from_dataset`] or [`~ImageTextMemory.load`].
    `len(memory)` is the number of pairs; `memory[3]` and `memory["some id"]` are pairs, `"some id" in memory` tells
    whether there is one.

    Attributes:
        recipe ([`RetrievalRecipe`]): What is indexed and how it is ranked.
        num_dropped (`int`): Pairs that were left out at build because their text was empty.
    """

    def __init__(
        self, table: pa.Table, recipe: RetrievalRecipe, indexes: Mapping[str, BM25Index], num_dropped: int = 0
    ):
        self.recipe = recipe
        self.num_dropped = num_dropped
        self._table = table
        self._indexes = indexes
        self._stop_words = frozenset(recipe.stop_words)
        kinds = table["kind"].to_numpy() if recipe.kinds else None
        self._kinds = {}
        for kind in recipe.kinds or ("",):
            rows = np.flatnonzero(kinds == kind) if kind else np.arange(len(table))
            fields = {
                name.rpartition(".")[2]: index for name, index in indexes.items() if name.rpartition(".")[0] == kind
            }
            self._kinds[kind] = _KindIndex(rows, fields)
        self._groups = table["group"].combine_chunks().dictionary_encode().indices.to_numpy()

    @classmethod
    def from_folder(cls, path: str | os.PathLike, recipe: RetrievalRecipe | None = None) -> "ImageTextMemory":
        """
        Build a memory from a folder of images with a `metadata.jsonl`, as the Hugging Face image folder has it.

        Each line is an object with `file_name` (path below the folder) and `text`; optionally `id` (defaults to
        `file_name`), `kind`, and anything else, which becomes the pair's metadata. Pairs with an empty text could
        never be found: they are dropped, counted in `num_dropped` and reported in the log.

        Args:
            path (`str` or `os.PathLike`):
                The folder.
            recipe ([`RetrievalRecipe`], *optional*):
                What to index and how to rank. Defaults to two searches, place first, if all pairs are of kind
                `"subject"` or `"place"`, else to one index over the texts.

        Raises:
            `FileNotFoundError`: if the folder, its `metadata.jsonl` or an image is missing.
            `ValueError`: if a line, an image or an id cannot be used, or nothing is left.
        """
        path = Path(path)
        records = list(building.read_metadata(path))
        for record, where in records:
            if not (path / record["file_name"]).is_file():
                raise FileNotFoundError(f"{where}: image {record['file_name']} is missing: add it or remove the line.")

        def images() -> Iterator[bytes]:
            for record, where in records:
                data = (path / record["file_name"]).read_bytes()
                yield building.checked_image(data, f"{where}: {record['file_name']}")

        rows = [({"id": record["file_name"], **record}, where) for record, where in records]
        return cls._build(rows, images(), recipe, origin=str(path))

    @classmethod
    def from_dataset(
        cls,
        dataset: "datasets.Dataset",
        image_column: str = "image",
        text_column: str = "text",
        id_column: str | None = None,
        recipe: RetrievalRecipe | None = None,
    ) -> "ImageTextMemory":
        """
        Build a memory from a data set of the `datasets` library. A `kind` column is the pairs' kind; further columns
        become metadata. Images are kept as they are encoded in the data set.

        Args:
            dataset (`datasets.Dataset`):
                One split.
            image_column (`str`, *optional*, defaults to `"image"`):
                Column of type `datasets.Image`.
            text_column (`str`, *optional*, defaults to `"text"`):
                Column with the captions.
            id_column (`str`, *optional*):
                Column with unique ids. Defaults to the row number.
            recipe ([`RetrievalRecipe`], *optional*):
                As in [`~ImageTextMemory.from_folder`].

        Raises:
            `ValueError`: if a column is missing or of another type, or an image or an id cannot be used.
        """
        import datasets

        if not isinstance(dataset, datasets.Dataset):
            raise ValueError(f"A memory needs one datasets.Dataset, not {type(dataset).__name__}: pick a split.")
        for column in filter(None, (image_column, text_column, id_column)):
            if column not in dataset.column_names:
                raise ValueError(f"The data set has no column {column!r}: it has {', '.join(dataset.column_names)}.")
        if not isinstance(dataset.features[image_column], datasets.Image):
            raise ValueError(
                f"Column {image_column!r} is {dataset.features[image_column]}, not datasets.Image: cast it with "
                f"dataset.cast_column({image_column!r}, datasets.Image())."
            )
        rows = []
        for number, record in enumerate(dataset.remove_columns(image_column)):
            row = {name: value for name, value in record.items() if name not in (text_column, id_column)}
            id = number if id_column is None else record[id_column]
            rows.append(({**row, "id": str(id), "text": record[text_column]}, f"row {number}"))
        encoded = dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))

        def images() -> Iterator[bytes]:
            for number, record in enumerate(encoded):
                yield building.checked_image(building.dataset_image(record[image_column], number), f"row {number}")

        return cls._build(rows, images(), recipe, origin="the data set")

    @classmethod
    def _build(
        cls, rows: Iterable[tuple[dict, str]], images: Iterable[bytes], recipe: RetrievalRecipe | None, origin: str
    ) -> "ImageTextMemory":
        """Check the rows (each with the place it comes from), then the images, and index what has a text."""
        rows = list(rows)
        building.check_rows(rows)
        empty = [not (row["text"] or "").strip() for row, _ in rows]
        kept = [row for (row, _), drop in zip(rows, empty) if not drop]
        if not kept:
            raise ValueError(f"{origin} has no pair with a text: nothing to search.")
        if any(empty):
            logger.warning("Dropped %d of %d pairs of %s: their text is empty.", sum(empty), len(rows), origin)
        recipe = building.checked_recipe(recipe, kept)
        indexes = building.build_indexes(recipe, kept)
        if not indexes:
            raise ValueError(f"{origin} has no text with a searchable word (all are stop words or signs).")
        kept_images = (image for image, drop in zip(images, empty) if not drop)
        table = pa.Table.from_batches(building.batches(kept, kept_images, recipe.group_by), schema=building.SCHEMA)
        return cls(table, recipe, indexes, num_dropped=sum(empty))

    def save(self, path: str | os.PathLike) -> None:
        """
        Write the memory into a folder: pairs with their encoded images, indexes and a manifest. The folder appears
        whole or not at all; a memory that was there is replaced.

        Raises:
            `FileExistsError`: if the path holds something that is not a memory.
        """
        manifest = {
            "num_pairs": len(self),
            "num_dropped": self.num_dropped,
            "kinds": {kind: len(index.rows) for kind, index in self._kinds.items() if kind},
            "recipe": self.recipe.to_dict(),
            "indexes": list(self._indexes),
        }
        storage.save_folder(Path(path), manifest, self._table, self._indexes)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap: bool = True, verify: bool = True) -> "ImageTextMemory":
        """
        Open a saved memory.

        Args:
            path (`str` or `os.PathLike`):
                Folder that [`~ImageTextMemory.save`] wrote.
            mmap (`bool`, *optional*, defaults to `True`):
                Map pairs and indexes from disk instead of reading them into memory.
            verify (`bool`, *optional*, defaults to `True`):
                Compare the files' hashes with the manifest, which reads them once. Sizes are compared in any case.

        Raises:
            `FileNotFoundError`: if there is no such folder.
            `ValueError`: if the folder is not a memory, is damaged, or was written in another format version.
        """
        path = Path(path)
        manifest = storage.read_manifest(path, verify=verify)
        with storage.naming_damage(path):
            table, indexes = storage.open_folder(path, manifest["indexes"], mmap=mmap)
            memory = cls(
                table, RetrievalRecipe.from_dict(manifest["recipe"]), indexes, num_dropped=manifest["num_dropped"]
            )
            counts = [(len(memory), manifest["num_pairs"])]
            for kind in memory._kinds.values():
                counts += [(len(index), len(kind.rows)) for index in kind.fields.values()]
            for count, expected in counts:
                if count != expected:
                    raise ValueError(f"it has {count} entries where {expected} belong")
        return memory

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, id: object) -> bool:
        return id in self._row_of_id

    def __getitem__(self, key: int | str) -> ImageTextPair:
        if isinstance(key, str):
            if key not in self:
                raise KeyError(f"The memory has no pair {key!r}.")
            return self._pair(self._row_of_id[key])
        if not -len(self) <= key < len(self):
            raise IndexError(f"Pair {key} of a memory of {len(self)} pairs.")
        return self._pair(int(key) % len(self))

    def __iter__(self) -> Iterator[ImageTextPair]:
        return (self._pair(row) for row in range(len(self)))

    def __repr__(self) -> str:
        kinds = "".join(f", {len(index.rows)} of kind {kind!r}" for kind, index in self._kinds.items() if kind)
        return f"ImageTextMemory({len(self)} pairs{kinds})"

    @property
    def ids(self) -> list[str]:
        """The ids of all pairs, in order."""
        return list(self._row_of_id)

    @cached_property
    def _row_of_id(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self._table["id"].to_pylist())}

    def _pair(self, row: int, score: float | None = None) -> ImageTextPair:
        value = {name: self._table[name][row] for name in ("id", "text", "kind", "metadata", "image")}
        return ImageTextPair(
            id=value["id"].as_py(),
            text=value["text"].as_py(),
            image=value["image"].as_buffer(),
            score=score,
            kind=value["kind"].as_py(),
            metadata=json.loads(value["metadata"].as_py()),
        )

    def search(
        self,
        prompt: str,
        k: int | Mapping[str, int] = 1,
        *,
        exclude: Iterable[str] = (),
        prefer: Iterable[str] = (),
    ) -> list[ImageTextPair]:
        """
        The pairs that match a prompt best.

        A pair is returned only if it shares a searched word with the prompt, so a prompt without a known word gets
        none, and there may be fewer than `k`. Pairs with the same score keep the memory's order. In a memory with
        kinds, of the pairs whose texts match best one that the prompt holds to the letter ("a thumbs up") comes first.

        Args:
            prompt (`str`):
                What to search for.
            k (`int` or `Mapping[str, int]`, *optional*, defaults to `1`):
                Number of pairs of each kind, for all kinds or by kind; in a memory without kinds, of all pairs.
            exclude (`Iterable[str]`, *optional*):
                Ids of pairs not to return, such as the drawing that a training sample is made of.
            prefer (`Iterable[str]`, *optional*):
                Ids of pairs to return in place of others of the same group (the recipe's `group_by`). Without it the
                first pair of a group stands for it.

        Returns:
            `list[ImageTextPair]`: with their scores, kind by kind in the recipe's order, best first in each.

        Raises:
            `ValueError`: if the prompt is not a string, `k` is not a count, or an id is not in the memory.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"A prompt is a string, not {type(prompt).__name__}: use search_batch for several.")
        count_of_kind = self._counts(k)
        allowed = np.ones(len(self), dtype=bool)
        allowed[self._rows(exclude, "exclude")] = False
        preferred = set(self._rows(prefer, "prefer"))
        before, after = (tokenize(part, self._stop_words) for part in self.recipe.split_at_cue(prompt))
        found = {}
        # A place's words would vote for subjects too ("in an old laboratory": an old woman), so the last kind goes
        # first and takes its words along. That its pairs may be excluded does not change what the words mean.
        for position, kind in reversed(list(enumerate(self._kinds))):
            query = after if position else before + after
            rows, scores = self._ranked(kind, query, prompt)
            if position and len(rows):
                after = _without(after, self._named_by(rows[0], query))
            keep = allowed[rows]
            found[kind] = self._pick(rows[keep], scores[keep], count_of_kind[kind], preferred)
        return [pair for kind in self._kinds for pair in found[kind]]

    def search_batch(
        self,
        prompts: Sequence[str],
        k: int | Mapping[str, int] = 1,
        *,
        exclude: Sequence[Iterable[str]] | None = None,
        prefer: Sequence[Iterable[str]] | None = None,
    ) -> list[list[ImageTextPair]]:
        """
        [`~ImageTextMemory.search`] for several prompts; `exclude` and `prefer` hold one list of ids for each prompt.

        Raises:
            `ValueError`: if the lists differ in length, or as `search` does.
        """
        if isinstance(prompts, str):
            raise ValueError("search_batch takes a list of prompts: use search for a single string.")
        for name, ids in (("exclude", exclude), ("prefer", prefer)):
            if ids is not None and (isinstance(ids, str) or len(ids) != len(prompts)):
                raise ValueError(f"`{name}` must hold one list of ids for each of the {len(prompts)} prompts.")
        return [
            self.search(
                prompt,
                k,
                exclude=() if exclude is None else exclude[number],
                prefer=() if prefer is None else prefer[number],
            )
            for number, prompt in enumerate(prompts)
        ]

    def _counts(self, k: int | Mapping[str, int]) -> dict[str, int]:
        counts = dict(k) if isinstance(k, Mapping) else dict.fromkeys(self._kinds, k)
        for kind, count in counts.items():
            if kind not in self._kinds:
                has = ", ".join(map(repr, self.recipe.kinds)) or "no kinds: pass one number"
                raise ValueError(f"`k` names kind {kind!r}, but the memory has {has}.")
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"`k` must be a whole number of pairs, 0 or more, not {count!r}.")
        return {kind: counts.get(kind, 0) for kind in self._kinds}

    def _rows(self, ids: Iterable[str], argument: str) -> list[int]:
        if isinstance(ids, str):
            raise ValueError(f"`{argument}` takes a list of ids, not the string {ids!r}.")
        ids = list(ids)
        for id in ids:
            if id not in self:
                raise ValueError(f"`{argument}` names pair {id!r}, which is not in the memory: leave it out.")
        return [self._row_of_id[id] for id in ids]

    def _ranked(self, kind: str, words: Sequence[str], prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a kind that share a word with the query, and their scores, best first."""
        index = self._kinds[kind]
        by_field = [
            one.weight * index.fields[one.name].scores(words) for one in self.recipe.fields if one.name in index.fields
        ]
        scores = sum(by_field, start=np.zeros(len(index.rows), dtype=np.float32))
        found = np.flatnonzero(scores)
        literal = np.zeros(len(scores), dtype=bool)
        if self.recipe.kinds and len(found):
            # Pairs whose texts differ in stop words alone ("thumbs up", "thumbs down") match alike.
            alike = np.flatnonzero(by_field[0] == by_field[0].max()) if by_field[0].any() else found[:0]
            literal[alike] = [self._is_named(index.rows[one], prompt) for one in alike]
        found = found[np.lexsort((found, -scores[found], ~literal[found]))]
        return index.rows[found], scores[found]

    def _is_named(self, row: int, prompt: str) -> bool:
        """Whether the prompt holds the pair's text to the letter, articles aside."""
        text, prompt = (
            f" {' '.join(tokenize(one, ENGLISH_STOP_WORDS))} "
            for one in (self._table["text"][int(row)].as_py(), prompt)
        )
        return text in prompt

    def _named_by(self, row: int, words: Sequence[str]) -> Counter[str]:
        """The words of the pair's first field that shares a word with the query: its text, else its keywords."""
        pair = self._pair(int(row))
        for one in self.recipe.fields:
            text = building.field_text({"id": pair.id, "text": pair.text, **pair.metadata}, one.name)
            named = Counter(tokenize(text, self._stop_words))
            if not named.keys().isdisjoint(words):
                return named
        raise AssertionError(f"{pair} was found without a shared word")

    def _pick(self, rows: np.ndarray, scores: np.ndarray, k: int, preferred: set[int]) -> list[ImageTextPair]:
        """The first `k` of the ranked rows, at most one for each group."""
        groups = self._groups[rows]
        _, first = np.unique(groups, return_index=True)
        pairs = []
        for position in sorted(first)[:k]:
            members = np.flatnonzero(groups == groups[position])
            chosen = next((member for member in members if int(rows[member]) in preferred), position)
            pairs.append(self._pair(int(rows[chosen]), float(scores[chosen])))
        return pairs


def _without(words: Sequence[str], named: Mapping[str, int]) -> list[str]:
    """The words of a query less the named ones, each as often as it is named, from the end of the query."""
    left = Counter(named)
    rest = []
    for word in reversed(words):
        if left[word]:
            left[word] -= 1
        else:
            rest.append(word)
    return rest[::-1]
