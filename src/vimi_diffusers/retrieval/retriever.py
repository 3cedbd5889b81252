# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What every search of a memory looks like, and BM25 as the first of them."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np

from .bm25 import BM25Index
from .recipe import ENGLISH_STOP_WORDS, tokenize


class Retriever(ABC):
    """
    Finds the documents of a list that fit a query. `len(retriever)` is the number of documents.

    Pass one to [`ImageTextMemory.search`] to search the memory's pairs by other means than its own BM25: document
    number n is then the memory's pair number n.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def retrieve(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The `k` best documents for each query.

        Args:
            queries (`Sequence[str]`):
                What to search for.
            k (`int`):
                Number of documents for each query, at least 1.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: numbers of documents, `int64[len(queries), k]`, and their scores,
            `float32[len(queries), k]`. Best first, equal scores in the order of the documents. Where there are fewer
            than `k`, the rest has the number -1 and the score 0.

        Raises:
            `ValueError`: if `queries` is one string or holds something else than strings, or `k` is not a count.
        """


class BM25Retriever(Retriever):
    """
    BM25 over one text of each document.

    Args:
        index ([`BM25Index`]):
            The indexed texts.
        stop_words (`Collection[str]`, *optional*, defaults to English function words):
            Words of a query that are not searched: those that were left out when the texts were indexed.
    """

    def __init__(self, index: BM25Index, stop_words: Collection[str] = ENGLISH_STOP_WORDS):
        self.index = index
        self._stop_words = frozenset(stop_words)

    def __len__(self) -> int:
        return len(self.index)

    def retrieve(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_request(queries, k)
        return self.index.search([tokenize(query, self._stop_words) for query in queries], k)


def check_request(queries: Sequence[str], k: int) -> None:
    """
    Raises:
        `ValueError`: if this cannot be asked of a retriever.
    """
    if isinstance(queries, str):
        raise ValueError(f"A retriever takes a list of queries, not the one string {queries[:80]!r}: pass [query].")
    for query in queries:
        if not isinstance(query, str):
            raise ValueError(f"A query is a string, not {type(query).__name__}.")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"`k` must be a whole number of documents, at least 1, not {k!r}.")


def best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The `k` best of each query's candidates.

    Args:
        rows (`np.ndarray`): Numbers of documents, `int64[queries, candidates]`; -1 is no candidate.
        scores (`np.ndarray`): Their scores, in the same shape.
        k (`int`): Number of documents for each query.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: as [`Retriever.retrieve`] returns them.
    """
    order = np.lexsort((rows, -scores, rows < 0))[:, :k]
    chosen = np.full((len(rows), k), -1, dtype=np.int64)
    kept = np.zeros((len(rows), k), dtype=np.float32)
    chosen[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    kept[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    kept[chosen < 0] = 0
    return chosen, kept
