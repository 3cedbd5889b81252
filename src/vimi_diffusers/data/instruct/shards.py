# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One shard of stage-2 samples: the clips of it opened, their subjects found, samples drawn and written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..augmented_shards import AugmentedSample, ContextImage, encode_sample, read_media, write_shard
from ..decoding import MediaInfo, probe
from ..readers import open_source
from ..schema import BadSample, Reference, VideoRecord
from ..shard_folder import ShardFolder
from .plugins import PluginSettings
from .samples import ClipReferences, InstructionSettings, cut_references, draw_sample, draw_task, reference_frames
from .subjects import ClipFrames, SubjectFinder


OFFENDERS = 3  # named for each reason in the report


@dataclass(frozen=True)
class InstructionTask:
    """
    One run, in values that any process can take.

    Args:
        source (`dict`): Arguments of [`open_source`].
        shards ([`ShardFolder`]): Where the shards are written.
        settings ([`InstructionSettings`]): What is made of the clips.
        plugins ([`PluginSettings`]): With what.
        embed_videos (`bool`): Whether parquet carries videos that are files.
    """

    source: dict[str, Any]
    shards: ShardFolder
    settings: InstructionSettings
    plugins: PluginSettings
    embed_videos: bool


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
        report, shards = new_report(), self.task.shards
        samples = self._samples(shards.numbers(shard), report)
        write_shard(shards.path(shard), shards.form, samples, ["clip"])
        return shards.finish(shard, {"report": report})

    def _samples(self, numbers: Sequence[int], report: dict) -> Iterator[dict[str, Any]]:
        for start in range(0, len(numbers), self.task.plugins.batch_size):
            part = numbers[start : start + self.task.plugins.batch_size]
            clips = [clip for number in part if (clip := self._open(number, report))]
            references = self._references(clips, report)
            for number, record, info, tasks in clips:
                for turn, task in enumerate(tasks):
                    sample = self._draw(number, record, info, task, turn, references.get(number), report)
                    if sample:
                        yield encode_sample(sample, self.task.shards.form, self.task.embed_videos)

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
