# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Tables of hashes that grow by batches: rows of equal keys, and of 64-bit hashes within a Hamming distance."""

from itertools import combinations

import numpy as np


MAX_RADIUS = 7  # one half then differs in up to 3 bits: 5489 keys to look up in each table
_QUERIES = 256  # looked up at once: their flipped halves take some 10 MB at the greatest radius


class KeyTable:
    """
    Which rows have a key. Sorted runs that merge as they grow: adding n keys sorts O(n log n) in all, and a row takes
    its key and 8 bytes of memory.
    """

    def __init__(self):
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Adds `keys` (unsigned integers, `(N,)`) with the `rows` (int64, `(N,)`) that have them."""
        if not len(keys):
            return
        self._runs.append(_sorted_run(keys, rows))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            (keys_a, rows_a), (keys_b, rows_b) = self._runs.pop(-2), self._runs.pop()
            self._runs.append(_sorted_run(np.concatenate([keys_a, keys_b]), np.concatenate([rows_a, rows_b])))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        All rows of some keys.

        Args:
            keys (`np.ndarray` of shape `(Q,)`): What to look up.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: position in `keys` and row of each match, int64.
        """
        positions, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for run_keys, run_rows in self._runs:
            left = np.searchsorted(run_keys, keys, "left")
            right = np.searchsorted(run_keys, keys, "right")
            hits = np.flatnonzero(right > left)
            counts = (right - left)[hits]
            first = np.repeat(left[hits] - (np.cumsum(counts) - counts), counts)
            positions.append(np.repeat(hits, counts))
            rows.append(run_rows[first + np.arange(counts.sum())])
        return np.concatenate(positions), np.concatenate(rows)


def _sorted_run(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], rows[order]


class GrowingArray:
    """An array that rows are appended to; it doubles its room when that is used up."""

    def __init__(self, dtype: np.typing.DTypeLike, shape: tuple[int, ...] = ()):
        self._room = np.empty((1024, *shape), dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, values: np.ndarray) -> None:
        """Appends rows."""
        end = self._length + len(values)
        if end > len(self._room):
            room = np.empty((max(end, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            room[: self._length] = self.values
            self._room = room
        self._room[self._length : end] = values
        self._length = end

    @property
    def values(self) -> np.ndarray:
        """`np.ndarray`: The rows so far; a view."""
        return self._room[: self._length]


class NearHashTable:
    """
    64-bit hashes and their neighbours within a Hamming distance, exactly and without comparing all pairs: of two
    hashes within the radius one half differs in at most `radius // 2` bits, so the 32-bit halves are looked up with
    every such set of bits flipped. A hash takes about 40 bytes of memory.

    Args:
        radius (`int`): Greatest distance, 0 to 7.

    Raises:
        `ValueError`: if the radius is another.
    """

    def __init__(self, radius: int):
        if not 0 <= radius <= MAX_RADIUS:
            raise ValueError(f"Hashes are compared within 0 to {MAX_RADIUS} bits, not {radius}.")
        self.radius = radius
        counts = range(radius // 2 + 1)
        flips = [sum(1 << bit for bit in bits) for count in counts for bits in combinations(range(32), count)]
        self._flips = np.array(flips, dtype=np.uint32)
        self._halves = KeyTable(), KeyTable()
        self._hashes = GrowingArray(np.uint64)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, hashes: np.ndarray) -> None:
        """Adds `hashes` (uint64, `(N,)`); the first ever is number 0."""
        numbers = np.arange(len(self), len(self) + len(hashes))
        for table, half in zip(self._halves, _halves(hashes)):
            table.add(half, numbers)
        self._hashes.append(hashes)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        All neighbours of some hashes.

        Args:
            hashes (`np.ndarray` of shape `(Q,)`): uint64.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: position in `hashes` and number of each neighbour, int64, in that order.
        """
        pairs = []
        for start in range(0, len(hashes), _QUERIES):
            block = hashes[start : start + _QUERIES]
            for table, half in zip(self._halves, _halves(block)):
                probes, numbers = table.find((half[:, None] ^ self._flips).reshape(-1))
                positions = probes // len(self._flips)
                near = _distances(block[positions], self._hashes.values[numbers]) <= self.radius
                pairs.append(np.stack([start + positions[near], numbers[near]]))
        if not pairs:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        positions, numbers = np.unique(np.concatenate(pairs, axis=1), axis=1)
        return positions, numbers


def _halves(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (hashes >> np.uint64(32)).astype(np.uint32), hashes.astype(np.uint32)


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number of bits in which two arrays of 64-bit hashes differ."""
    different = np.ascontiguousarray(left ^ right)
    return np.unpackbits(different.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
