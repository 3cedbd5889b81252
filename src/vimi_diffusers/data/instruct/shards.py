# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One shard of stage-2 samples: the clips of it opened, their subjects found, samples drawn and written."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import replacing
from ..augmented_shards import AugmentedSample, ContextImage, encode_sample, read_media, shard_path, write_shard
from ..decoding import MediaInfo, probe
from ..readers import open_source
from ..schema import BadSample, Reference, VideoRecord
from .plugins import PluginSettings
from .samples import ClipReferences, InstructionSettings, cut_references, draw_sample, draw_task, reference_frames
from .subjects import ClipFrames, SubjectFinder


DONE = "done"  # below the unfinished folder: what is known of each finished shard
OFFENDERS = 3  # named for each reason in the report


@dataclass(frozen=True)
class InstructionTask:
    """
    One run, in values that any process can take.

    Args:
        source (`dict`): Arguments of [`open_source`].
        folder (`Path`): Where shards are written.
        total (`int`): Clips of the source.
        settings ([`InstructionSettings`]): What is made of them.
        plugins ([`PluginSettings`]): With what.
        form (`str`): One of [`FORMATS`].
        shard_size (`int`): Clips of a shard.
        embed_videos (`bool`): Whether parquet carries videos that are files.
    """

    source: dict[str, Any]
    folder: Path
    total: int
    settings: InstructionSettings
    plugins: PluginSettings
    form: str
    shard_size: int
    embed_videos: bool

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return shard_path(self.folder, self.form, shard, math.ceil(self.total / self.shard_size))

    def note(self, shard: int) -> Path:
        """Where it is noted that a shard is there whole."""
        return self.folder / DONE / f"{shard:05d}.json"


class ShardWorker:
    """
    Makes shards in one process.

    Args:
        task ([`InstructionTask`]): The run.
    """

    def __init__(self, task: InstructionTask):
        self.task, self.settings = task, task.settings
        self.source = open_source(**task.source)
        self.finder = (
            SubjectFinder(*task.plugins.load(), task.settings.subjects) if self.settings.needs_subjects else None
        )

    def __call__(self, shard: int) -> dict[str, Any]:
        """
        Writes a shard and its note.

        Returns:
            `dict`: the note: file, size, hash and report of the shard.
        """
        report = new_report()
        path, size = self.task.path(shard), self.task.shard_size
        numbers = range(shard * size, min((shard + 1) * size, self.task.total))
        write_shard(path, self.task.form, self._samples(numbers, report), ["clip"])
        name = path.relative_to(self.task.folder).as_posix()
        note = {"shard": shard, "file": name, "bytes": path.stat().st_size, "sha256": sha256(path), "report": report}
        with replacing(self.task.note(shard)) as part:
            part.write_text(json.dumps(note, ensure_ascii=False), encoding="utf-8")
        return note

    def _samples(self, numbers: Sequence[int], report: dict) -> Iterator[dict[str, Any]]:
        for start in range(0, len(numbers), self.task.plugins.batch_size):
            part = numbers[start : start + self.task.plugins.batch_size]
            clips = [clip for number in part if (clip := self._open(number, report))]
            references = self._references(clips, report)
            for number, record, info, tasks in clips:
                for turn, task in enumerate(tasks):
                    sample = self._draw(number, record, info, task, turn, references.get(number), report)
                    if sample:
                        yield encode_sample(sample, self.task.form, self.task.embed_videos)

    def _open(self, number: int, report: dict) -> tuple[int, VideoRecord, MediaInfo, list[str]] | None:
        key = self.source.key(number)
        report["clips"] += 1
        try:
            record = self.source.record(number)
            info = probe(record.video, record.fps)
        except BadSample as bad:
            count_dropped(report["bad_clips"], bad.reason, key)
            return None
        return (
            number,
            record,
            info,
            [draw_task(self.settings, key, turn) for turn in range(self.settings.num_per_clip)],
        )

    def _references(self, clips: Sequence[tuple], report: dict) -> dict[int, ClipReferences]:
        """Of the clips with a sample of the subject task, by number."""
        wanted: dict[int, ClipFrames] = {}
        for number, record, info, tasks in clips:
            if "subject" in tasks:
                try:
                    wanted[number] = reference_frames(record, info)
                except BadSample as bad:
                    count_dropped(report["bad_clips"], bad.reason, record.key)
                    tasks.clear()
        found = self.finder(list(wanted.values())) if wanted else []
        references = {}
        for (number, clip), result in zip(wanted.items(), found, strict=True):
            references[number] = cut_references(clip, result, self.settings)
            report["subjects"] += len(references[number].subjects)
            report["backgrounds"] += references[number].background is not None
            for words, reason in result.dropped:
                count_dropped(report["dropped_entities"], reason, words)
        return references

    def _draw(
        self, number: int, record: VideoRecord, info: MediaInfo, task: str, turn: int,
        references: ClipReferences | None, report: dict,
    ) -> AugmentedSample | None:  # fmt: skip
        try:
            row = draw_sample(record, info, task, turn, self.settings, references)
        except BadSample as bad:
            count_dropped(report["dropped_samples"].setdefault(task, {}), bad.reason, record.key)
            return None
        report["samples"][task] = report["samples"].get(task, 0) + 1
        report["references"] += len(row["references"])
        context = []
        if task == "text-to-video":  # pairs that the source has already
            context = [ContextImage(None, pair.text, read_media(pair.image), None) for pair in record.context]
        shown = tuple(Reference(each["image"], each["name"]) for each in row["references"])
        name = f"{record.key}#{turn}"
        written = VideoRecord(
            record.video, row["caption"], row["fps"], task, row["instruction"], references=shown, key=name
        )
        return AugmentedSample(number * self.settings.num_per_clip + turn, written, context, {"clip": record.key})


# ------------------------------------------------------------------ report
def new_report() -> dict[str, Any]:
    """A report of nothing: counts, and by reason how many were dropped and the first of them."""
    counts = dict.fromkeys(("clips", "subjects", "backgrounds", "references"), 0)
    return {**counts, "samples": {}, "bad_clips": {}, "dropped_samples": {}, "dropped_entities": {}}


def count_dropped(reasons: dict[str, dict], reason: str, name: str) -> None:
    """Counts one that was dropped."""
    entry = reasons.setdefault(reason, {"count": 0, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < OFFENDERS:
        entry["first"].append(name)


def merge_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of several shards, in their order."""
    total = new_report()
    for report in reports:
        _merge(total, report)
    return total


def _merge(total: dict, part: dict) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            _merge(total.setdefault(name, {}), value)
        elif isinstance(value, list):
            total[name] = (total.get(name, []) + value)[:OFFENDERS]
        else:
            total[name] = total.get(name, 0) + value


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
