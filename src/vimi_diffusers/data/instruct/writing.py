# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A data set of captioned videos to a data set of stage-2 samples: shard by shard, resumable, in several processes."""

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...files import replacing
from ..augmented_shards import FORMATS
from ..readers import open_source
from ..schema import BadSample
from .plugins import PluginSettings
from .samples import InstructionSettings
from .shards import DONE, InstructionTask, ShardWorker, count_dropped, merge_reports, sha256


FORMAT = "vimi_diffusers.instruct"
MANIFEST = "manifest.json"


def write_instruction_data(
    source: str | Path,
    out: str | Path,
    settings: InstructionSettings | None = None,
    plugins: PluginSettings | None = None,
    *,
    form: str = "parquet",
    shard_size: int = 500,
    embed_videos: bool = False,
    config_name: str | None = None,
    split: str = "train",
    video_column: str = "video",
    caption_column: str = "caption",
    num_proc: int = 1,
    show: bool = False,
) -> dict[str, Any]:
    """
    Makes stage-2 samples of captioned videos, as a data set that [`~vimi_diffusers.data.open_source`] reads.

    The folder appears when all is done. Until then shards gather in `<out>.part`; a call that was stopped goes on
    there if it is repeated with the same source and settings. Each sample depends on seed, clip and its number alone,
    not on the number of processes.

    Args:
        source (`str` or `Path`): What [`~vimi_diffusers.data.open_source`] takes.
        out (`str` or `Path`): Folder to write.
        settings ([`InstructionSettings`], *optional*): What is made of each clip.
        plugins ([`PluginSettings`], *optional*): With what; objects instead of names need `num_proc=1`.
        form (`str`, *optional*, defaults to `"parquet"`): `"parquet"` or `"webdataset"`.
        shard_size (`int`, *optional*, defaults to `500`): Clips of a shard, the unit of work.
        embed_videos (`bool`, *optional*, defaults to `False`):
            Whether parquet carries videos that are files; otherwise it names them by their absolute path.
        config_name, split, video_column, caption_column: As of [`~vimi_diffusers.data.open_source`].
        num_proc (`int`, *optional*, defaults to `1`): Processes.
        show (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `dict`: the manifest: settings, the report of what was made and dropped, and the shards.

    Raises:
        ValueError: If an argument cannot be used, the folder has other content or was begun with other settings, or
            no sample came out.
    """
    settings, plugins, out = settings or InstructionSettings(), plugins or PluginSettings(), Path(out).absolute()
    _check_arguments(settings, plugins, form, shard_size, num_proc)
    arguments = {
        "name": str(Path(source).absolute() if Path(source).exists() else source), "config_name": config_name,
        "split": split, "video_column": video_column, "caption_column": caption_column,
    }  # fmt: skip
    opened = open_source(**arguments)
    if not len(opened):
        raise ValueError(f"{source} has no samples: there is nothing to make instructions from.")
    wanted = {
        "source": {**arguments, "kind": opened.kind, "samples": len(opened), "identity": opened.identity()},
        "settings": dataclasses.asdict(settings),
        "plugins": plugins.describe() if settings.needs_subjects else {},
        "output": {"form": form, "shard_size": shard_size, "embed_videos": embed_videos},
    }
    if (out / MANIFEST).is_file():
        return _same(out, wanted)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already and holds something else: choose a new folder.")
    part = out.with_name(f"{out.name}.part")
    _begin(part, wanted)
    task = InstructionTask(arguments, part, len(opened), settings, plugins, form, shard_size, embed_videos)
    shards = range(math.ceil(len(opened) / shard_size))
    done = {shard: note for shard in shards if (note := _finished(task, shard))}
    todo = [shard for shard in shards if shard not in done]
    with tqdm(total=len(shards), initial=len(done), desc="Shards", disable=not show) as bar:
        for note in _work(task, todo, num_proc):
            done[note["shard"]] = note
            bar.update()
    return _end(part, out, wanted, [done[shard] for shard in shards], opened.problems)


