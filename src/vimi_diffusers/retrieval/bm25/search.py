# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Exact search for the best documents of one shard, in numpy. [`search_numba`] finds the same, faster.

Words are taken from the one with the highest score in the shard to the one with the lowest. Once the words that are
left cannot lift a document above the k-th best found so far, only the documents seen until then can be among the best
(MaxScore; Turtle and Flood, 1995): the long lists of frequent words are then looked up for those documents alone, and
most of them drop out before. The scores of what is left are summed anew in the query's order, so that they are bit
for bit those of a full scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from .scores import Counts


class Queries(NamedTuple):
    """
    A batch of queries in flat arrays; what belongs to query q lies between `..._starts[q]` and `..._starts[q + 1]`.

    Attributes:
        term_starts (`int64[queries + 1]`): Of `terms` and `repeats`.
        terms (`int64`): The different known words of each query, as positions among all such words of the batch.
        repeats (`int64`): How often each of them stands in the query.
        word_starts (`int64[queries + 1]`): Of `words`.
        words (`int64`): The known words of each query in their order, as positions in `terms`.
        hidden_starts (`int64[queries + 1]`): Of `hidden`.
        hidden (`int64`): The rows that each query must not find.
    """

    term_starts: np.ndarray
    terms: np.ndarray
    repeats: np.ndarray
    word_starts: np.ndarray
    words: np.ndarray
    hidden_starts: np.ndarray
    hidden: np.ndarray


class Postings(NamedTuple):
    """
    What one shard knows of the words of a batch.

    Attributes:
        first_row (`int`): Row of the shard's first document.
        num_documents (`int`): Documents of the shard.
        documents (`int32`): The documents of each posting, counted from the first.
        scores (`float32`): The score of each posting.
        begins, ends (`int64[words of the batch]`): The postings of each word.
        bounds (`float64[words of the batch]`): The highest score among them, 0 without any.
        bit_rows (`int64[words of the batch]`): The row of `bits` for each; -1 without one.
        bits (`uint8`): As in [`Counts`].
    """

    first_row: int
    num_documents: int
    documents: np.ndarray
    scores: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    bounds: np.ndarray
    bit_rows: np.ndarray
    bits: np.ndarray


class Best(NamedTuple):
    """
    The best documents found so far. Their order is the backend's own: numba keeps a heap with the worst on top.

    Attributes:
        rows (`int64[queries, k]`), scores (`float32[queries, k]`): Where `sizes` ends, the rest is unused.
        sizes (`int64[queries]`): How many there are.
    """

    rows: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Shard:
    """
    A part of an index's documents.

    Attributes:
        first_row (`int`): Row of the first document.
        counts ([`Counts`]): How often each word stands in them.
        scores (`float32[postings]`): The score of each posting.
        bounds (`float32[terms]`): The highest score of each word.
    """

    first_row: int
    counts: Counts
    scores: np.ndarray
    bounds: np.ndarray

    def __post_init__(self) -> None:
        for values in (self.scores, self.counts.documents, self.counts.bits):
            values.flags.writeable = False  # as mapped arrays are, so that numba compiles once for both

    def lists(self, terms: np.ndarray) -> Postings:
        """The postings of words, given by ascending numbers."""
        there, places = _find(self.counts.terms, terms)
        begins, ends = np.zeros((2, len(terms)), dtype=np.int64)
        begins[there], ends[there] = self.counts.starts[places], self.counts.starts[places + 1]
        bounds = np.zeros(len(terms))
        bounds[there] = self.bounds[places]
        bit_rows = np.full(len(terms), -1)
        there, places = _find(self.counts.frequent, terms)
        bit_rows[there] = places
        return Postings(
            self.first_row,
            len(self.counts.lengths),
            self.counts.documents,
            self.scores,
            begins,
            ends,
            bounds,
            bit_rows,
            self.counts.bits,
        )


