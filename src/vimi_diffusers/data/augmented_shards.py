# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Samples of the training schema written to shards that the readers read: parquet, or tar of webdataset."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import replacing
from .schema import BadSample, Media, TarMember, VideoRecord


FORMATS = ("parquet", "webdataset")
_GROUP_ROWS, _GROUP_BYTES = 100, 64 << 20  # of a row group, which is read as one
_EXTENSIONS = {b"\x1aE\xdf\xa3": "mkv", b"GIF8": "gif", b"RIFF": "avi", b"ftyp": "mp4"}  # what a video begins with


@dataclass(frozen=True)
class ContextImage:
    """
    A retrieved pair as it is written.

    Args:
        id (`str`): Its name in the memory.
        text (`str`): Its text.
        image (`bytes`): Its encoded image.
        score (`float`): How well it matched.
    """

    id: str
    text: str
    image: bytes
    score: float


@dataclass(frozen=True)
class AugmentedSample:
    """
    A sample with its retrieved pairs.

    Args:
        number (`int`): Its place in the source.
        record ([`VideoRecord`]): The sample; its own context is not written.
        context (`Sequence[ContextImage]`): The pairs, best first.
        extra (`dict[str, str | None]`): Where it comes from, by column.
    """

    number: int
    record: VideoRecord
    context: Sequence[ContextImage]
    extra: dict[str, str | None]


def shard_path(folder: Path, form: str, number: int, total: int) -> Path:
    """Where a shard lies: as the Hub names the shards of a split, or numbered tars."""
    if form == "parquet":
        return folder / "data" / f"train-{number:05d}-of-{total:05d}.parquet"
    return folder / f"{number:05d}.tar"


def encode_sample(sample: AugmentedSample, form: str, embed: bool) -> dict[str, Any]:
    """
    What a shard holds of a sample: a row of a parquet file, or a tar's files by name.

    Args:
        sample ([`AugmentedSample`]): The sample.
        form (`str`): One of [`FORMATS`].
        embed (`bool`):
            Whether parquet carries the videos too. Otherwise those that are files stay where they are and are named
            by their absolute path; tar shards always carry them.

    Raises:
        BadSample: If a file of the sample cannot be read.
    """
    return _parquet_row(sample, embed) if form == "parquet" else _members(sample)


def write_shard(path: Path, form: str, samples: Iterable[dict[str, Any]], extra: Sequence[str]) -> None:
    """
    Write a shard, whole or not at all. The same samples give the same bytes.

    Args:
        path (`Path`): The file.
        form (`str`): One of [`FORMATS`].
        samples (`Iterable[dict]`): Its samples, from [`encode_sample`].
        extra (`Sequence[str]`): Names of the columns beside the schema.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        if form == "parquet":
            _write_parquet(part, samples, extra)
        else:
            _write_tar(part, samples)


def read_media(media: Media) -> bytes:
    """
    The encoded bytes of a video or image.

    Raises:
        BadSample: If they cannot be read.
    """
    try:
        if isinstance(media, bytes):
            return media
        return media.read() if isinstance(media, TarMember) else media.read_bytes()
    except OSError as error:
        raise BadSample("missing_file", f"cannot read {media}: {error}.") from None


def _fields(sample: AugmentedSample) -> dict[str, Any]:
    record = sample.record
    return {"caption": record.caption, "fps": record.fps, "task": record.task, "instruction": record.instruction}


# ------------------------------------------------------------------ parquet
def _write_parquet(path: Path, samples: Iterable[dict[str, Any]], extra: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(extra)
    rows: list[dict] = []
    size = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in samples:
            rows.append(row)
            size += sum(len(file["bytes"] or b"") for file in _files(row))
            if len(rows) == _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schema(extra: Sequence[str]) -> Any:
    try:
        from datasets import Features, Image, List, Value, Video
    except ImportError as error:
        raise ImportError('Data sets need datasets: pip install "vimi_diffusers[train]".') from error
    texts = {name: Value("string") for name in ("caption", "task", "instruction", "key")}
    features = {
        "video": Video(),
        **texts,
        "fps": Value("float64"),
        "references": List({"image": Image(), "name": Value("string")}),
        "context": List({"image": Image(), "text": Value("string"), "id": Value("string"), "score": Value("float32")}),
        **{name: Value("string") for name in extra},
    }
    return Features(features).arrow_schema


def _parquet_row(sample: AugmentedSample, embed: bool) -> dict[str, Any]:
    record = sample.record
    if isinstance(record.video, Path) and not embed:
        video = {"bytes": None, "path": str(record.video.resolve())}
    else:
        video = {"bytes": read_media(record.video), "path": None}
    references = [
        {"image": {"bytes": read_media(one.image), "path": None}, "name": one.name} for one in record.references
    ]
    context = [
        {"image": {"bytes": pair.image, "path": None}, "text": pair.text, "id": pair.id, "score": pair.score}
        for pair in sample.context
    ]
    return {
        **sample.extra,
        **_fields(sample),
        "video": video,
        "references": references,
        "context": context,
        "key": record.key,
    }


def _files(row: dict[str, Any]) -> list[dict]:
    return [row["video"], *(one["image"] for one in (*row["references"], *row["context"]))]


# ------------------------------------------------------------------ webdataset
def _write_tar(path: Path, samples: Iterable[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            for name, data in sample.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))


def _members(sample: AugmentedSample) -> dict[str, bytes]:
    """The files of a sample by name."""
    record = sample.record
    files: dict[str, bytes] = {}

    def add(name: str, media: Media) -> str:
        data = read_media(media)
        name += _extension(data, media)
        files[f"{sample.number:09d}.{name}"] = data
        return name

    values = {
        **sample.extra,
        **_fields(sample),
        "video": add("", record.video),
        "references": [
            {"image": add(f"reference{number}.", one.image), "name": one.name}
            for number, one in enumerate(record.references)
        ],
        "context": [
            {"image": add(f"context{number}.", pair.image), "text": pair.text, "id": pair.id, "score": pair.score}
            for number, pair in enumerate(sample.context)
        ],
        "key": record.key,
    }
    known = {name: value for name, value in values.items() if value not in (None, [])}
    return {f"{sample.number:09d}.json": json.dumps(known, ensure_ascii=False).encode(), **files}


def _extension(data: bytes, media: Media) -> str:
    """By the file's name, else by what it begins with."""
    name = media.name if isinstance(media, (Path, TarMember)) else ""
    if suffix := Path(name).suffix:
        return suffix[1:].lower()
    for start in (data[:4], data[4:8]):
        if start in _EXTENSIONS and b"WEBP" not in data[8:12]:
            return _EXTENSIONS[start]
    try:
        with Image.open(io.BytesIO(data)) as image:
            return {"JPEG": "jpg"}.get(image.format, image.format.lower())
    except OSError:
        return "mp4"
