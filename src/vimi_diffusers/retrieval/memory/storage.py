# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""
How a memory lies on disk, and how it changes as a whole.

`data/` holds parquet shards, `lookup/` the arrays of their ids, kinds and groups, `index/NNNNN/` the BM25 indexes, one
in each folder, and `manifest.json` names all of them. No file changes once a manifest names it: what is added lies
beside it, and a new manifest makes it count.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...files import replacing
from .lookup import Segment
from .shards import Shard, open_local, sha256_of


FORMAT = "vimi_diffusers.ImageTextMemory"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_FEW_SHARDS = 8
_SMALL = 64 << 20  # bytes whose hashes take no time worth mentioning


@dataclass(frozen=True)
class Manifest:
    """
    What a memory consists of.

    Attributes:
        num_pairs (`int`): Pairs in all shards.
        num_dropped (`int`): Pairs that were left out when it was built.
        kinds (`dict[str, int]`): Pairs of each kind of the recipe.
        recipe (`dict`): What is indexed.
        index (`str`): Folder of the indexes, below the memory's.
        shards (`tuple[Shard]`): Pairs, in order.
        segments (`tuple[Segment]`): Their ids.
        arrays (`tuple[dict]`): The segments' files: `"path"`, `"bytes"`, `"sha256"`.
    """

    num_pairs: int
    num_dropped: int
    kinds: dict[str, int]
    recipe: dict[str, Any]
    index: str
    shards: tuple[Shard, ...]
    segments: tuple[Segment, ...]
    arrays: tuple[dict, ...] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Put it into its folder in one step."""
        values = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}
        with replacing(folder / MANIFEST) as path:
            path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            `FileNotFoundError`: if the folder is not there.
            `ValueError`: if it holds no memory, one of another format version, or a damaged manifest.
        """
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no memory at {folder}: build one with `vimi memory build SOURCE {folder}`."
            )
        if not is_memory(folder):
            raise ValueError(
                f"{folder} is not a saved memory (it has no memory's {MANIFEST} and no index): build one with "
                f"`vimi memory build SOURCE OUT`."
            )
        with naming_damage(folder):
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            version = values.pop("version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"The memory {folder} has format version {version}, this package reads {FORMAT_VERSION}: build it "
                f"again with `vimi memory build SOURCE {folder}`."
            )
        with naming_damage(folder):
            del values["format"]
            values["shards"] = tuple(Shard(**one) for one in values["shards"])
            values["segments"] = tuple(Segment(**one) for one in values["segments"])
            manifest = cls(**{**values, "arrays": tuple(values["arrays"])})
            for parts, what in ((manifest.shards, "shards"), (manifest.segments, "segments")):
                count = sum(part.pairs for part in parts)
                if count != manifest.num_pairs:
                    raise ValueError(f"its {what} have {count} entries where {manifest.num_pairs} belong")
        return manifest

    def files(self, folder: Path) -> list[str]:
        """The paths of all files of the memory, the manifest last."""
        index = (file.relative_to(folder).as_posix() for file in sorted((folder / self.index).rglob("*")))
        paths = [shard.path for shard in self.shards] + [file["path"] for file in self.arrays]
        return [*paths, *(path for path in index if (folder / path).is_file()), MANIFEST]

    def check_files(self, folder: Path, verify: bool | None, with_shards: bool = True) -> bool:
        """
        Raise an error that names a file which is missing or has another size, or, if asked for, another content.

        Args:
            folder (`Path`): Where they lie.
            verify (`bool`, *optional*): Whether to compare contents. By default those of small memories.
            with_shards (`bool`, *optional*, defaults to `True`): Whether the pairs lie there too.

        Returns:
            `bool`: whether contents were compared.
        """
        parts = [(one["path"], one["bytes"], one["sha256"]) for one in self.arrays]
        if with_shards:
            parts += [(shard.path, shard.bytes, shard.sha256) for shard in self.shards]
        if verify is None:
            verify = sum(size for _, size, _ in parts) <= _SMALL
        for path, size, sha256 in parts:
            file = folder / path
            if not file.is_file():
                raise ValueError(f"{path} is missing")
            if file.stat().st_size != size:
                raise ValueError(f"{path} has {file.stat().st_size} bytes instead of {size}")
            if verify and sha256_of(file) != sha256:
                raise ValueError(f"{path} has other content than when it was written")
        return verify


