from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vimi_diffusers.data.order import BatchOrder


SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any)


def take(count, *arguments, **options):
    return list(islice(BatchOrder(*arguments, **options), count))


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 5), seed=st.integers(0, 2**31), start=st.integers(0, 200))
def test_any_step_can_be_gone_to(sizes, batch_size, seed, start):
    whole = take(start + 5, sizes, batch_size, seed)
    assert take(5, sizes, batch_size, seed, start_step=start) == whole[start:]


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 4), world_size=st.integers(1, 4), seed=st.integers(0, 99))
def test_processes_share_each_epoch_out(sizes, batch_size, world_size, seed):
    ranks = [take(60, sizes, batch_size, seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    streams = {}
    for batches in zip(*ranks):
        draws = [draw for batch in batches for draw in batch]
        assert len({draw.bucket for draw in draws}) == 1  # of all processes
        streams.setdefault(draws[0].bucket, []).extend(draws)
    assert all(sizes[bucket] for bucket in streams)
    for bucket, draws in streams.items():
        assert [draw.position for draw in draws] == list(range(len(draws)))
        for start in range(0, len(draws) - sizes[bucket] + 1, sizes[bucket]):
            epoch = [draw.member for draw in draws[start : start + sizes[bucket]]]
            assert sorted(epoch) == list(range(sizes[bucket]))
    # the same global batch gives the same samples for any number of processes
    alone = take(60, sizes, batch_size * world_size, seed)
    assert alone == [[draw for batch in batches for draw in batch] for batches in zip(*ranks)]


def test_buckets_get_steps_in_proportion_evenly_spread():
    order = BatchOrder([700, 0, 250, 50], 4, seed=3)
    buckets = order.buckets(0, 10_000)
    counts = Counter(buckets.tolist())
    assert set(counts) == {0, 2, 3}
    for bucket, share in ((0, 0.7), (2, 0.25), (3, 0.05)):
        assert counts[bucket] / 10_000 == pytest.approx(share, abs=0.002)
    gaps = np.diff(np.flatnonzero(buckets == 3))
    assert gaps.max() <= 3 * 20
    assert not np.array_equal(buckets[:200], BatchOrder([700, 0, 250, 50], 4, seed=4).buckets(0, 200))


def test_epochs_and_seeds_differ():
    order = BatchOrder([50], 1, seed=0)
    first, second = order.permutation(0, 0).tolist(), order.permutation(0, 1).tolist()
    assert first != second and first != BatchOrder([50], 1, seed=1).permutation(0, 0).tolist()
    assert order.permutation(0, 0).tolist() == first


def test_no_samples():
    with pytest.raises(ValueError, match="No bucket"):
        BatchOrder([0, 0], 1)
