# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The operators of an augmentation as stages of Ray Data: one shard's index in each actor, one output shard a row."""

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from .augment import AugmentTask
from .augment_operators import ReadCaptions, WriteShard, search_operators


# Given, not inferred: a batch without a single candidate would have types of its own.
_TYPES = {
    "shard": pa.int64(),
    "captions": pa.list_(pa.large_string()),
    "rows": pa.list_(pa.list_(pa.list_(pa.int64()))),
    "ids": pa.list_(pa.list_(pa.list_(pa.string()))),
    "scores": pa.list_(pa.list_(pa.list_(pa.float32()))),
    "values": pa.large_string(),
}


class _Stage:
    """An operator on Ray's batches, which are tables of one row: the batch of one output shard."""

    def __init__(self, operator: Callable[[dict[str, Any]], dict[str, Any]]):
        self.operator = operator

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self.operator(row) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=pa.schema([(name, _TYPES[name]) for name in rows[0]]))


def run_on_ray(task: AugmentTask, shards: Sequence[int], address: str) -> Iterator[dict]:
    """
    Work on output shards on a Ray cluster: captions go through a chain of actors, each with one shard of the memory's
    index, which add their candidates, to actors that write.

    An actor that dies is started anew, wherever there is room, and does its row again; an output shard that it wrote
    by half does not exist. So what comes out is what one process writes.

    Args:
        task ([`AugmentTask`]): The augmentation. Its folders must be there on all machines of the cluster.
        shards (`Sequence[int]`): The output shards to write.
        address (`str`): Of the cluster; `"auto"` for the one that runs on this machine. If this process is connected
            to a cluster already, it stays so.

    Returns:
        `Iterator[dict]`: what is known of each shard, in the order in which they are finished.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('A cluster needs Ray: pip install "vimi_diffusers[ray]".') from error
    connected = ray.is_initialized()
    if not connected:
        _connect(address)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        stages = [ReadCaptions(task), *search_operators(task, by_shard=True, num_threads=1), WriteShard(task)]
        share = ray.cluster_resources().get("CPU", 1) / len(stages)
        workers = max(1, int(share))  # of each stage; with few cores they share one
        dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        for stage in stages:
            dataset = dataset.map_batches(
                type(type(stage).__name__, (_Stage,), {}),  # the name that Ray's logs and process lists show
                fn_constructor_args=(stage,),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=min(1.0, round(share, 3)),
            )  # by default Ray Data restarts actors that died, and their tasks, without limit
        for row in dataset.iter_rows():
            yield json.loads(row["values"])
    finally:
        if not connected:
            ray.shutdown()  # of this process's connection; the cluster goes on


def _connect(address: str) -> None:
    import ray

    host, _, port = address.rpartition(":")
    try:
        if host and "/" not in host:  # Ray itself would go on trying for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(
            f"There is no Ray cluster at {address!r} ({error}): start one with `ray start --head`."
        ) from error
