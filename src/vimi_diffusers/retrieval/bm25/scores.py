# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From tokenised documents to the postings of shards: counts in one streaming pass, scores from the counts."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from bm25s.scoring import _score_idf_lucene, _score_tfc_atire


# A shard of captions is bounded by its documents, one of long texts by its words: counting takes 20 bytes for each.
_MOST_WORDS = 1 << 26
_FREQUENT = 128  # a word in every 128th document gets bits, which then take half the room of its postings
_POSTINGS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Counts:
    """
    How often each word stands in each of the documents of one shard: a sparse matrix by word, as bm25s has it.

    Attributes:
        terms (`int32[terms]`): Numbers of the shard's words, ascending.
        starts (`int64[terms + 1]`): Where each word's postings start; the last value is the number of postings.
        documents (`int32[postings]`): The documents of each word, ascending, counted from the shard's first.
        counts (`uint8[postings]`, or wider where needed): How often the word stands in the document.
        lengths (`int32[documents]`): Words of each document.
        frequent (`int32[frequent]`): Numbers of the words that stand in many documents, ascending.
        bits (`uint8[frequent, documents / 8]`): In which; document d is bit `d % 8` of byte `d // 8`.
    """

    terms: np.ndarray
    starts: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    frequent: np.ndarray
    bits: np.ndarray


def new_numbers(words: Iterable[str] = ()) -> defaultdict[str, int]:
    """A dictionary that numbers a word when it is first asked for; the given words come first."""
    numbers = defaultdict()
    numbers.update((word, number) for number, word in enumerate(words))
    numbers.default_factory = numbers.__len__
    return numbers


def count(documents: Iterable[Sequence[str]], numbers: defaultdict[str, int], shard_size: int) -> Iterator[Counts]:
    """
    Count documents shard by shard, so that no more than two shards of them are in memory.

    Args:
        documents (`Iterable[Sequence[str]]`): The words of each document.
        numbers (`defaultdict[str, int]`): From [`new_numbers`]; it gets the words that are new.
        shard_size (`int`): Most documents of a shard.
    """
    numbered, lengths = array("i"), array("i")
    waiting = None
    with ThreadPoolExecutor(1) as thread:  # sorts a shard while the next one is read
        for words in documents:
            if isinstance(words, str):
                raise ValueError(f"Document {words[:80]!r} is a string: give its words, as `tokenize` finds them.")
            before = len(numbered)
            numbered.extend(map(numbers.__getitem__, words))
            lengths.append(len(numbered) - before)
            if len(lengths) == shard_size or len(numbered) >= _MOST_WORDS:
                if waiting:
                    yield waiting.result()
                waiting = thread.submit(_counts, numbered, lengths)
                numbered, lengths = array("i"), array("i")
        if waiting:
            yield waiting.result()
    if lengths:
        yield _counts(numbered, lengths)


def _counts(numbered: array, lengths: array) -> Counts:
    lengths = np.frombuffer(lengths, np.int32)
    keys = np.frombuffer(numbered, np.int32).astype(np.int64) << 32
    keys |= np.repeat(np.arange(len(lengths)), lengths)
    keys.sort()  # by word, then by document
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(first, append=len(keys))
    keys = keys[first]
    documents = keys.astype(np.int32)  # the lower half
    keys >>= 32
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    terms = keys[starts].astype(np.int32)
    starts = np.append(starts, len(keys))
    frequent = np.flatnonzero(np.diff(starts) >= max(len(lengths) / _FREQUENT, 2))
    bits = np.zeros((len(frequent), -(-len(lengths) // 8)), dtype=np.uint8)
    for row, place in enumerate(frequent):
        there = np.zeros(len(lengths), dtype=bool)
        there[documents[starts[place] : starts[place + 1]]] = True
        bits[row] = np.packbits(there, bitorder="little")
    return Counts(
        terms=terms,
        starts=starts,
        documents=documents,
        counts=counts.astype(np.min_scalar_type(counts.max(initial=0))),
        lengths=lengths,
        frequent=terms[frequent],
        bits=bits,
    )


def inverse_document_frequencies(shards: Iterable[Counts], num_terms: int, num_documents: int) -> np.ndarray:
    """The idf of each word over all shards, `float32[num_terms]`."""
    frequencies = np.zeros(num_terms, dtype=np.int64)
    for shard in shards:
        frequencies[shard.terms] += np.diff(shard.starts)
    different, position = np.unique(frequencies, return_inverse=True)
    idf = [_score_idf_lucene(frequency, num_documents) for frequency in different.tolist()]
    return np.array(idf, dtype=np.float32)[position]


def score(shard: Counts, idf: np.ndarray, average_length: float, k1: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """
    BM25 scores of a shard's postings, bit for bit those that bm25s computes for all documents in one index.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the score of each posting and the highest score of each word, `float32`.
    """
    scores = np.empty(len(shard.documents), dtype=np.float32)
    idf = np.repeat(idf[shard.terms], np.diff(shard.starts))
    for start in range(0, len(scores), _POSTINGS_AT_ONCE):
        part = slice(start, start + _POSTINGS_AT_ONCE)
        saturated = _score_tfc_atire(
            tf_array=shard.counts[part].astype(np.float32),
            l_d=shard.lengths[shard.documents[part]].astype(np.float64),
            l_avg=average_length,
            k1=k1,
            b=b,
        )
        scores[part] = idf[part] * saturated
    return scores, np.maximum.reduceat(scores, shard.starts[:-1]) if len(scores) else scores
