# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which samples each step sees: a function of seed, step, rank and number of processes alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its multiples fill the circle evenly
_CHUNK = 1 << 20


class Draw(NamedTuple):
    """
    One sample of a batch.

    Args:
        bucket (`int`): Number of the bucket.
        member (`int`): Which of the bucket's samples.
        position (`int`): Where the draw stands in the bucket's endless stream; the seed of all that is random in it.
    """

    bucket: int
    member: int
    position: int


class BatchOrder(Sampler[list[Draw]]):
    """
    The batches of one process, from a step on.

    Each step has one bucket, the same on all processes; over time each gets steps in proportion to its samples. A
    bucket is an endless stream of epochs, each a new permutation of all its samples, cut into global batches, so that
    each sample is seen exactly once in an epoch, by one process.

    Args:
        sizes (`Sequence[int]`): Number of samples of each bucket.
        batch_size (`int`): Samples of each process and step.
        seed (`int`, *optional*, defaults to `0`): Seed.
        start_step (`int`, *optional*, defaults to `0`): First step.
        rank (`int`, *optional*, defaults to `0`): This process.
        world_size (`int`, *optional*, defaults to `1`): Number of processes.

    Raises:
        ValueError: If no bucket holds a sample.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not sum(sizes):
            raise ValueError("No bucket holds a sample.")
        self.sizes, self.batch_size, self.seed = list(sizes), batch_size, seed
        self.start_step, self.rank, self.world_size = start_step, rank, world_size
        self.offset = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self.filled = np.array([number for number, size in enumerate(self.sizes) if size])
        ends = np.cumsum([self.sizes[number] for number in self.filled])
        self.ends = np.array([(int(end) << 64) // int(ends[-1]) - 1 for end in ends], dtype=np.uint64)
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def buckets(self, start: int, stop: int) -> np.ndarray:
        """The buckets of the steps in `range(start, stop)`."""
        steps = np.arange(start, stop, dtype=np.uint64)
        points = steps * np.uint64(_GOLDEN) + np.uint64(self.offset)  # modulo 2**64
        return self.filled[np.searchsorted(self.ends, points)]

    def permutation(self, bucket: int, epoch: int) -> np.ndarray:
        """The order of a bucket's samples in an epoch."""
        if self._permutations.get(bucket, (None,))[0] != epoch:
            order = np.random.default_rng([self.seed, bucket, epoch]).permutation(self.sizes[bucket])
            self._permutations[bucket] = epoch, order
        return self._permutations[bucket][1]

    def __iter__(self) -> Iterator[list[Draw]]:
        counts = np.zeros(len(self.sizes), dtype=np.int64)  # of earlier steps
        for start in range(0, self.start_step, _CHUNK):
            counts += np.bincount(self.buckets(start, min(start + _CHUNK, self.start_step)), minlength=len(counts))
        step = self.start_step
        while True:
            bucket = int(self.buckets(step, step + 1)[0])
            first = (int(counts[bucket]) * self.world_size + self.rank) * self.batch_size
            yield [self.draw(bucket, first + number) for number in range(self.batch_size)]
            counts[bucket] += 1
            step += 1

    def draw(self, bucket: int, position: int) -> Draw:
        """The draw at a position of a bucket's stream."""
        epoch, place = divmod(position, self.sizes[bucket])
        return Draw(bucket, int(self.permutation(bucket, epoch)[place]), position)
