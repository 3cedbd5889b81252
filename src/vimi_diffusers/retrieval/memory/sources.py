# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where pairs come from: image folders, data sets of the `datasets` library, the Hub's too, parquet, tar shards."""

import glob
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .storage import is_memory


if TYPE_CHECKING:
    import datasets


METADATA = "metadata.jsonl"
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


class SourceRow(dict):
    """
    A pair as [`ImageTextMemory.create`] takes it, which knows where it comes from.

    Args:
        values (`Mapping[str, Any]`): `id`, `text`, `image`, and what else there is.
        where (`str`): Names the place in errors.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        super().__init__(values)
        self.where = where


def open_rows(
    source: str | Path,
    config_name: str | None = None,
    split: str = "train",
    image_column: str = "image",
    text_column: str = "text",
    id_column: str | None = None,
) -> Iterator[SourceRow]:
    """
    The pairs of a source of any kind, told by what lies there, as a stream for [`ImageTextMemory.create`].

    Args:
        source (`str` or `Path`):
            A folder of images with `metadata.jsonl`; the folder of a memory; a tar shard, a folder of them or a
            pattern; a parquet file, a folder of them, or one that `datasets` saved; else the name of a data set on
            the Hub.
        config_name (`str`, *optional*): Configuration of a data set with several.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set with several.
        image_column (`str`, *optional*, defaults to `"image"`): Column of a data set with the images.
        text_column (`str`, *optional*, defaults to `"text"`): Column of a data set, or field of a shard's json.
        id_column (`str`, *optional*): Column of a data set with unique ids. Defaults to the row number.

    Raises:
        `FileNotFoundError`: if there is nothing there.
        `ValueError`: if it is none of these, or a column is missing.
    """
    name, path = str(source), Path(source)
    if (path / METADATA).is_file():
        return folder_rows(path)
    if is_memory(path):
        return memory_rows(path)
    if name.endswith(".tar") or path.is_dir() and any(path.glob("*.tar")):
        shards = sorted(path.glob("*.tar")) if path.is_dir() else [Path(found) for found in sorted(glob.glob(name))]
        if not shards:
            raise FileNotFoundError(f"No shard matches {name}.")
        return tar_rows(shards, text_column)
    dataset = _open_dataset(name, path, config_name, split)
    return dataset_rows(dataset, image_column, text_column, id_column)


def folder_rows(folder: Path) -> Iterator[SourceRow]:
    """The pairs of a folder's metadata.jsonl. That every image is there is checked before the first is read."""
    for record, where in _read_metadata(folder):
        if not (folder / record["file_name"]).is_file():
            raise FileNotFoundError(f"{where}: image {record['file_name']} is missing: add it or remove the line.")
    return (
        SourceRow({"id": name, **record, "image": (folder / name).read_bytes()}, f"{where}: {name}")
        for record, where in _read_metadata(folder)
        for name in [record["file_name"]]
    )


def dataset_rows(
    dataset: "datasets.Dataset | datasets.IterableDataset",
    image_column: str = "image",
    text_column: str = "text",
    id_column: str | None = None,
) -> Iterator[SourceRow]:
    """The pairs of a data set, with their images as they are encoded in it."""
    import datasets

    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise ValueError(f"A memory needs one datasets.Dataset, not {type(dataset).__name__}: pick a split.")
    features = dataset.features or dict.fromkeys(dataset.column_names or ())
    for column in filter(None, (image_column, text_column, id_column)):
        if column not in features:
            raise ValueError(f"The data set has no column {column!r}: it has {', '.join(features)}.")
    if not isinstance(features[image_column], datasets.Image):
        raise ValueError(
            f"Column {image_column!r} is {features[image_column]}, not datasets.Image: cast it with "
            f"dataset.cast_column({image_column!r}, datasets.Image())."
        )
    encoded = dataset.cast_column(image_column, datasets.Image(decode=False))

    def rows() -> Iterator[SourceRow]:
        for number, record in enumerate(encoded):
            image, text = record.pop(image_column), record.pop(text_column)
            id = number if id_column is None else record.pop(id_column)
            yield SourceRow({**record, "id": str(id), "text": text, "image": image}, f"row {number}")

    return rows()


def memory_rows(folder: Path) -> Iterator[SourceRow]:
    """The pairs of a memory, for one with another recipe or as a part of a larger one."""
    from .memory import ImageTextMemory

    for pair in ImageTextMemory.load(folder):
        values = {"id": pair.id, "text": pair.text, "kind": pair.kind, "image": pair.encoded, **pair.metadata}
        yield SourceRow(values, f"{folder}, pair {pair.id!r}")


def tar_rows(shards: Iterable[Path], text_column: str = "text") -> Iterator[SourceRow]:
    """
    The pairs of webdataset shards: files that share a name up to its first dot are one pair, its text in `.txt` or in
    `.json`, whose other values become metadata. The id is the shard's name and the files'.
    """
    for shard in shards:
        for key, members in _samples(shard):
            where = f"{shard.name}/{key}"
            try:
                values = json.loads(members.get("json", b"{}"))
                text = members["txt"].decode("utf-8") if "txt" in members else values.pop(text_column, None)
                row = {**values, "text": text}
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{where}: its json or txt cannot be read ({error}).") from error
            image = next((members[name] for name in _IMAGES if name in members), None)
            if image is None:
                raise ValueError(f"{where} has no image: there are {', '.join(sorted(members))}.")
            yield SourceRow({"id": f"{shard.stem}/{key}", **row, "image": image}, where)


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, members = None, {}
    try:
        with tarfile.open(shard, "r|") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                own = f"{folder}/{stem}" if folder else stem
                if own != key and members:
                    yield key, members
                    members = {}
                key = own
                members[extension.lower()] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"The shard {shard} cannot be read ({error}): copy it again or leave it out.") from error
    if members:
        yield key, members


def _read_metadata(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    path = folder / METADATA
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {METADATA}: write one line for each image, "
            'such as {"file_name": "fox.png", "text": "A fox"}.'
        )
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON ({error}).") from error
            if not isinstance(record, dict) or not isinstance(record.get("file_name"), str) or "text" not in record:
                raise ValueError(f'{where} must be an object with "file_name" and "text".')
            yield record, where


def _open_dataset(
    name: str, path: Path, config_name: str | None, split: str
) -> "datasets.Dataset | datasets.IterableDataset":
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Data sets need `datasets`: pip install "vimi_diffusers[retrieval]".') from error

    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        loaded: Mapping | datasets.Dataset = datasets.load_from_disk(name)
        if not isinstance(loaded, Mapping):
            return loaded
        if split not in loaded:
            raise ValueError(f"{name} has no split {split!r}, it has {', '.join(loaded)}.")
        return loaded[split]
    if path.is_file() and path.suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=name, split="train", streaming=True)
    if path.exists() and not any(path.rglob("*.parquet")):
        raise ValueError(f"{name} holds no pairs: no {METADATA}, no tar shards, no parquet files.")
    if name.count("/") > 1 and not path.exists() or name.startswith((".", "/")) and not path.exists():
        raise FileNotFoundError(f"There is nothing at {name}.")  # the name of a data set has one slash at most
    return datasets.load_dataset(name, config_name, split=split, streaming=True)
