# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A data set that is written shard by shard: resumed where it stopped, in several processes, whole in the end."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from ..files import replacing, whole_folder
from .augmented_shards import shard_path


MANIFEST = "manifest.json"
# Below the unfinished folder: what becomes the data set, and what is known of each finished shard.
_RESULT, _DONE = "result", "done"


@dataclass(frozen=True)
class ShardFolder:
    """
    The unfinished folder `<out>.part`, in values that any process can take. Shards appear in it whole or not at all; a
    shard's note, written after it, says that it is there.

    Args:
        out (`Path`): What the folder is called when all is there.
        form (`str`): One of [`FORMATS`].
        total (`int`): Samples of the source.
        shard_size (`int`): Samples of the source for each shard.
    """

    out: Path
    form: str
    total: int
    shard_size: int

    @property
    def part(self) -> Path:
        """`Path`: The unfinished folder."""
        return self.out.with_name(f"{self.out.name}.part")

    @property
    def num_shards(self) -> int:
        """`int`: Shards in all."""
        return math.ceil(self.total / self.shard_size)

    def numbers(self, shard: int) -> range:
        """The samples of the source for a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.total))

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return shard_path(self.part / _RESULT, self.form, shard, self.num_shards)

    def finish(self, shard: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Notes that a shard was written, with what is known of it; returns the note."""
        path = self.path(shard)
        name = path.relative_to(self.part / _RESULT).as_posix()
        note = {"shard": shard, "file": name, "bytes": path.stat().st_size, "sha256": sha256(path), **values}
        with replacing(self._note(shard)) as part:
            part.write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")
        return note

    def finished(self) -> dict[int, dict[str, Any]]:
        """The notes of the shards that are there whole."""
        notes = {}
        for shard in range(self.num_shards):
            note, path = self._note(shard), self.path(shard)
            if note.is_file() and path.is_file():
                values = json.loads(note.read_text(encoding="utf-8"))
                if path.stat().st_size == values["bytes"] and sha256(path) == values["sha256"]:
                    notes[shard] = values
        return notes

    def begin(self, wanted: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, Any] | None:
        """
        Makes the unfinished folder, or takes the one that is there.

        Args:
            wanted (`Mapping`): All that decides what is written, by part.
            kind (`str`): Format of the manifest.

        Returns:
            `dict`, *optional*: the manifest, if the data set is finished already.

        Raises:
            ValueError: If a folder has other content or was made with other settings; the error names what differs.
        """
        if (self.out / MANIFEST).is_file():
            manifest = _check_same(self.out, wanted, kind)
            shutil.rmtree(self.part, ignore_errors=True)  # if the last call was stopped between its last two steps
            return manifest
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"{self.out} exists already and holds something else: choose a new folder.")
        if (self.part / MANIFEST).is_file():
            if any((self.part / _DONE).glob("*.json")):
                _check_same(self.part, wanted, kind)
                return None
            shutil.rmtree(self.part)  # begun, but nothing is finished
        if self.part.exists():
            raise ValueError(f"{self.part} has other content: remove it, or choose a new folder.")
        with whole_folder(self.part) as new:
            (new / _DONE).mkdir()
            (new / _RESULT).mkdir()
            (new / MANIFEST).write_text(json.dumps({"format": kind, **wanted}, indent=1), encoding="utf-8")
        return None

    def end(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest and gives the folder its name."""
        result = self.part / _RESULT
        for path in result.rglob(".*.part*"):  # what killed processes left half-written
            path.unlink()
        with replacing(result / MANIFEST) as file:
            file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        if self.out.is_dir():
            self.out.rmdir()  # an empty one
        result.rename(self.out)
        shutil.rmtree(self.part)

    def in_processes(
        self, work: Callable[[int], dict], todo: Sequence[int], num_proc: int, context: BaseContext,
        start: Callable, arguments: tuple,
    ) -> Iterator[dict]:  # fmt: skip
        """
        The notes of shards as they are finished by processes of this machine.

        Raises:
            ChildProcessError: If a process was killed.
        """
        with ProcessPoolExecutor(min(num_proc, len(todo)), context, start, arguments) as pool:
            try:
                for future in as_completed([pool.submit(work, shard) for shard in todo]):
                    yield future.result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    f"A process was killed (out of memory?). Finished shards are kept in {self.part}: run the same "
                    "again to go on, perhaps with fewer processes or a smaller `shard_size`."
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _note(self, shard: int) -> Path:
        return self.part / _DONE / f"{shard:05d}.json"


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_files(notes: Sequence[Mapping[str, Any]], samples: Sequence[int]) -> list[dict[str, Any]]:
    """What a manifest says of each shard."""
    known = ("file", "bytes", "sha256")
    return [{**{name: note[name] for name in known}, "samples": count} for note, count in zip(notes, samples)]


def _check_same(folder: Path, wanted: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != kind:
            raise ValueError(f"it is of {manifest['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no data set of {kind!r} ({error}): choose a new folder.") from None
    for part, values in json.loads(json.dumps(wanted)).items():
        for name in {**values, **manifest[part]}:
            before, now = manifest[part].get(name), values.get(name)
            if before != now:
                raise ValueError(
                    f"{folder} was made with {part} {name} {before!r}, now it is {now!r}: go on with what it began "
                    "with, or choose a new folder."
                )
    return manifest
