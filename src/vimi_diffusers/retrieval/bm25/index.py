# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""BM25 over tokenised texts: an index in shards, written in one stream, memory-mapped, searched on all cores."""

import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from ...files import check_new_folder, whole_folder
from ..recipe import check_parameters
from . import scores as scoring
from . import search as searching
from .scores import Counts
from .search import Shard
from .storage import Manifest, read_arrays, write_arrays
from .vocabulary import Vocabulary


SHARD_SIZE = 1 << 20  # a shard's sums for one query then take 4 MB, which stays in a core's cache
_QUERIES_AT_ONCE = 4096
_SCORES = ("scores", "bounds")
_COUNTS = tuple(field.name for field in fields(Counts))
_VOCABULARY = ("letters", "ends", "hashes", "numbers")


class BM25Index:
    """
    BM25 scores of every text of a list for a query, precomputed as bm25s does it ("eager" scores, sorted by word).

    The score is the sum over the query's words t of `idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len / avglen))`
    with `idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))` (paper section 1.6). Lucene leaves the constant `k1 + 1` out
    and so ranks the same. A word counts as often as it stands in the query.

    Texts are rows, numbered in the order in which they were given. They lie in shards, but N, df and avglen are those
    of all texts: scores and rankings are bit for bit those of one index over everything.

    Make one with [`~BM25Index.build`] in memory, with [`~BM25Index.create`] on disk, or with [`~BM25Index.load`].
    `len(index)` is the number of texts.

    Attributes:
        k1 (`float`): Saturation of repeated words.
        b (`float`): Weight of the text's length.
        num_shards (`int`): Shards of the whole index, opened or not.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[Shard], vocabulary: Vocabulary):
        self.k1, self.b = manifest.k1, manifest.b
        self.num_shards = len(manifest.shards)
        self._manifest = manifest
        self._shards = shards
        self._vocabulary = vocabulary
        self._place = None  # arguments of `load`, if it lies on disk

    @classmethod
    def build(
        cls, documents: Iterable[Sequence[str]], k1: float = 1.5, b: float = 0.75, shard_size: int = SHARD_SIZE
    ) -> "BM25Index | None":
        """
        Index tokenised texts in memory.

        Args:
            documents (`Iterable[Sequence[str]]`):
                The words of each text, as [`tokenize`] gives them.
            k1 (`float`, *optional*, defaults to `1.5`):
                Saturation of repeated words.
            b (`float`, *optional*, defaults to `0.75`):
                Weight of the text's length.
            shard_size (`int`, *optional*, defaults to 1,048,576):
                Most texts of a shard.

        Returns:
            `BM25Index`, or `None` if no text has a word.

        Raises:
            `ValueError`: if a text is not a sequence of words, or a parameter cannot be used.
        """
        check_parameters(k1, b)
        _check_shard_size(shard_size)
        numbers = scoring.new_numbers()
        counts = list(scoring.count(documents, numbers, shard_size))
        if not numbers:
            return None
        manifest = Manifest(k1, b, tuple(map(_record, counts)))
        scored = _scored(manifest, counts, len(numbers))
        shards = [Shard(*parts) for parts in zip(_first_rows(manifest), counts, *zip(*scored))]
        return cls(manifest, shards, Vocabulary.from_words(numbers))

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        documents: Iterable[Sequence[str]],
        k1: float = 1.5,
        b: float = 0.75,
        shard_size: int = SHARD_SIZE,
    ) -> "BM25Index":
        """
        Index a stream of tokenised texts on disk, of which one shard at a time is in memory, with all words once.

        Args:
            folder (`str` or `os.PathLike`):
                A new or empty folder. It appears when the index is whole.
            documents, k1, b, shard_size:
                As in [`~BM25Index.build`].

        Returns:
            `BM25Index`: memory-mapped. Without any word in the texts every search finds nothing.

        Raises:
            `ValueError`: if the folder holds something, a text is not a sequence of words, or a parameter cannot be
                used.
        """
        check_parameters(k1, b)
        _check_shard_size(shard_size)
        folder = Path(folder)
        check_new_folder(folder)
        with whole_folder(folder) as new:
            _extend(new, Manifest(k1, b), scoring.new_numbers(), documents, shard_size)
        return cls.load(folder, verify=False)

    def add(self, documents: Iterable[Sequence[str]], shard_size: int = SHARD_SIZE) -> None:
        """
        Index further texts behind those of an index on disk, as new shards. The scores of all shards are computed
        anew from their counts, since N, df and avglen change. If that is interrupted, the index is the one before.

        Args:
            documents (`Iterable[Sequence[str]]`):
                The words of each further text.
            shard_size (`int`, *optional*, defaults to 1,048,576):
                Most texts of a new shard.

        Raises:
            `ValueError`: if the index is not on disk, was changed there since it was opened, or is damaged.
        """
        if self._place is None:
            raise ValueError("This BM25 index is in memory alone: save it and load it, or build it with all texts.")
        _check_shard_size(shard_size)
        folder, *options = self._place
        if Manifest.read(folder) != self._manifest:
            raise ValueError(f"The BM25 index {folder} was changed since it was opened: load it again.")
        numbers = scoring.new_numbers(self._vocabulary)
        _extend(folder, self._manifest, numbers, documents, shard_size, tag=uuid.uuid4().hex[:8])
        self.__dict__.update(vars(self.load(*self._place)))

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write the index into a new or empty folder, which appears when all is there.

        Raises:
            `ValueError`: if the folder holds something, or not all shards are open.
        """
        if len(self._shards) < self.num_shards:
            raise ValueError(f"{len(self._shards)} of {self.num_shards} shards are open: load all of them to save.")
        folder = Path(folder)
        check_new_folder(folder)
        with whole_folder(folder) as new:
            records = []
            for number, shard in enumerate(self._shards):
                arrays = {**vars(shard.counts), "scores": shard.scores, "bounds": shard.bounds}
                records.append({**_record(shard.counts), "files": write_arrays(new, _name(number), arrays)})
            vocabulary = write_arrays(new, "vocabulary", self._vocabulary.arrays)
            Manifest(self.k1, self.b, tuple(records), vocabulary).write(new)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, mmap: bool = True, verify: bool = True, shards: Sequence[int] | None = None
    ) -> "BM25Index":
        """
        Open an index on disk.

        Args:
            folder (`str` or `os.PathLike`):
                What [`~BM25Index.create`] or [`~BM25Index.save`] wrote.
            mmap (`bool`, *optional*, defaults to `True`):
                Whether arrays are memory-mapped, so that what is searched is read when it is needed and shared by
                the processes of a machine, or read as a whole.
            verify (`bool`, *optional*, defaults to `True`):
                Whether the hashes of the files are compared, which reads them once. Sizes are compared in any case.
            shards (`Sequence[int]`, *optional*, defaults to all):
                Numbers of the shards to open. Texts of others are not found; rows and scores are those of the whole
                index, and [`merge_top_k`] makes one result of those of several parts.

        Raises:
            `FileNotFoundError`: if there is no such folder.
            `ValueError`: if the folder holds no index of this version, a shard is damaged (which is named), or a
                number is none of a shard.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        chosen = range(len(manifest.shards)) if shards is None else sorted(set(shards))
        for number in chosen:
            if not 0 <= number < len(manifest.shards):
                raise ValueError(f"The BM25 index {folder} has no shard {number}: it has {len(manifest.shards)}.")
        read = partial(read_arrays, folder, mmap=mmap, verify=verify)
        vocabulary = Vocabulary(read(manifest.vocabulary, _VOCABULARY, "the vocabulary"))
        first_rows = _first_rows(manifest)
        opened = []
        for number in chosen:
            files = manifest.shards[number]["files"]
            counts = Counts(**read(files, _COUNTS, f"shard {number}"))
            opened.append(Shard(first_rows[number], counts, **read(files, _SCORES, f"shard {number}")))
        index = cls(manifest, opened, vocabulary)
        index._place = (folder, mmap, verify, None if shards is None else list(chosen))
        return index

    def __len__(self) -> int:
        return self._manifest.num_documents

    def __reduce__(self) -> tuple:
        """For other processes, which open the files of an index on disk themselves."""
        if self._place is None:
            return BM25Index, (self._manifest, self._shards, self._vocabulary)
        folder, mmap, _, shards = self._place
        return BM25Index.load, (folder.absolute(), mmap, False, shards)

    def scores(self, words: Iterable[str]) -> np.ndarray:
        """The score of each text, `float32[len(self)]`; zero where no word matches. Unknown words add nothing."""
        numbers = self._vocabulary.numbers(list(words))
        terms, order = np.unique(numbers[numbers >= 0], return_inverse=True)
        scores = np.zeros(len(self), dtype=np.float32)
        for shard in self._shards if len(terms) else ():
            lists = shard.lists(terms)
            own = scores[shard.first_row : shard.first_row + lists.num_documents]
            for term in order:
                part = slice(lists.begins[term], lists.ends[term])
                own[lists.documents[part]] += lists.scores[part]
        return scores

    def search(
        self,
        queries: Sequence[Sequence[str]],
        k: int,
        exclude: Sequence[Collection[int]] | None = None,
        *,
        backend: str | None = None,
        num_threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        The best texts for each query, among those that share a word with it. The search is exact.

        Args:
            queries (`Sequence[Sequence[str]]`):
                The words of each query. Unknown words add nothing.
            k (`int`):
                How many texts to find for each.
            exclude (`Sequence[Collection[int]]`, *optional*):
                For each query the rows that it must not find.
            backend (`str`, *optional*):
                `"numba"` or `"numpy"`, which find the same. Defaults to numba where it is installed.
            num_threads (`int`, *optional*):
                Defaults to the cores that the process may use.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: rows, `int64[queries, k]`, and scores, `float32[queries, k]`; best first,
            equal scores in the order of rows. Where fewer texts are found, the rest has row -1 and score 0.

        Raises:
            `ValueError`: if queries are not sequences of words, `k` is negative, or an excluded row is none.
        """
        if isinstance(queries, str) or any(isinstance(words, str) for words in queries):
            raise ValueError("`queries` holds the words of each query: pass [tokenize(text)], not a string.")
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
            raise ValueError(f"`k` must be a whole number of texts, 0 or more, not {k!r}.")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"`exclude` must hold rows for each of the {len(queries)} queries, not {len(exclude)}.")
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        search_shard = _search_shard(backend)
        num_threads = num_threads or _num_cores()
        most = min(k, sum(len(shard.counts.lengths) for shard in self._shards))
        for start in range(0, len(queries), _QUERIES_AT_ONCE) if most else ():
            part = slice(start, start + _QUERIES_AT_ONCE)
            found = self._search_batch(
                queries[part], None if exclude is None else exclude[part], most, search_shard, num_threads
            )
            rows[part, :most], scores[part, :most] = found
        return rows, scores

    def _search_batch(
        self,
        queries: Sequence[Sequence[str]],
        exclude: Sequence[Collection[int]] | None,
        k: int,
        search_shard: Callable,
        num_threads: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        terms, flat = self._flat(queries, exclude)
        lists = [shard.lists(terms) for shard in self._shards]
        best = searching.Best(
            np.full((len(queries), k), -1, dtype=np.int64),
            np.zeros((len(queries), k), dtype=np.float32),
            np.zeros(len(queries), dtype=np.int64),
        )

        def search_some(first: int, last: int) -> None:
            for postings in lists:
                search_shard(flat, first, last, postings, best)

        # Several parts for each thread, since queries differ in work.
        step = max(1, len(queries) // (4 * num_threads))
        firsts = range(0, len(queries), step)
        if num_threads == 1 or len(firsts) == 1:
            search_some(0, len(queries))
        else:
            with ThreadPoolExecutor(num_threads) as threads:
                list(threads.map(search_some, firsts, [min(first + step, len(queries)) for first in firsts]))
        return _sorted(best.rows, best.scores)

    def _flat(
        self, queries: Sequence[Sequence[str]], exclude: Sequence[Collection[int]] | None
    ) -> tuple[np.ndarray, searching.Queries]:
        """The numbers of all known words of the queries, ascending, and the queries in flat arrays."""
        words = list(dict.fromkeys(chain.from_iterable(queries)))
        number_of = dict(zip(words, self._vocabulary.numbers(words).tolist()))
        known = [[number for word in words if (number := number_of[word]) >= 0] for words in queries]
        hidden = [()] * len(queries) if exclude is None else [sorted(set(rows)) for rows in exclude]
        for row in chain.from_iterable(hidden):
            if not 0 <= row < len(self):
                raise ValueError(f"`exclude` names row {row}, but the index has rows 0 to {len(self) - 1}.")
        return searching.flatten(known, hidden)


def merge_top_k(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """
    One result of several, as of one index opened in parts (`load(..., shards=...)`).

    Args:
        parts (`Sequence[tuple[np.ndarray, np.ndarray]]`):
            Rows and scores of the same queries, as [`~BM25Index.search`] returns them, with at least `k` columns each.
        k (`int`):
            How many texts to keep for each query.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: rows, `int64[queries, k]`, and scores, `float32[queries, k]`: what a search
        of the whole index returns.
    """
    if not parts:
        raise ValueError("There is no result to merge: pass the rows and scores of at least one part.")
    rows, scores = _sorted(*(np.concatenate(values, axis=1) for values in zip(*parts)))
    width = ((0, 0), (0, max(k - rows.shape[1], 0)))
    return np.pad(rows[:, :k], width, constant_values=-1), np.pad(scores[:, :k], width)


def _sorted(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each query's texts best first, equal scores by row; what is no text (score 0) goes last."""
    order = np.lexsort((rows, -scores), axis=-1)
    return np.take_along_axis(rows, order, axis=-1), np.take_along_axis(scores, order, axis=-1)


def _search_shard(backend: str | None) -> Callable:
    if backend not in (None, "numba", "numpy"):
        raise ValueError(f'`backend` is "numba" or "numpy", not {backend!r}.')
    if backend != "numpy":
        try:
            from . import search_numba

            return search_numba.search_shard
        except ImportError as error:
            if backend == "numba":
                raise ImportError('backend="numba" needs numba: pip install numba') from error
    return searching.search_shard


def _num_cores() -> int:
    """The cores that this process may use; systems other than Linux tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_shard_size(shard_size: int) -> None:
    if not 1 <= shard_size < 1 << 31:
        raise ValueError(f"`shard_size` is {shard_size}: a shard holds 1 to {(1 << 31) - 1} texts.")


def _name(number: int) -> str:
    return f"{number:05}"


def _record(counts: Counts) -> dict:
    return {"documents": len(counts.lengths), "words": int(counts.lengths.sum(dtype=np.int64))}


def _first_rows(manifest: Manifest) -> list[int]:
    return list(accumulate((shard["documents"] for shard in manifest.shards), initial=0))[: len(manifest.shards)]


def _scored(manifest: Manifest, shards: Iterable[Counts], num_terms: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scores and bounds of each shard; `shards` is iterated twice."""
    idf = scoring.inverse_document_frequencies(shards, num_terms, manifest.num_documents)
    for counts in shards:
        yield scoring.score(counts, idf, manifest.average_length, manifest.k1, manifest.b)


def _extend(
    folder: Path,
    manifest: Manifest,
    numbers: dict[str, int],
    documents: Iterable[Sequence[str]],
    shard_size: int,
    tag: str = "",
) -> None:
    """Add shards to what a folder holds and score all shards; the manifest is written last."""
    old = manifest
    try:
        for counts in scoring.count(documents, numbers, shard_size):
            files = write_arrays(folder, _name(len(manifest.shards)), vars(counts), tag)
            manifest = replace(manifest, shards=(*manifest.shards, {**_record(counts), "files": files}))
        if len(manifest.shards) == len(old.shards) and old.vocabulary:
            return
        vocabulary = write_arrays(folder, "vocabulary", Vocabulary.from_words(numbers).arrays, tag)
        manifest = replace(manifest, vocabulary=vocabulary)
        counts = [
            Counts(**read_arrays(folder, shard["files"], _COUNTS, f"shard {number}", mmap=True, verify=False))
            for number, shard in enumerate(manifest.shards)
        ]
        for number, (scores, bounds) in enumerate(_scored(manifest, counts, len(numbers))):
            files = write_arrays(folder, _name(number), {"scores": scores, "bounds": bounds}, tag)
            manifest = manifest.with_files(number, files)
        manifest.write(folder)
    except BaseException:
        if old.vocabulary:  # otherwise the folder is a new one that goes as a whole
            old.remove_unnamed(folder)
        raise
    manifest.remove_unnamed(folder)