def _find(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the wanted values are among the sorted ones, `bool`, and the places of those."""
    places = np.searchsorted(values, wanted)
    there = places < len(values)
    there[there] = values[places[there]] == wanted[there]
    return there, places[there]


def flatten(numbers: Sequence[Sequence[int]], hidden: Sequence[Sequence[int]]) -> tuple[np.ndarray, Queries]:
    """The different words of a batch, ascending, and the batch; from the words and the hidden rows of each query."""
    in_order = np.array([*chain.from_iterable(numbers)], dtype=np.int64)
    terms, place = np.unique(in_order, return_inverse=True)
    query = np.repeat(np.arange(len(numbers)), [len(words) for words in numbers])
    pairs, words, repeats = np.unique(query * len(terms) + place, return_inverse=True, return_counts=True)
    queries = Queries(
        term_starts=np.searchsorted(pairs, np.arange(len(numbers) + 1) * len(terms)),
        terms=pairs % max(len(terms), 1),
        repeats=repeats,
        word_starts=_starts(numbers),
        words=words,
        hidden_starts=_starts(hidden),
        hidden=np.array([*chain.from_iterable(hidden)], dtype=np.int64),
    )
    return terms, queries


def _starts(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(accumulate(map(len, lists), initial=0), np.int64)


def slack(num_words: int) -> float:
    """Upper bound of the relative rounding error of a sum of so many float32 values, in any order."""
    return (num_words + 8) * 2.0**-22


def search_shard(queries: Queries, first: int, last: int, postings: Postings, best: Best) -> None:
    """Take the documents of a shard into the best ones of the queries from `first` to `last`, exclusive."""
    sums = np.zeros(postings.num_documents, dtype=np.float32)
    for query in range(first, last):
        _search_one(queries, query, postings, best, sums)


def _search_one(queries: Queries, query: int, postings: Postings, best: Best, sums: np.ndarray) -> None:
    own = slice(*queries.term_starts[query : query + 2])
    terms, repeats = queries.terms[own], queries.repeats[own]
    words = queries.words[slice(*queries.word_starts[query : query + 2])] - own.start
    bounds = postings.bounds[terms] * repeats
    order = np.argsort(-bounds, kind="stable")
    rest = np.append(np.cumsum(bounds[order][::-1])[::-1], 0.0)  # what the words from here on can add at most
    error = slack(len(words))
    k, size = best.rows.shape[1], int(best.sizes[query])
    needed = float(best.scores[query, :size].min()) if size == k else 0.0
    hidden = queries.hidden[slice(*queries.hidden_starts[query : query + 2])] - postings.first_row
    hidden = hidden[(hidden >= 0) & (hidden < postings.num_documents)]
    sums[hidden] = -np.inf

    seen = [hidden]
    done = 0
    while done < len(order) and rest[done] > 0 and rest[done] * (1 + error) >= needed:
        term = terms[order[done]]
        part = slice(postings.begins[term], postings.ends[term])
        documents = postings.documents[part]
        seen.append(documents[sums[documents] == 0])
        sums[documents] += postings.scores[part] * np.float32(repeats[order[done]])
        done += 1
        if done < len(order):
            found = np.concatenate(seen[1:])
            needed = max(needed, _kth(sums[found], k) * (1 - error))
    found = np.concatenate(seen[1:]) if done else hidden[:0]
    partial = sums[found]
    sums[found] = 0
    sums[hidden] = 0

    for position in range(done, len(order) + 1):
        keep = (partial + rest[position]) * (1 + error) >= needed
        found, partial = found[keep], partial[keep]
        if position < len(order) and rest[position] > 0:
            term = terms[order[position]]
            partial = partial + _looked_up(postings, term, found) * np.float32(repeats[order[position]])
            needed = max(needed, _kth(partial, k) * (1 - error))
    scores = np.zeros(len(found), dtype=np.float32)
    if len(found):
        by_term = [_looked_up(postings, term, found) for term in terms]
        for word in words:
            scores += by_term[word]
    _keep_best(best, query, found + postings.first_row, scores)


def _looked_up(postings: Postings, term: int, found: np.ndarray) -> np.ndarray:
    """The scores of a word in some documents, zero where it is not."""
    documents = postings.documents[postings.begins[term] : postings.ends[term]]
    if not len(documents):
        return np.zeros(len(found), dtype=np.float32)
    place = np.minimum(np.searchsorted(documents, found), len(documents) - 1)
    scores = postings.scores[postings.begins[term] + place]
    return np.where(documents[place] == found, scores, np.float32(0))


def _kth(values: np.ndarray, k: int) -> float:
    """The k-th highest value, 0 if there are fewer."""
    return float(np.partition(values, len(values) - k)[len(values) - k]) if len(values) >= k else 0.0


def _keep_best(best: Best, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
    size, k = int(best.sizes[query]), best.rows.shape[1]
    rows = np.concatenate([best.rows[query, :size], rows])
    scores = np.concatenate([best.scores[query, :size], scores])
    if len(rows) > k:
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[scores >= limit], scores[scores >= limit]
    order = np.lexsort((rows, -scores))[:k]
    best.rows[query, : len(order)], best.scores[query, : len(order)] = rows[order], scores[order]
    best.sizes[query] = len(order)
