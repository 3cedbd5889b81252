"""How a memory lies on disk: an Arrow file of pairs, bm25s indexes, and a manifest that tells whether all is there."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from .bm25 import BM25Index


FORMAT = "vimi_diffusers.ImageTextMemory"
FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_PAIRS = "pairs.arrow"


def save_folder(path: Path, manifest: Mapping, table: pa.Table, indexes: Mapping[str, BM25Index]) -> None:
    """Write a memory's folder beside its place, then move it there; an older memory in that place goes last."""
    if path.is_dir() and any(path.iterdir()) and not _is_memory(path):
        raise FileExistsError(f"{path} is a folder with other content: choose a new folder for the memory.")
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: choose a new folder for the memory.")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    old = path.parent / f".{path.name}.{uuid.uuid4().hex}.old"
    try:
        new.mkdir()
        with pa.OSFile(str(new / _PAIRS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        for name, index in indexes.items():
            index.save(new / "index" / name)
        files = [
            {"path": file.relative_to(new).as_posix(), "bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(new.rglob("*"))
            if file.is_file()
        ]
        manifest = {"format": FORMAT, "version": FORMAT_VERSION, **manifest, "files": files}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_manifest(path: Path, verify: bool) -> dict:
    """The manifest of a memory whose files are all there, in this format version, of the right size and content."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no memory at {path}: build one with `vimi memory build FOLDER {path}`.")
    if not _is_memory(path):
        raise ValueError(
            f"{path} is not a saved memory (it has no memory's {_MANIFEST} and no index): build one from a folder of "
            f"images with `vimi memory build FOLDER OUT`."
        )
    with naming_damage(path):
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The memory {path} has format version {version}, this package reads {FORMAT_VERSION}: build it again "
            f"with `vimi memory build FOLDER {path}`."
        )
    with naming_damage(path):
        for file in manifest["files"]:
            _check_file(path / file["path"], file, verify)
    return manifest


def open_folder(path: Path, indexes: Iterable[str], mmap: bool) -> tuple[pa.Table, dict[str, BM25Index]]:
    """The pairs and the named indexes of a memory's folder, memory-mapped or read."""
    file = str(path / _PAIRS)
    source = pa.memory_map(file) if mmap else pa.py_buffer(Path(file).read_bytes())
    table = pa.ipc.open_file(source).read_all()
    return table, {name: BM25Index.load(path / "index" / name, mmap=mmap) for name in indexes}


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn whatever reading a broken memory raises into one error that names the folder and the way out."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"The memory {path} is damaged ({reason}): copy it again, or build it again with "
            f"`vimi memory build FOLDER {path}`."
        ) from error


def _is_memory(path: Path) -> bool:
    """Whether a folder holds a memory's manifest, if only a damaged one: the name alone is anybody's."""
    manifest = path / _MANIFEST
    return manifest.is_file() and FORMAT.encode() in manifest.read_bytes()


def _check_file(file: Path, expected: Mapping, verify: bool) -> None:
    if not file.is_file():
        raise ValueError(f"{expected['path']} is missing")
    if file.stat().st_size != expected["bytes"]:
        raise ValueError(f"{expected['path']} has {file.stat().st_size} bytes instead of {expected['bytes']}")
    if verify and _sha256(file) != expected["sha256"]:
        raise ValueError(f"{expected['path']} has other content than when it was written")


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
