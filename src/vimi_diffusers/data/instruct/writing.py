# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A data set of captioned videos to a data set of stage-2 samples: shard by shard, resumable, in several processes."""

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..augmented_shards import FORMATS
from ..readers import open_source
from ..schema import BadSample
from ..shard_folder import ShardFolder, shard_files
from .plugins import PluginSettings
from .samples import InstructionSettings
from .shards import InstructionTask, ShardWorker, count_dropped, merge_reports


FORMAT = "vimi_diffusers.instruct"


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
    shards = ShardFolder(out, form, len(opened), shard_size)
    if finished := shards.begin(wanted, FORMAT):
        return finished
    task = InstructionTask(arguments, shards, settings, plugins, embed_videos)
    done = shards.finished()
    todo = [shard for shard in range(shards.num_shards) if shard not in done]
    with tqdm(total=shards.num_shards, initial=len(done), desc="Shards", disable=not show) as bar:
        for note in _work(task, todo, num_proc):
            done[note["shard"]] = note
            bar.update()
    manifest = _summary(wanted, [done[shard] for shard in range(shards.num_shards)], opened.problems)
    if not manifest["report"]["samples"]:
        report = {name: manifest["report"][name] for name in ("bad_clips", "dropped_samples", "dropped_entities")}
        dropped = json.dumps({name: value for name, value in report.items() if value}, ensure_ascii=False)
        raise ValueError(f"No sample came out: {dropped}. See also {shards.part}.")
    shards.end(manifest)
    return manifest


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
    if num_proc == 1:
        return map(ShardWorker(task), todo)
    context = multiprocessing.get_context("spawn")  # neither CUDA nor Arrow's threads outlive a fork
    arguments = task, context.Value("i", 0), max(1, (os.cpu_count() or 1) // min(num_proc, len(todo)))
    return task.shards.in_processes(_run_shard, todo, num_proc, context, _start_process, arguments)


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


# ------------------------------------------------------------------ the manifest
def _summary(wanted: dict, notes: list[dict], problems: list[BadSample]) -> dict:
    report = merge_reports([note["report"] for note in notes])
    for problem in problems:
        count_dropped(report["bad_clips"], problem.reason, problem.key)
    files = shard_files(notes, [sum(note["report"]["samples"].values()) for note in notes])
    return {"format": FORMAT, **wanted, "report": report, "shards": files}
