# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The steps of an augmentation: each is opened once in a process and takes the batch of a shard, a dictionary."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..retrieval import BM25Index, ImageTextMemory, ImageTextPair, RetrievalRecipe, merge_top_k, tokenize
from ..retrieval.hygiene import Fingerprint, HygieneReport, fingerprint
from ..retrieval.memory.storage import Manifest
from .augment import AugmentTask
from .augmented_shards import AugmentedSample, ContextImage, encode_sample, write_shard
from .decoding import probe, read_clip, read_image
from .readers import Source, open_source
from .schema import BadSample, VideoRecord


_SAMPLES = 64  # whose pairs are read at once


class ReadCaptions:
    """
    Adds the captions of a shard: `{"shard": int}` gets `"captions"` (`list[str]`), empty for samples that cannot be
    read, which [`WriteShard`] reports.
    """

    def __init__(self, task: AugmentTask):
        self.task = task
        self._source: Source | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._source is None:  # here: the process that makes an operator may not run it
            self._source = _open(self.task)
        return {**batch, "captions": [self._caption(number) for number in self.task.shards.numbers(batch["shard"])]}

    def _caption(self, number: int) -> str:
        try:
            return self._source.record(number).words
        except BadSample:
            return ""


def search_operators(task: AugmentTask, by_shard: bool = False, num_threads: int | None = None) -> list:
    """
    What finds candidates in a memory.

    Args:
        task ([`AugmentTask`]): The augmentation.
        by_shard (`bool`, *optional*, defaults to `False`): Whether each shard of the index is searched by its own
            operator. A memory whose recipe has kinds, groups or several fields has no one index to take apart.
        num_threads (`int`, *optional*): Threads of a search; by default all cores.
    """
    recipe = _recipe(task)
    if recipe.kinds or recipe.group_by or len(recipe.fields) > 1:
        return [SearchMemory(task)]
    shards = range(BM25Index.load(_index(task, recipe), verify=False, shards=[]).num_shards) if by_shard else [None]
    return [SearchIndex(task, shard, num_threads) for shard in shards]


class SearchIndex:
    """
    Adds the best rows of one shard of a memory's index, or of all, to those that were found before: `"rows"`, for each
    caption and kind the rows best first, and `"scores"`.
    """

    def __init__(self, task: AugmentTask, shard: int | None = None, num_threads: int | None = None):
        self.task, self.shard, self.num_threads = task, shard, num_threads
        self.recipe = _recipe(task)
        self._index: BM25Index | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._index is None:
            shards = None if self.shard is None else [self.shard]
            self._index = BM25Index.load(_index(self.task, self.recipe), verify=False, shards=shards)
        k, stop_words = self.task.settings.candidates, frozenset(self.recipe.stop_words)
        queries = [tokenize(caption, stop_words) for caption in batch["captions"]]
        rows, scores = self._index.search(queries, k, num_threads=self.num_threads)
        scores = scores * np.float32(self.recipe.fields[0].weight)
        if "rows" in batch:
            rows, scores = merge_top_k([_padded(batch, k), (rows, scores)], k)
        counts = (rows >= 0).sum(axis=1).tolist()
        return {
            **batch,
            "rows": [[row[:count].tolist()] for row, count in zip(rows, counts)],
            "scores": [[score[:count].tolist()] for score, count in zip(scores, counts)],
        }


