# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pairs in parquet shards: written as a stream, read by row group. What a shard holds depends on no recipe."""

import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


CAPTION_COLUMNS = ("id", "text", "kind", "metadata")
# The Hub's viewer and `datasets` read the types of columns from here, so that the image is an image there.
_FEATURES = {name: {"dtype": "string", "_type": "Value"} for name in CAPTION_COLUMNS} | {"image": {"_type": "Image"}}
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
# One image is read with its row group: these bound what else is read.
_GROUP_PAIRS, _GROUP_BYTES = 100, 4 << 20
_SHARD_PAIRS, _SHARD_BYTES = 100_000, 512 << 20
_OPEN_SHARDS, _CAPTION_GROUPS, _IMAGE_GROUPS = 64, 256, 16


@dataclass(frozen=True)
class Shard:
    """
    A parquet file of pairs.

    Attributes:
        path (`str`): Below the memory's folder.
        bytes (`int`): Its size.
        sha256 (`str`): Hash of its content.
        pairs (`int`): How many it holds.
    """

    path: str
    bytes: int
    sha256: str
    pairs: int


class PairWriter:
    """
    Writes pairs into numbered shards of a folder; memory holds one row group at a time.

    Args:
        folder (`Path`):
            Where the shards go, as `.new-00000.parquet` and so on: how many there are is known in the end.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.num_pairs = 0
        self.shards: list[Shard] = []  # those that are closed
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[tuple] = []
        self._group_bytes = self._shard_pairs = self._shard_bytes = 0

    def __enter__(self) -> "PairWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        """Write what is left and close the last shard."""
        if self._rows:
            self._write_group()
        if self._writer is not None:
            self._close_shard()

    def write(self, id: str, text: str, kind: str | None, metadata: Mapping[str, Any], image: bytes) -> bool:
        """Append one pair; its image is given as encoded bytes. Whether a shard was closed with it."""
        values = json.dumps(metadata, ensure_ascii=False, default=str)
        # encoded here, where an error still belongs to a row
        captions = [None if value is None else value.encode("utf-8") for value in (id, text, kind, values)]
        self._rows.append((*captions, image))
        self.num_pairs += 1
        self._group_bytes += len(image)
        if len(self._rows) >= _GROUP_PAIRS or self._group_bytes >= _GROUP_BYTES:
            self._write_group()
            if self._shard_pairs >= _SHARD_PAIRS or self._shard_bytes >= _SHARD_BYTES:
                self._close_shard()
                return True
        return False

    def _path(self) -> Path:
        return self.folder / f".new-{len(self.shards):05d}.parquet"

    def _write_group(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path(),
                SCHEMA,
                compression=dict.fromkeys(CAPTION_COLUMNS, "zstd") | {"image.bytes": "none", "image.path": "none"},
                use_dictionary=["kind"],
                write_statistics=False,
                write_page_checksum=True,  # damage is found when it is read, without reading all beforehand
            )
        *captions, images = zip(*self._rows)
        files = pa.array(images, pa.binary())
        columns = [pa.array(values, pa.string()) for values in captions]
        columns.append(pa.StructArray.from_arrays([files, pa.nulls(len(files), pa.string())], ["bytes", "path"]))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA), row_group_size=len(files))
        self._shard_pairs += len(self._rows)
        self._shard_bytes += self._group_bytes
        self._rows, self._group_bytes = [], 0

    def _close_shard(self) -> None:
        self._writer.close()
        path = self._path()
        self.shards.append(Shard(path.name, path.stat().st_size, sha256_of(path), self._shard_pairs))
        self._writer = None
        self._shard_pairs = self._shard_bytes = 0


class PairReader:
    """
    Reads pairs of shards by row. A shard's footer is read when one of its pairs is first asked for; of what was read,
    the last row groups are kept.

    Args:
        shards (`Sequence[Shard]`): In the order of their rows.
        open_file (`Callable[[Shard], BinaryIO]`): Opens a shard for reading, or raises an error that names it.
    """

    def __init__(self, shards: Sequence[Shard], open_file: Callable[[Shard], "BinaryIO | pa.NativeFile"]):
        self.shards = tuple(shards)
        self._open_file = open_file
        self._starts = [*accumulate((shard.pairs for shard in shards), initial=0)]
        self._lock = threading.RLock()  # a parquet file serves one thread at a time
        self._shard = lru_cache(_OPEN_SHARDS)(self._open_shard)
        self._captions = lru_cache(_CAPTION_GROUPS)(lambda shard, group: self._read(shard, group, CAPTION_COLUMNS))
        self._images = lru_cache(_IMAGE_GROUPS)(lambda shard, group: self._read(shard, group, ("image.bytes",)))

    def __len__(self) -> int:
        return self._starts[-1]

    def caption(self, row: int) -> dict[str, str | None]:
        """`id`, `text`, `kind` and `metadata` (JSON) of a row."""
        shard, group, offset = self._place(row)
        group = self._captions(shard, group)
        return {name: group[name][offset].as_py() for name in CAPTION_COLUMNS}

    def value(self, row: int, name: str) -> str | None:
        """One of the texts that [`~PairReader.caption`] gives."""
        shard, group, offset = self._place(row)
        return self._captions(shard, group)[name][offset].as_py()

    def image(self, row: int) -> bytes:
        """The encoded image of a row."""
        shard, group, offset = self._place(row)
        return self._images(shard, group)["image"][offset]["bytes"].as_py()

    def scan(self, columns: Sequence[str], start: int = 0) -> Iterator[tuple]:
        """The values of the named columns of every row from `start` on; images are not read unless they are named."""
        for number, shard in enumerate(self.shards):
            if self._starts[number + 1] <= start:
                continue
            _, group_starts = self._shard(number)
            for group in range(len(group_starts) - 1):
                first = self._starts[number] + group_starts[group]
                if self._starts[number] + group_starts[group + 1] <= start:
                    continue
                values = self._read(number, group, columns)
                rows = zip(*(values[name].to_pylist() for name in columns))
                yield from islice(rows, max(start - first, 0), None)

    def _place(self, row: int) -> tuple[int, int, int]:
        shard = bisect_right(self._starts, row) - 1
        with self._lock:
            _, group_starts = self._shard(shard)
        row -= self._starts[shard]
        group = bisect_right(group_starts, row) - 1
        return shard, group, row - group_starts[group]

    def _open_shard(self, number: int) -> tuple[pq.ParquetFile, list[int]]:
        shard = self.shards[number]
        file = self._open_file(shard)
        with naming_shard(shard):
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            if sum(groups) != shard.pairs:
                raise ValueError(f"it has {sum(groups)} pairs where {shard.pairs} belong")
        return parquet, [*accumulate(groups, initial=0)]

    def _read(self, shard: int, group: int, columns: Sequence[str]) -> pa.RecordBatch:
        with self._lock:
            parquet, _ = self._shard(shard)
            with naming_shard(self.shards[shard]):
                table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
        return table.combine_chunks().to_batches()[0]


@contextmanager
def naming_shard(shard: Shard) -> Iterator[None]:
    """Turn whatever reading a broken shard raises into one error that names the shard."""
    try:
        yield
    except Exception as error:  # also what a network raises
        raise OSError(f"The shard {shard.path} cannot be read: {error}") from error


def sha256_of(file: Path) -> str:
    """Hash of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_local(folder: Path, shard: Shard, mmap: bool) -> pa.NativeFile:
    """
    Opens a shard in a folder.

    Raises:
        `ValueError`: if the file is missing or of another size than the shard.
    """
    path = folder / shard.path
    if not path.is_file():
        raise ValueError(f"The shard {path} is missing: copy it again.")
    if path.stat().st_size != shard.bytes:
        raise ValueError(f"The shard {path} has {path.stat().st_size} bytes instead of {shard.bytes}: copy it again.")
    return pa.memory_map(str(path)) if mmap else pa.OSFile(str(path))