def _check_arguments(
    settings: InstructionSettings, plugins: PluginSettings, form: str, shard_size: int, num_proc: int
) -> None:
    if form not in FORMATS:
        raise ValueError(f"`form` must be one of {', '.join(FORMATS)}, got {form!r}.")
    for name, value in (("shard_size", shard_size), ("num_proc", num_proc)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if settings.needs_subjects:
        plugins.check()
    if num_proc > 1 and not all(isinstance(part, str) for part in plugins.kinds.values()):
        raise ValueError("Several processes need plug-ins by name, as package.module:Class, not as objects.")


# ------------------------------------------------------------------ processes
def _work(task: InstructionTask, todo: list[int], num_proc: int) -> Iterable[dict]:
    if not todo:
        return ()
    return map(ShardWorker(task), todo) if num_proc == 1 else _in_processes(task, todo, num_proc)


_task: InstructionTask | None = None  # of a process of the pool
_worker: ShardWorker | None = None


def _start_process(task: InstructionTask, turn: Any, threads: int) -> None:
    global _task
    import torch

    torch.set_num_threads(threads)
    with turn.get_lock():
        number, turn.value = turn.value, turn.value + 1
    if task.plugins.device == "cuda":
        plugins = dataclasses.replace(task.plugins, device=f"cuda:{number % torch.cuda.device_count()}")
        task = dataclasses.replace(task, plugins=plugins)
    _task = task


def _run_shard(shard: int) -> dict:
    global _worker
    if _worker is None:  # not at the start of the process, where an error would look like its death
        _worker = ShardWorker(_task)
    return _worker(shard)


def _in_processes(task: InstructionTask, todo: list[int], num_proc: int) -> Iterator[dict]:
    context = multiprocessing.get_context("spawn")  # neither CUDA nor Arrow's threads outlive a fork
    number = min(num_proc, len(todo))
    start = task, context.Value("i", 0), max(1, (os.cpu_count() or 1) // number)
    with ProcessPoolExecutor(number, context, _start_process, start) as pool:
        try:
            for future in as_completed([pool.submit(_run_shard, shard) for shard in todo]):
                yield future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                f"A process ended before its time (out of memory?). Finished shards are kept in {task.folder}: run "
                "the same again to go on, perhaps with fewer processes or a smaller batch."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------ the folder
def _begin(part: Path, wanted: dict) -> None:
    """A new unfinished folder, or the one that is there, cleared of what was half written."""
    if (part / MANIFEST).is_file() and any((part / DONE).glob("*.json")):
        _same(part, wanted)
        for path in part.rglob(".*.part*"):
            path.unlink(missing_ok=True)
        return
    if part.exists():
        if any(part.iterdir()) and not (part / MANIFEST).is_file():
            raise ValueError(f"{part} has other content: remove it, or choose a new folder.")
        shutil.rmtree(part)  # begun, but nothing is finished
    (part / DONE).mkdir(parents=True, exist_ok=True)
    with replacing(part / MANIFEST) as file:
        file.write_text(json.dumps({"format": FORMAT, "complete": False, **wanted}, indent=1), encoding="utf-8")


def _same(folder: Path, wanted: dict) -> dict:
    """The folder's manifest, if it is of the same run."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no instruction data ({error}): choose a new folder.") from None
    for part, values in json.loads(json.dumps(wanted)).items():
        for name in values.keys() | manifest[part].keys():
            before, now = manifest[part].get(name), values.get(name)
            if before != now:
                raise ValueError(
                    f"{folder} was made with {part} {name} {before!r}, now it is {now!r}: go on with what it began "
                    "with, or choose a new folder."
                )
    return manifest


def _finished(task: InstructionTask, shard: int) -> dict | None:
    """The note of a shard that is there whole."""
    path, note = task.path(shard), task.note(shard)
    if not note.is_file() or not path.is_file():
        return None
    values = json.loads(note.read_text(encoding="utf-8"))
    whole = path.stat().st_size == values["bytes"] and sha256(path) == values["sha256"]
    return values if whole else None


def _end(part: Path, out: Path, wanted: dict, notes: list[dict], problems: list[BadSample]) -> dict:
    report = merge_reports([note["report"] for note in notes])
    for problem in problems:
        count_dropped(report["bad_clips"], problem.reason, problem.key)
    manifest = {
        "format": FORMAT,
        "complete": True,
        **wanted,
        "report": report,
        "shards": [
            {name: note[name] for name in ("file", "bytes", "sha256")}
            | {"samples": sum(note["report"]["samples"].values())}
            for note in notes
        ],
    }
    if not report["samples"]:
        dropped = {name: report[name] for name in ("bad_clips", "dropped_samples", "dropped_entities") if report[name]}
        raise ValueError(f"No sample came out: {json.dumps(dropped, ensure_ascii=False)}. See also {part}.")
    with replacing(part / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(part / DONE)
    if out.is_dir():
        out.rmdir()  # an empty one
    part.rename(out)
    return manifest
