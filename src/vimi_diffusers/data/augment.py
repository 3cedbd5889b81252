# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Captions of any data set with their retrieved pairs, written as a data set (paper section 1.2)."""

import dataclasses
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..retrieval.hygiene import HygieneReport, HygieneRules, PromptList
from .augmented_shards import FORMATS
from .readers import Source, open_source
from .schema import BadSample
from .shard_folder import MANIFEST, ShardFolder, sha256, shard_files


FORMAT = "vimi_diffusers.augmented"


@dataclass(frozen=True)
class AugmentSettings:
    """
    What is retrieved and how it is written.

    Args:
        k (`int`, *optional*, defaults to `4`): Pairs for each caption; of each kind, if the memory has kinds.
        candidates (`int`, *optional*):
            How many of the best pairs are looked at for `k` that do not leak. Defaults to the greater of 32 and 4 `k`.
        form (`str`, *optional*, defaults to `"parquet"`): `"parquet"` or `"webdataset"`.
        shard_size (`int`, *optional*, defaults to `1000`): Samples of a shard, the unit of work.
        embed_videos (`bool`, *optional*, defaults to `False`):
            Whether parquet carries videos that are files; otherwise it names them by their absolute path.
        rules ([`~vimi_diffusers.retrieval.hygiene.HygieneRules`], *optional*):
            When a pair is the same thing as a sample and is not shown to it.
        num_frames (`int`, *optional*, defaults to `1`):
            Frames of a video that are compared with a pair's image, evenly over its length from the first.

    Raises:
        ValueError: If a value cannot be used.
    """

    k: int = 4
    candidates: int | None = None
    form: str = "parquet"
    shard_size: int = 1000
    embed_videos: bool = False
    rules: HygieneRules = field(default_factory=HygieneRules)
    num_frames: int = 1

    def __post_init__(self) -> None:
        for name in ("k", "shard_size", "num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.candidates is None:
            object.__setattr__(self, "candidates", max(32, 4 * self.k))
        if self.candidates < self.k:
            raise ValueError(f"`candidates` must be `k` ({self.k}) or more, got {self.candidates}.")
        if self.form not in FORMATS:
            raise ValueError(f"`form` must be one of {', '.join(FORMATS)}, got {self.form!r}.")


@dataclass(frozen=True)
class AugmentTask:
    """
    One augmentation, in values that any process can take: everything is opened where it is used.

    Args:
        source (`dict`): Arguments of [`open_source`].
        memory (`str`): Folder of the memory.
        shards ([`ShardFolder`]): Where the shards are written.
        settings ([`AugmentSettings`]): What is retrieved and how it is written.
        prompts ([`PromptList`]): Evaluation prompts.
    """

    source: dict
    memory: str
    shards: ShardFolder
    settings: AugmentSettings
    prompts: PromptList


def augment(
    source: str | Path,
    memory: str | Path,
    out: str | Path,
    settings: AugmentSettings | None = None,
    *,
    prompts: PromptList | None = None,
    config_name: str | None = None,
    split: str = "train",
    video_column: str = "video",
    caption_column: str = "caption",
    num_proc: int = 1,
    ray_address: str | None = None,
    show: bool = False,
) -> dict:
    """
    Retrieve pairs for every caption of a data set, and write it with them as a data set that
    [`~vimi_diffusers.data.open_source`] reads.

    The folder appears when all is done. Until then shards gather in `<out>.part`; a call that was stopped goes on
    there if it is repeated with the same source, memory and settings. What is written does not depend on the number of
    processes or machines.

    Args:
        source (`str` or `Path`): What [`~vimi_diffusers.data.open_source`] takes.
        memory (`str` or `Path`): Folder of a saved [`ImageTextMemory`].
        out (`str` or `Path`): Folder to write.
        settings ([`AugmentSettings`], *optional*): What is retrieved and how it is written.
        prompts ([`~vimi_diffusers.retrieval.hygiene.PromptList`], *optional*):
            Evaluation prompts: captions that repeat one are dropped, pairs whose text does are not retrieved.
        config_name (`str`, *optional*): Configuration of a data set with several.
        split (`str`, *optional*, defaults to `"train"`): Split of a data set with several.
        video_column (`str`, *optional*, defaults to `"video"`): Field of the video.
        caption_column (`str`, *optional*, defaults to `"caption"`): Field of the caption.
        num_proc (`int`, *optional*, defaults to `1`): Processes on this machine.
        ray_address (`str`, *optional*):
            Work on this Ray cluster instead (`"auto"` finds the one that runs here). All its machines must see the
            folders under the same paths.
        show (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `dict`: the manifest, with settings, counts, the report of what was withheld, and the shards.

    Raises:
        ValueError: If the folder has other content or was begun with other settings, or no sample can be used.
    """
    settings, prompts, out = settings or AugmentSettings(), prompts or PromptList(), Path(out).absolute()
    arguments = {
        "name": str(source), "config_name": config_name, "split": split,
        "video_column": video_column, "caption_column": caption_column,
    }  # fmt: skip
    if Path(source).exists():
        arguments["name"] = str(Path(source).absolute())
    opened = open_source(**arguments)
    if not len(opened):
        raise ValueError(f"{source} has no samples: there is nothing to augment.")
    wanted = _identity(opened, arguments, Path(memory), settings, prompts)
    shards = ShardFolder(out, settings.form, len(opened), settings.shard_size)
    if finished := shards.begin(wanted, FORMAT):
        return finished
    task = AugmentTask(arguments, str(Path(memory).absolute()), shards, settings, prompts)
    done = shards.finished()
    todo = [shard for shard in range(shards.num_shards) if shard not in done]
    with tqdm(total=shards.num_shards, initial=len(done), desc="Shards", disable=not show) as bar:
        for values in _work(task, todo, num_proc, ray_address):
            done[values["shard"]] = values
            bar.update()
    manifest = _summary(wanted, [done[shard] for shard in range(shards.num_shards)], opened.problems)
    if not manifest["counts"]["written"]:
        raise ValueError(f"No sample of {source} can be used: {HygieneReport.from_dict(manifest['dropped_captions'])}")
    shards.end(manifest)
    return manifest


def _work(task: AugmentTask, todo: list[int], num_proc: int, ray_address: str | None) -> Iterable[dict]:
    if not todo:
        return ()
    if ray_address is not None:
        from .augment_ray import run_on_ray

        return run_on_ray(task, todo, ray_address)
    if num_proc < 1:
        raise ValueError(f"`num_proc` must be 1 or more, got {num_proc}.")
    if num_proc == 1:
        return map(_shard_worker(task), todo)
    # A fork of this process would copy the threads of Arrow and numba half-dead; a fork server has none yet.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload([f"{__package__}.augment_operators"])
    return task.shards.in_processes(_run_shard, todo, num_proc, context, _start_process, (task, num_proc))


# ------------------------------------------------------------------ processes of one machine
def _shard_worker(task: AugmentTask, num_proc: int = 1) -> Callable[[int], dict]:
    """All operators in one process: the number of a shard to what is known of it."""
    from .augment_operators import ReadCaptions, WriteShard, search_operators

    threads = None if num_proc == 1 else 1
    operators = [ReadCaptions(task), *search_operators(task, num_threads=threads), WriteShard(task)]

    def work(shard: int) -> dict:
        batch: dict[str, Any] = {"shard": shard}
        for operator in operators:
            batch = operator(batch)
        return json.loads(batch["values"])

    return work


_worker: Callable[[int], dict] | None = None  # of a process of the pool


def _start_process(task: AugmentTask, num_proc: int) -> None:
    global _worker
    _worker = _shard_worker(task, num_proc)


def _run_shard(shard: int) -> dict:
    return _worker(shard)


# ------------------------------------------------------------------ the manifest
def _identity(source: Source, arguments: dict, memory: Path, settings: AugmentSettings, prompts: PromptList) -> dict:
    """All that decides what is written."""
    if not (memory / MANIFEST).is_file():
        raise FileNotFoundError(f"There is no memory at {memory}: build one with `vimi memory build`.")
    return {
        "source": {**arguments, "kind": source.kind, "samples": len(source), "identity": source.identity()},
        "memory": {"sha256": sha256(memory / MANIFEST)},
        "settings": {**dataclasses.asdict(settings), "rules": settings.rules.to_dict()},
        "evaluation_prompts": {"count": len(prompts), "sha256": prompts.digest()},
    }


def _summary(wanted: dict, shards: list[dict], problems: list[BadSample]) -> dict:
    counts: Counter[str] = Counter()
    captions, pairs = HygieneReport(), HygieneReport()
    for values in shards:
        counts.update(values["counts"])
        captions.merge(HygieneReport.from_dict(values["captions"]))
        pairs.merge(HygieneReport.from_dict(values["pairs"]))
    for problem in problems:  # parts of the source that hold no sample one could name
        captions.drop(problem.reason, key=problem.key, detail=problem.detail)
    return {
        "format": FORMAT,
        **wanted,
        "counts": dict(counts),
        "dropped_captions": captions.to_dict(),
        "withheld_pairs": pairs.to_dict(),
        "shards": shard_files(shards, [values["counts"]["written"] for values in shards]),
    }
