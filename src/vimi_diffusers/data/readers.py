# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Three layouts of data sets behind one interface with random access: folder, `datasets`, webdataset shards."""

import glob
import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .schema import BadSample, Media, TarMember, VideoRecord, parse_record


METADATA = "metadata.jsonl"
VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "m4v", "avi", "mpg", "mpeg", "gif")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")


class Source:
    """
    A data set: `len(source)` samples, each read on its own.

    Args:
        video_column (`str`): Field of the video.
        caption_column (`str`): Field of the caption.
    """

    kind = ""

    def __init__(self, video_column: str, caption_column: str):
        self.columns = video_column, caption_column
        self.problems: list[BadSample] = []  # of parts that hold no sample one could name

    def __len__(self) -> int:
        raise NotImplementedError

    def key(self, number: int) -> str:
        """Name of a sample in reports; the same wherever the data set lies."""
        raise NotImplementedError

    def row(self, number: int) -> Any:
        """
        Reads a sample as it stands in the data set, with whatever it has beside the schema.

        Raises:
            BadSample: If it cannot be read.
        """
        raise NotImplementedError

    def parse(self, row: Any, number: int) -> VideoRecord:
        """
        A sample's row in the schema.

        Raises:
            BadSample: If it does not keep to the schema.
        """
        return parse_record(row, self._resolve, self.key(number), *self.columns)

    def record(self, number: int) -> VideoRecord:
        """
        Reads a sample, without its pixels.

        Raises:
            BadSample: If it does not keep to the schema.
        """
        return self.parse(self.row(number), number)

    def identity(self) -> str:
        """A text that changes when the list of samples does."""
        raise NotImplementedError

    def _resolve(self, value: Any) -> Media:
        raise NotImplementedError


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise BadSample("missing_file", f"no file {path}.")
    return path


class FolderSource(Source):
    """
    A folder with a `metadata.jsonl`: one record a line, media as paths relative to the folder.

    Raises:
        FileNotFoundError: If there is no such file.
    """

    kind = "folder"

    def __init__(self, folder: str | Path, video_column: str = "video", caption_column: str = "caption"):
        super().__init__(video_column, caption_column)
        self.folder = Path(folder)
        if not (self.folder / METADATA).is_file():
            raise FileNotFoundError(f"{folder} has no {METADATA}: write one record a line.")
        data = (self.folder / METADATA).read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()
        self.lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]

    def __len__(self) -> int:
        return len(self.lines)

    def key(self, number: int) -> str:
        return f"{METADATA}:{self.lines[number][0]}"

    def row(self, number: int) -> Any:
        try:
            return json.loads(self.lines[number][1])
        except ValueError as error:
            raise BadSample("bad_record", f"not JSON: {error}", self.key(number)) from None

    def identity(self) -> str:
        return self.digest

    def _resolve(self, value: Any) -> Media:
        if not isinstance(value, str):
            raise BadSample("bad_record", f"a file must be given by its path, got {value!r}.")
        return _file(self.folder, value)


class DatasetsSource(Source):
    """
    A `datasets.Dataset` whose videos and images are `Video` and `Image` features or paths.

    Args:
        dataset (`datasets.Dataset`): The data set.
        folder (`Path`, *optional*): What relative paths in it are relative to.

    Raises:
        ValueError: If it lacks the columns.
    """

    kind = "datasets"

    def __init__(
        self,
        dataset: Any,
        video_column: str = "video",
        caption_column: str = "caption",
        folder: Path = Path(),
    ):
        super().__init__(video_column, caption_column)
        for name, argument in zip(self.columns, ("video_column", "caption_column")):
            if name not in dataset.column_names:
                raise ValueError(
                    f"The data set has no column {name!r}, it has {dataset.column_names}: set `{argument}`."
                )
        self.fingerprint, self.folder = dataset._fingerprint, folder
        self.dataset = dataset.with_format("arrow")  # nothing is decoded on access

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self, number: int) -> str:
        return f"row {number}"

    def row(self, number: int) -> Any:
        return self.dataset[number].to_pylist()[0]

    def identity(self) -> str:
        return self.fingerprint

    def _resolve(self, value: Any) -> Media:
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise BadSample("missing_file", f"neither bytes nor a path: {value!r}.")
        return _file(self.folder, value)


