# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The index of a data set: what every sample is, found by opening each once before anything is trained."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..files import replacing
from .decoding import MediaInfo, probe, probe_image
from .readers import Source
from .schema import BadSample


SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("is_image", pa.bool_()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
        ("duration", pa.float64()),
        ("tasks", pa.list_(pa.string())),
        ("default_task", pa.string()),
        ("num_references", pa.int32()),
        ("num_context", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class SampleInfo:
    """
    One sample of the index.

    Args:
        key (`str`): Its name in reports.
        media (`MediaInfo`, *optional*): Size, rate and length of its video; `None` if it cannot be used.
        tasks (`tuple[str]`, *optional*): The tasks that it allows.
        default_task (`str`, *optional*): Its task where no task weights are given.
        num_references (`int`, *optional*): Reference images.
        num_context (`int`, *optional*): Retrieved pairs.
        bad (`BadSample`, *optional*): Why it cannot be used.
    """

    key: str
    media: MediaInfo | None = None
    tasks: tuple[str, ...] = ()
    default_task: str = ""
    num_references: int = 0
    num_context: int = 0
    bad: BadSample | None = None


def examine(source: Source, number: int) -> SampleInfo:
    """Opens one sample: record, header and first frame of its video, headers of its images."""
    key = source.key(number)
    try:
        record = source.record(number)
        media = probe(record.video, record.fps)
        for item in (*record.references, *record.context):
            probe_image(item.image)
        return SampleInfo(
            key,
            media,
            record.tasks(media.is_image),
            record.default_task,
            len(record.references),
            len(record.context),
        )
    except BadSample as bad:
        return SampleInfo(key, bad=BadSample(bad.reason, bad.detail, key))


def examine_all(source: Source, numbers: Sequence[int], workers: int = 4, show: bool = False) -> list[SampleInfo]:
    """
    Opens many samples in threads; decoding leaves Python's lock free.

    Args:
        source (`Source`): The data set.
        numbers (`Sequence[int]`): Which samples.
        workers (`int`, *optional*, defaults to `4`): Threads.
        show (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        infos = pool.map(lambda number: examine(source, number), numbers)
        return list(tqdm(infos, "Opening samples", len(numbers), disable=not show, mininterval=2.0))


def save_index(path: Path, infos: Iterable[SampleInfo], identity: str, num_held_out: int = 0) -> None:
    """
    Writes an index as a parquet file, whole or not at all.

    Args:
        path (`Path`): The file.
        infos (`Iterable[SampleInfo]`): The samples, in order.
        identity (`str`): Of what data set.
        num_held_out (`int`, *optional*, defaults to `0`): How many samples the run wants held out.
    """
    rows = [
        {
            "key": info.key,
            **({} if info.media is None else vars(info.media)),
            "tasks": list(info.tasks),
            "default_task": info.default_task,
            "num_references": info.num_references,
            "num_context": info.num_context,
            "reason": info.bad and info.bad.reason,
            "detail": info.bad and info.bad.detail,
        }
        for info in infos
    ]
    os.makedirs(path.parent, exist_ok=True)
    with replacing(path) as temporary:
        metadata = {"identity": identity, "num_held_out": str(num_held_out)}
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata)), temporary)


def load_index(path: Path, identity: str) -> tuple[list[SampleInfo], int] | None:
    """Samples and `num_held_out` of a saved index; `None` if there is none, or it is of another data set."""
    if not path.is_file():
        return None
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if metadata.get(b"identity") != identity.encode() or table.column_names != SCHEMA.names:
        return None
    infos = []
    for row in table.to_pylist():
        sizes = [row[name] for name in ("is_image", "height", "width", "fps", "duration")]
        bad = BadSample(row["reason"], row["detail"], row["key"]) if row["reason"] else None
        media = None if bad else MediaInfo(*sizes)
        counts = row["default_task"], row["num_references"], row["num_context"]
        infos.append(SampleInfo(row["key"], media, tuple(row["tasks"]), *counts, bad))
    return infos, int(metadata[b"num_held_out"])