class ShardFiles:
    """
    Opens the shards of a memory's folder, also after pairs were added to it by another process. Those of a small
    memory are opened at once, so that it can be read to the end though another takes its place.

    Args:
        folder (`Path`): The memory's folder.
        shards (`Sequence[Shard]`): All of them.
        mmap (`bool`): Whether to map the files.

    Raises:
        `ValueError`: if a shard is missing, or another memory has taken the folder since.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], mmap: bool):
        self.folder, self.mmap = folder, mmap
        self._stamp = self._now()
        self._opened = {shard: open_local(folder, shard, mmap) for shard in shards if len(shards) <= _FEW_SHARDS}

    def __call__(self, shard: Shard) -> pa.NativeFile:
        if shard in self._opened:
            return self._opened[shard]
        file = open_local(self.folder, shard, self.mmap)
        if self._now() != self._stamp and shard not in Manifest.read(self.folder).shards:
            raise ValueError(f"The memory {self.folder} was replaced since it was opened: load it again.")
        return file

    def _now(self) -> tuple[int, int]:
        stat = (self.folder / MANIFEST).stat()
        return stat.st_ino, stat.st_mtime_ns


def is_memory(folder: Path) -> bool:
    """Whether a folder holds a memory's manifest, if only a damaged one: the name alone is anybody's."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    with open(manifest, "rb") as stream:
        return FORMAT.encode() in stream.read(1000)


def describe(folder: Path, segments: list[Segment]) -> tuple[dict, ...]:
    """The manifest's entries of the arrays of new segments."""
    names = {segment.name for segment in segments}
    return tuple(
        {"path": f"lookup/{file.name}", "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted((folder / "lookup").iterdir())
        if file.stem.rpartition("-")[2] in names
    )


@contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Turn whatever reading a broken memory raises into one error that names the folder and the way out."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"The memory {folder} is damaged ({reason}): copy it again, or build it again with "
            f"`vimi memory build SOURCE {folder}`."
        ) from error


def check_place(folder: Path) -> None:
    """
    Raises:
        `FileExistsError`: if something other than a memory is there.
    """
    if folder.is_dir() and any(folder.iterdir()) and not is_memory(folder):
        raise FileExistsError(f"{folder} is a folder with other content: choose a new folder for the memory.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: choose a new folder for the memory.")


@contextmanager
def whole_memory(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder`, or of a memory there, when the block ends without an error."""
    check_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    old = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def changing(folder: Path) -> Iterator[Manifest]:
    """
    The manifest of a memory to which files are added, by one process at a time. What no manifest names is removed
    before, and also after an error, except for the indexes: those of the manifest before stay for its readers.

    Raises:
        `ValueError`: if another process is at it.
    """
    with _lock(folder):
        _remove_strays(folder, Manifest.read(folder))
        try:
            yield Manifest.read(folder)
        except BaseException:
            _remove_strays(folder, Manifest.read(folder))
            raise


def next_index(folder: Path, index: str) -> str:
    """A copy of the indexes, to be extended; their files are shared, since none of them is ever changed."""
    name = f"index/{int(index.rpartition('/')[2]) + 1:05d}"

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # not on every file system
            shutil.copy2(source, target)

    shutil.copytree(folder / index, folder / name, copy_function=link)
    return name


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows, where the check of the index's own manifest must do
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ValueError(f"Another process is adding pairs to the memory {folder}: wait for it to end.") from error
    try:
        yield
    finally:
        os.close(handle)


def _remove_strays(folder: Path, manifest: Manifest) -> None:
    named = {shard.path for shard in manifest.shards} | {file["path"] for file in manifest.arrays}
    for path in [*(folder / "data").iterdir(), *(folder / "lookup").iterdir()]:
        if path.relative_to(folder).as_posix() not in named:
            path.unlink()
    for path in (folder / "index").iterdir():
        if path != folder / manifest.index:
            shutil.rmtree(path)