def _padded(batch: dict[str, Any], k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.full((len(batch["captions"]), k), -1, np.int64)
    scores = np.zeros(rows.shape, np.float32)
    for number, ((row,), (score,)) in enumerate(zip(batch["rows"], batch["scores"])):
        rows[number, : len(row)], scores[number, : len(score)] = row, score
    return rows, scores


class SearchMemory:
    """
    Adds what the search of the whole memory finds, for recipes with kinds, groups or fields: `"ids"` of pairs in place
    of [`SearchIndex`]'s rows, and `"scores"`.
    """

    def __init__(self, task: AugmentTask):
        self.task = task
        self._memory: ImageTextMemory | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._memory is None:
            self._memory = ImageTextMemory.load(self.task.memory, verify=False)
        kinds = self._memory.recipe.kinds or (None,)
        ids, scores = [], []
        for pairs in self._memory.search_batch(batch["captions"], k=self.task.settings.candidates):
            of_kinds = [[pair for pair in pairs if kind is None or pair.kind == kind] for kind in kinds]
            ids.append([[pair.id for pair in of_kind] for of_kind in of_kinds])
            scores.append([[pair.score for pair in of_kind] for of_kind in of_kinds])
        return {**batch, "ids": ids, "scores": scores}


@dataclass
class _Choice:
    """A sample on its way: its pairs are chosen from the candidates of each kind."""

    number: int
    record: VideoRecord
    print: Fingerprint
    extra: dict[str, str | None]
    candidates: list[list[tuple[int | str, float]]]  # row or id of a pair, and its score
    chosen: list[list[ContextImage]] = field(default_factory=list)

    def wanted(self, k: int) -> list[int | str]:
        """The candidates to look at next."""
        return [key for kind, done in zip(self.candidates, self.chosen) for key, _ in kind[: k - len(done)]]


class WriteShard:
    """
    Looks at the candidates, best first, for pairs that do not leak, and writes the samples with them. Of a batch
    `"shard"` stays, and `"values"` (JSON) says what was written.
    """

    def __init__(self, task: AugmentTask):
        self.task = task
        self._opened: tuple[Source, ImageTextMemory] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._opened is None:
            self._opened = _open(self.task), ImageTextMemory.load(self.task.memory, verify=False)
        task, settings = self.task, self.task.settings
        keys = batch["ids"] if "ids" in batch else batch["rows"]
        shard, reports = batch["shard"], (HygieneReport(), HygieneReport())
        counts = dict.fromkeys(("samples", "written", "pairs", "fewer_than_k", "without_pairs", "context_replaced"), 0)

        def samples():
            numbers = task.shards.numbers(shard)
            for start in range(0, len(numbers), _SAMPLES):
                part = slice(start, start + _SAMPLES)
                choices = self._prepare(numbers[part], keys[part], batch["scores"][part], reports[0])
                self._choose(choices, reports[1])
                for choice in choices:
                    context = [pair for kind in choice.chosen for pair in kind]
                    sample = AugmentedSample(choice.number, choice.record, context, choice.extra)
                    try:
                        encoded = encode_sample(sample, settings.form, settings.embed_videos)
                    except BadSample as bad:
                        reports[0].drop(bad.reason, key=choice.record.key, detail=bad.detail)
                        continue
                    counts["written"] += 1
                    counts["pairs"] += len(context)
                    counts["fewer_than_k"] += any(len(kind) < settings.k for kind in choice.chosen)
                    counts["without_pairs"] += not context
                    counts["context_replaced"] += bool(choice.record.context)
                    yield encoded

        write_shard(task.shards.path(shard), settings.form, samples(), settings.rules.source_columns)
        counts["samples"] = reports[0].total
        values = {"counts": counts, "captions": reports[0].to_dict(), "pairs": reports[1].to_dict()}
        return {"shard": shard, "values": json.dumps(task.shards.finish(shard, values), ensure_ascii=False)}

    def _prepare(
        self, numbers: Sequence[int], keys: Sequence, scores: Sequence, report: HygieneReport
    ) -> list[_Choice]:
        source, settings = self._opened[0], self.task.settings
        choices = []
        for number, key_lists, score_lists in zip(numbers, keys, scores):
            report.total += 1
            try:
                row = source.row(number)
                record = source.parse(row, number)
                if reason := self.task.prompts.match(record.words):
                    report.drop(reason, key=record.key, caption=record.words)
                    continue
                frames = _frames(record, settings.num_frames) if settings.rules.image_radius is not None else []
            except BadSample as bad:
                report.drop(bad.reason, key=source.key(number), detail=bad.detail)
                continue
            extra = {name: _text(row.get(name)) for name in settings.rules.source_columns}
            print = fingerprint({**extra, "text": record.words, "image": frames}, settings.rules)
            candidates = [list(zip(*lists)) for lists in zip(key_lists, score_lists)]
            choices.append(_Choice(number, record, print, extra, candidates, [[] for _ in candidates]))
        return choices

    def _choose(self, choices: Sequence[_Choice], report: HygieneReport) -> None:
        """Goes through the candidates of all samples, as many at once as are missing, until none is missing."""
        memory, settings = self._opened[1], self.task.settings
        seen: dict[int | str, _Examined] = {}
        while keys := {key for choice in choices for key in choice.wanted(settings.k)}:
            for key in sorted(keys - seen.keys()):  # in the memory's order, for the sake of its row groups
                seen[key] = self._examine(memory[key])
            for choice in choices:
                for position, done in enumerate(choice.chosen):
                    left = choice.candidates[position]
                    now, choice.candidates[position] = left[: settings.k - len(done)], left[settings.k - len(done) :]
                    for key, score in now:
                        report.total += 1
                        one = seen[key]
                        leak = None if one.reason else choice.print.leaks(one.print, settings.rules)
                        if one.reason or leak:
                            reason = one.reason or f"leak/{leak}"
                            report.drop(reason, sample=choice.record.key, pair=one.pair.id, text=one.pair.text)
                        else:
                            done.append(ContextImage(one.pair.id, one.pair.text, one.image, score))

    def _examine(self, pair: ImageTextPair) -> "_Examined":
        image = pair.encoded
        if reason := self.task.prompts.match(pair.text):
            return _Examined(pair, image, reason)
        try:
            row = {"text": pair.text, "image": image, "metadata": pair.metadata}
            return _Examined(pair, image, print=fingerprint(row, self.task.settings.rules))
        except ValueError:
            return _Examined(pair, image, "unreadable_image")


@dataclass
class _Examined:
    """A pair with its encoded image; why no sample may have it, or what samples are compared with."""

    pair: ImageTextPair
    image: bytes
    reason: str | None = None
    print: Fingerprint = Fingerprint()


def _frames(record: VideoRecord, count: int) -> list[Image.Image]:
    """Frames of a video, evenly over its length from the first; an image itself."""
    info = probe(record.video, record.fps)
    if info.is_image:
        return [read_image(record.video)]
    times = [number * info.duration / count for number in range(count)]
    return [read_clip(record.video, 1, info.height, info.width, start=time, fps=record.fps).first for time in times]


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _open(task: AugmentTask) -> Source:
    source = open_source(**task.source)
    if len(source) != task.shards.total:
        raise ValueError(f"{task.source['name']} has {len(source)} samples, {task.shards.total} when this began.")
    return source


def _recipe(task: AugmentTask) -> RetrievalRecipe:
    return RetrievalRecipe.from_dict(Manifest.read(Path(task.memory)).recipe)


def _index(task: AugmentTask, recipe: RetrievalRecipe) -> Path:
    return Path(task.memory) / Manifest.read(Path(task.memory)).index / recipe.fields[0].name
