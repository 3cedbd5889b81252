# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders of a run, written whole or not at all: checkpoints with a record of their files, and the final pipeline."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


RECORD = "checkpoint.json"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints under `output_dir`, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step)


def begin_checkpoint(output_dir: str | Path, step: int) -> Path:
    """
    An empty hidden folder for the files of `checkpoint-{step}`, for [`finish_checkpoint`] to show. What earlier runs
    left half done is removed.
    """
    output_dir = Path(output_dir)
    for left in (*output_dir.glob(".checkpoint-*.partial"), *output_dir.glob(".checkpoint-*.removed")):
        shutil.rmtree(left)
    partial = output_dir / f".checkpoint-{step}.partial"
    partial.mkdir(parents=True)
    return partial


def finish_checkpoint(partial: Path, record: dict[str, Any], total_limit: int | None = None) -> Path:
    """
    Makes the files in `partial` the checkpoint: each goes to disk and into `checkpoint.json` with size and hash, then
    the folder gets its name, then the oldest checkpoints over `total_limit` go.

    Args:
        partial (`Path`): The folder of [`begin_checkpoint`], with all its files.
        record (`dict`): What `checkpoint.json` says beside `files`.
        total_limit (`int`, *optional*): How many checkpoints stay.

    Returns:
        `Path`: The checkpoint.
    """
    (partial / RECORD).write_text(json.dumps({**record, "files": describe_files(partial)}, indent=1), encoding="utf-8")
    final = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
    show_folder(partial, final)
    if total_limit:
        for old in list_checkpoints(final.parent)[:-total_limit]:
            hidden = old.with_name(f".{old.name}.removed")
            os.rename(old, hidden)  # cut off while it is removed, it must not look like a checkpoint
            shutil.rmtree(hidden)
    return final


def show_folder(partial: Path, final: Path) -> None:
    """
    Flushes the hidden folder `partial` to disk and renames it to `final`, in place of an older folder of that name.
    """
    for path in (*_files(partial), *_folders(partial)):
        _flush(path)
    previous = final.with_name(f".{final.name}.removed")
    shutil.rmtree(previous, ignore_errors=True)
    if final.exists():  # a folder can only be renamed onto an empty one
        os.rename(final, previous)
    os.rename(partial, final)
    _flush(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file under `folder`, by its path in it."""
    paths = [path for path in _files(folder) if path != folder / RECORD]
    with ThreadPoolExecutor(8) as pool:  # hashing frees the interpreter
        digests = list(pool.map(_sha256, paths))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests)
    }


def read_record(checkpoint: Path) -> dict[str, Any]:
    """
    Reads `checkpoint.json` and compares the files with it.

    Raises:
        FileNotFoundError: If `checkpoint` is none.
        ValueError: If it is damaged: says how.
    """
    path = checkpoint / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint in {checkpoint}: it has no {RECORD}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        files = {name: (entry["size"], entry["sha256"]) for name, entry in record["files"].items()}
    except (ValueError, LookupError, AttributeError, TypeError):
        raise ValueError(f"{checkpoint} is damaged: {RECORD} cannot be read.") from None
    for name, (size, _) in files.items():
        if not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint} is damaged: {name} is missing.")
        if (found := (checkpoint / name).stat().st_size) != size:
            raise ValueError(f"{checkpoint} is damaged: {name} has {found} bytes instead of {size}.")
    for name, entry in describe_files(checkpoint).items():
        if name in files and entry["sha256"] != files[name][1]:
            raise ValueError(f"{checkpoint} is damaged: the content of {name} is not what was written.")
    return record


def find_checkpoint(output_dir: str | Path, resume_from: str) -> tuple[Path, dict[str, Any]] | None:
    """
    The checkpoint to resume from, whole, and its record.

    A damaged one is set aside as `checkpoint-N.damaged` with a warning, and `"latest"` takes the one before it.

    Args:
        output_dir (`str` or `Path`): Where `"latest"` looks.
        resume_from (`str`): A checkpoint folder, or `"latest"`.

    Returns:
        Folder and record; `None` if there is no checkpoint yet and `resume_from` is `"latest"`.

    Raises:
        FileNotFoundError: If the named folder holds no checkpoint.
        ValueError: If the named one is damaged, all are, or later ones in `output_dir` would be mixed with this run's.
    """
    if resume_from != "latest":
        path = Path(resume_from)
        record = read_record(path)
        same_run = path.resolve().parent == Path(output_dir).resolve()
        refuse_checkpoints(output_dir, later_than=record["step"] if same_run else -1)
        return path, record
    damaged: dict[Path, str] = {}
    for path in reversed(list_checkpoints(output_dir)):
        try:
            record = read_record(path)
        except (ValueError, FileNotFoundError) as problem:
            damaged[path] = str(problem)
            continue
        for other, problem in damaged.items():
            _set_aside(other, f"{problem} {path.name} is used instead.")
        return path, record
    if damaged:
        raise ValueError(
            f"No checkpoint of {output_dir} is whole. {' '.join(damaged.values())} Start anew in another `output_dir`."
        )
    return None


def refuse_checkpoints(output_dir: str | Path, later_than: int = -1) -> None:
    """
    Raises:
        FileExistsError: If `output_dir` has checkpoints after the step `later_than`, which `"latest"` would confuse
            with those to come.
    """
    if later := [path for path in list_checkpoints(output_dir) if _step(path) > later_than]:
        raise FileExistsError(
            f"{output_dir} already has {later[-1].name} of another course of training: continue it with "
            "`resume_from_checkpoint: latest`, remove it, or give another `output_dir`."
        )


def _set_aside(checkpoint: Path, problem: str) -> None:
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    warnings.warn(f"{problem} The damaged one is now {aside.name}.", stacklevel=3)


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _folders(folder: Path) -> Iterable[Path]:
    return (*(path for path in folder.rglob("*") if path.is_dir()), folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on disk."""
    if path.is_dir() and os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
