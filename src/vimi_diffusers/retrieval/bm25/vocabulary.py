# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The numbers of an index's words, found without holding the words as Python objects."""

from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

import numpy as np


class Vocabulary:
    """
    Words, numbered in the order in which they are given.

    A word is found by bisection in a sorted array of hashes, so that millions of words can stay in memory-mapped
    files: a `dict` of them would take about 200 bytes a word in each process that searches.

    Args:
        arrays (`Mapping[str, np.ndarray]`):
            `"letters"`: all words in UTF-8, one behind the other, `uint8`; `"ends"`: where each ends, `int64`;
            `"hashes"`: CRC-32 of the words, sorted, `uint32`; `"numbers"`: the words of these hashes, `int32`.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self._letters = memoryview(arrays["letters"])
        self._ends, self._hashes, self._numbers = (arrays[name] for name in ("ends", "hashes", "numbers"))

    @classmethod
    def from_words(cls, words: Iterable[str]) -> "Vocabulary":
        """Number different words from 0."""
        encoded = [_encode(word) for word in words]
        hashes = np.fromiter(map(crc32, encoded), np.uint32, len(encoded))
        order = np.argsort(hashes, kind="stable")
        return cls(
            {
                "letters": np.frombuffer(b"".join(encoded), np.uint8),
                "ends": np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded))),
                "hashes": hashes[order],
                "numbers": order.astype(np.int32),
            }
        )

    def __reduce__(self) -> tuple:
        return Vocabulary, (self.arrays,)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield bytes(self._letters[start:end]).decode("utf-8", "surrogatepass")
            start = end

    def numbers(self, words: Sequence[str]) -> np.ndarray:
        """The number of each word, `int64[len(words)]`; -1 for unknown words."""
        encoded = [_encode(word) for word in words]
        hashes = np.fromiter(map(crc32, encoded), np.uint32, len(encoded))
        # Different words may share a hash: all words of a hash are compared.
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        found = np.full(len(encoded), -1, dtype=np.int64)
        for place in np.flatnonzero(first < last).tolist():
            for number in self._numbers[first[place] : last[place]].tolist():
                if self._letters[self._ends[number - 1] if number else 0 : self._ends[number]] == encoded[place]:
                    found[place] = number
        return found


def _encode(word: str) -> bytes:
    if not isinstance(word, str):
        raise ValueError(f"{word!r} is no word: a document or query is a sequence of strings, as `tokenize` gives it.")
    return word.encode("utf-8", "surrogatepass")  # half a surrogate pair is in no UTF-8, but may be in a caption
