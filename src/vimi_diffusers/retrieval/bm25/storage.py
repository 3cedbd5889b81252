# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a BM25 index lies on disk: an array in each file, and a manifest that tells whether all is there."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...files import replacing


MANIFEST = "manifest.json"
FORMAT = "vimi_diffusers.BM25Index"
FORMAT_VERSION = 2  # 1 was the format of bm25s itself
_ARRAYS = re.compile(r"(vocabulary|\d{5,})\.[a-z]+(\.[0-9a-f]+)?\.npy")


@dataclass(frozen=True)
class Manifest:
    """
    What an index's folder holds.

    Attributes:
        k1, b (`float`): Parameters of BM25.
        shards (`tuple[dict]`): Of each shard its `"documents"` and `"words"`, as counts, and its `"files"`.
        vocabulary (`dict`): The vocabulary's files. Of a file: `"path"`, `"bytes"` and `"sha256"`, by array name.
    """

    k1: float
    b: float
    shards: tuple[dict, ...] = ()
    vocabulary: Mapping[str, dict] | None = None

    @property
    def num_documents(self) -> int:
        return sum(shard["documents"] for shard in self.shards)

    @property
    def average_length(self) -> float:
        return sum(shard["words"] for shard in self.shards) / max(self.num_documents, 1)

    def with_files(self, number: int, files: Mapping[str, dict]) -> "Manifest":
        """The manifest with further files of a shard."""
        shards = list(self.shards)
        shards[number] = {**shards[number], "files": {**shards[number]["files"], **files}}
        return replace(self, shards=tuple(shards))

    def write(self, folder: Path) -> None:
        """Write it in one step, so that the folder's index is the old one or the new one."""
        content = {"format": FORMAT, "version": FORMAT_VERSION, "k1": self.k1, "b": self.b}
        content |= {"vocabulary": self.vocabulary, "shards": self.shards}
        with replacing(folder / MANIFEST) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            `FileNotFoundError`: if the folder is not there.
            `ValueError`: if it holds no index of this format version, or its manifest is damaged.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no BM25 index at {folder}: build it first.")
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} is no whole BM25 index, it has no {MANIFEST}: build it again.")
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            form, version = content["format"], content["version"]
            manifest = cls(content["k1"], content["b"], tuple(content["shards"]), content["vocabulary"])
            manifest.num_documents, manifest.average_length  # noqa: B018 - reads what every shard must name
        except (ValueError, KeyError, TypeError) as error:
            raise damage(folder, f"{MANIFEST} is not readable: {error!r}") from error
        if (form, version) != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"{folder} holds {form!r} in version {version}, this package reads {FORMAT!r} in version "
                f"{FORMAT_VERSION}: build it again."
            )
        return manifest

    def remove_unnamed(self, folder: Path) -> None:
        """Remove arrays that the manifest does not name: those of the index before, or of an unfinished change."""
        named = {file["path"] for files in (self.vocabulary, *(shard["files"] for shard in self.shards))
                 for file in files.values()}  # fmt: skip
        for path in folder.iterdir():
            if _ARRAYS.fullmatch(path.name) and path.name not in named:
                path.unlink(missing_ok=True)


def damage(folder: Path, what: str) -> ValueError:
    """The error that names what is wrong with an index."""
    return ValueError(f"The BM25 index {folder} is damaged ({what}): copy it again, or build it again.")


def write_arrays(folder: Path, name: str, arrays: Mapping[str, np.ndarray], tag: str = "") -> dict[str, dict]:
    """Write arrays to `NAME.ARRAY[.TAG].npy`; returns the manifest's entry of each."""
    files = {}
    for kind, values in arrays.items():
        path = folder / ".".join(filter(None, (name, kind, tag, "npy")))
        with open(path, "wb") as stream:
            np.save(stream, values, allow_pickle=False)
        files[kind] = {"path": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
    return files


def read_arrays(
    folder: Path, files: Mapping[str, dict], names: Sequence[str], what: str, mmap: bool, verify: bool
) -> dict[str, np.ndarray]:
    """
    Open the named arrays, memory-mapped or read.

    Raises:
        `ValueError`: if a file is missing or has another size than the manifest says, or, with `verify`, another hash.
    """
    arrays = {}
    for name in names:
        if name not in files:
            raise damage(folder, f"{MANIFEST} names no {name} of {what}")
        path = folder / files[name]["path"]
        if not path.is_file():
            raise damage(folder, f"{what}: {path.name} is missing")
        if path.stat().st_size != files[name]["bytes"]:
            size = files[name]["bytes"]
            raise damage(folder, f"{what}: {path.name} has {path.stat().st_size} bytes instead of {size}")
        if verify and _sha256(path) != files[name]["sha256"]:
            raise damage(folder, f"{what}: {path.name} has other content than when it was written")
        try:
            values = np.load(path, mmap_mode="r" if mmap else None)
        except (OSError, ValueError, EOFError) as error:
            raise damage(folder, f"{what}: {path.name} is not readable: {error}") from error
        arrays[name] = np.asarray(values)
    return arrays


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