class ShardSource(Source):
    """
    Webdataset shards: uncompressed tar archives in which the files of a sample share a name up to its first dot. A
    sample has a video or image (`0001.mp4`), the rest of the record as `0001.json` or the caption as `0001.txt`, and
    the images that the record names by what follows the dot (`{"image": "dog.png"}` is `0001.dog.png`).

    The members' places are read once, so that any sample can be read alone.

    Args:
        shards (`list[Path]`): The archives, in order.

    Raises:
        ImportError: If `webdataset` is not installed.
    """

    kind = "webdataset"

    def __init__(self, shards: list[Path], video_column: str = "video", caption_column: str = "caption"):
        super().__init__(video_column, caption_column)
        self.shards = shards
        self.samples: list[tuple[Path, str, dict[str, TarMember]]] = []
        for shard in shards:
            self._index(shard)

    def _index(self, shard: Path) -> None:
        base_plus_ext = _webdataset("tariterators").base_plus_ext
        try:
            size = shard.stat().st_size
            with tarfile.open(shard, "r:") as archive:
                while member := archive.next():
                    key, name = base_plus_ext(member.name)
                    if not member.isfile() or not key:
                        continue
                    found = TarMember(shard, member.name, member.offset_data, member.size)
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it ends inside {member.name}")
                    if not self.samples or self.samples[-1][:2] != (shard, key):
                        self.samples.append((shard, key, {}))
                    self.samples[-1][2][name.lower()] = found
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no shard {shard}.") from None
        except (tarfile.TarError, OSError) as error:
            reason = "truncated" if size and "end" in str(error) else "unreadable_shard"
            self.problems.append(BadSample(reason, f"{error}.", shard.name))

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, number: int) -> str:
        shard, key, _ = self.samples[number]
        return f"{shard.name}/{key}"

    def row(self, number: int) -> Any:
        video_column, caption_column = self.columns
        _, _, members = self.samples[number]
        row: dict[str, Any] = {}
        try:
            if "json" in members:
                row = json.loads(members["json"].read())
            if "txt" in members and isinstance(row, dict):
                row.setdefault(caption_column, members["txt"].read().decode("utf-8"))
        except ValueError as error:
            raise BadSample("bad_record", f"neither JSON nor text: {error}", self.key(number)) from None
        if isinstance(row, dict) and row.get(video_column) is None:
            names = [name for name in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS) if name in members]
            row[video_column] = names[0] if names else None
        return row

    def parse(self, row: Any, number: int) -> VideoRecord:
        members = self.samples[number][2]

        def resolve(value: Any) -> Media:
            if not isinstance(value, str) or value.lower() not in members:
                raise BadSample("missing_file", f"no member {value!r}; there are {sorted(members)}.")
            return members[value.lower()]

        return parse_record(row, resolve, self.key(number), *self.columns)

    def identity(self) -> str:
        return json.dumps([[shard.name, shard.stat().st_size] for shard in self.shards])


def _webdataset(module: str) -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError('Tar shards need webdataset: pip install "vimi_diffusers[train]".') from error
    return getattr(webdataset, module)


def open_source(
    name: str | Path,
    config_name: str | None = None,
    split: str = "train",
    video_column: str = "video",
    caption_column: str = "caption",
) -> Source:
    """
    Opens a data set of any of the three layouts, told by what lies there.

    Args:
        name (`str` or `Path`):
            A folder with `metadata.jsonl`; a folder that `datasets` saved, or with parquet, arrow or json files, or
            one such file; a tar shard, a folder of them, or a pattern such as `"data/{000..041}.tar"`; else a Hub id.
        config_name (`str`, *optional*): Configuration of a data set with several.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set with several.
        video_column (`str`, *optional*, defaults to `"video"`): Field of the video.
        caption_column (`str`, *optional*, defaults to `"caption"`): Field of the caption.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If it is none of the layouts.
    """
    name, path = str(name), Path(name)
    columns = {"video_column": video_column, "caption_column": caption_column}
    if (path / METADATA).is_file():
        return FolderSource(path, **columns)
    if name.endswith(".tar") or path.is_dir() and any(path.glob("*.tar")):
        if path.is_dir():
            shards = sorted(path.glob("*.tar"))
        elif "*" in name:
            shards = [Path(found) for found in sorted(glob.glob(name))]
        else:
            shards = [Path(found) for found in _webdataset("shardlists").expand_urls(name)]
        if not shards:
            raise FileNotFoundError(f"No shard matches {name}.")
        return ShardSource(shards, **columns)
    return DatasetsSource(_load_dataset(name, path, config_name, split), folder=_base(path), **columns)


def _base(path: Path) -> Path:
    return path if path.is_dir() else path.parent if path.is_file() else Path()


def _load_dataset(name: str, path: Path, config_name: str | None, split: str) -> Any:
    import datasets

    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        loaded = datasets.load_from_disk(name)
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise ValueError(f"{name} has no split {split!r}, it has {list(loaded)}.")
            loaded = loaded[split]
        return loaded
    builders = {"parquet": "parquet", "arrow": "arrow", "json": "json", "jsonl": "json"}
    if path.is_file():
        builder = builders.get(path.suffix[1:])
        if builder is None:
            raise ValueError(f"{name} is none of {', '.join('.' + each for each in builders)} and no tar shard.")
        return datasets.load_dataset(builder, data_files=name, split="train")
    if path.is_dir():
        for suffix, builder in builders.items():
            if any(path.rglob(f"*.{suffix}")):
                return datasets.load_dataset(name, config_name, split=split)
        raise ValueError(f"{name} holds no data set: no {METADATA}, no tar shards, no parquet, arrow or json files.")
    if name.count("/") > 1 or name.startswith((".", "/")):  # a Hub id has one slash at most
        raise FileNotFoundError(f"There is nothing at {name}.")
    return datasets.load_dataset(name, config_name, split=split)
