# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whole batches read, decoded and tokenised in loader processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..prompting import MultimodalPrompt
from .buckets import Bucket
from .decoding import Clip, MediaInfo, read_clip
from .index import SampleInfo
from .order import Draw
from .prompts import PromptEncoder, PromptSettings, draw_prompt, plain_prompt
from .readers import Source
from .schema import BadSample, VideoRecord


MAX_TRIES = 100  # bad samples in a row for one place of a batch


@dataclass
class LoadedBatch:
    """
    What a loader process returns.

    Args:
        tensors (`dict`, *optional*): The batch on the CPU, its video still in bytes; `None` if it could not be filled.
        bad (`list[BadSample]`): Bad samples met on the way.
        drawn (`int`): Samples tried.
    """

    tensors: dict[str, torch.Tensor] | None
    bad: list[BadSample]
    drawn: int


class ClipDataset(Dataset):
    """
    Reads, decodes and tokenises whole batches. Everything about a batch is a function of its draws.

    Args:
        source ([`Source`]): The data set.
        infos (`list[SampleInfo]`): Its index.
        buckets (`Sequence[Bucket]`): The shapes.
        members (`Sequence[np.ndarray]`): Numbers of the samples of each bucket.
        encoder ([`PromptEncoder`]): Tokenises.
        prompts ([`PromptSettings`]): Draws.
        seed (`int`): Seed.
        resolution (`bool`): Whether the model is told the original size.
        raw (`bool`, *optional*, defaults to `False`): Whether drawn batches hold texts and images, not tokenised.
    """

    def __init__(
        self,
        source: Source,
        infos: list[SampleInfo],
        buckets: Sequence[Bucket],
        members: Sequence[np.ndarray],
        encoder: PromptEncoder,
        prompts: PromptSettings,
        seed: int,
        resolution: bool,
        raw: bool = False,
    ):
        self.raw = raw
        self.source, self.infos, self.buckets, self.members = source, infos, buckets, members
        self.encoder, self.prompts, self.seed, self.resolution = encoder, prompts, seed, resolution

    def __getitems__(self, draws: Sequence[Draw]) -> LoadedBatch:
        """The batch of `draws`, each bad sample replaced by the next good one of its bucket."""
        bad: list[BadSample] = []
        tries = [0] * len(draws)
        rows: list[tuple | None] = [None] * len(draws)
        drawn = 0
        while True:
            for place, draw in enumerate(draws):
                while rows[place] is None:
                    members = self.members[draw.bucket]
                    if tries[place] == min(MAX_TRIES, len(members)):
                        return LoadedBatch(None, bad, drawn)
                    number = int(members[(draw.member + tries[place]) % len(members)])
                    drawn += 1
                    try:
                        rows[place] = number, *self.read(number, draw)
                    except BadSample as error:
                        bad.append(BadSample(error.reason, error.detail, self.source.key(number)))
                        tries[place] += 1
            encoded, failed = self.encode([row[2] for row in rows], self.raw)
            if not failed:
                return LoadedBatch(self.collate(rows, draws[0].bucket, encoded), bad, drawn)
            for place, error in failed.items():
                bad.append(BadSample("bad_prompt", error, self.source.key(rows[place][0])))
                rows[place] = None
                tries[place] += 1

    def read(self, number: int, draw: Draw) -> tuple[np.ndarray, MultimodalPrompt]:
        """Frames and prompt of one sample."""
        rng = np.random.default_rng([self.seed, draw.bucket, draw.position, 1])
        record, info = self.source.record(number), self.infos[number].media
        clip = self.clip(record, info, draw.bucket, rng.random())
        prompt = draw_prompt(record, info.is_image, clip.first, self.prompts, rng, self.encoder.processor.image_token)
        return clip.frames, prompt

    def clip(self, record: VideoRecord, info: MediaInfo, bucket: int, where: float) -> Clip:
        """The clip that begins at the share `where` of the time that leaves room for it."""
        shape = self.buckets[bucket]
        start = where * max(info.duration - shape.span(info), 0.0)
        step = 1 / shape.rate(info)
        return read_clip(record.video, shape.num_frames, shape.height, shape.width, start, step, record.fps)

    def encode(self, prompts: Sequence[MultimodalPrompt], raw: bool = False) -> tuple[dict[str, Any], dict[int, str]]:
        """The tokenised prompts; or, by place, what is wrong with those that the processor cannot take."""
        try:
            return self.encoder(prompts, raw=True) if raw else self.encoder(prompts), {}
        except Exception:  # of whatever kind a processor raises: the prompts one by one tell whose it is
            failed = {}
            for place, prompt in enumerate(prompts):
                try:
                    self.encoder([prompt])
                except Exception as error:
                    failed[place] = error.detail if isinstance(error, BadSample) else str(error)
            if not failed:
                raise
            return {}, failed

    def collate(self, rows: Sequence[tuple], bucket: int, encoded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch of rows (sample, frames, prompt) and their encoded prompts."""
        infos = [self.infos[number].media for number, _, _ in rows]
        batch = {
            "video": torch.from_numpy(np.stack([frames for _, frames, _ in rows])),
            "fps": torch.tensor([self.buckets[bucket].rate(info) for info in infos], dtype=torch.float32),
            **encoded,
        }
        if self.resolution:
            batch["resolution"] = torch.tensor([(info.height, info.width) for info in infos], dtype=torch.float32)
        return batch

    def fixed_batch(self, numbers: Sequence[int], bucket: int, task: str, images: bool) -> LoadedBatch:
        """
        A held-out batch: middle clips and prompts of which nothing is drawn. What is bad is left out, not replaced.

        Args:
            numbers (`Sequence[int]`): The samples.
            bucket (`int`): Their bucket.
            task (`str`): A task that all allow.
            images (`bool`): Whether to show images, or the words alone.

        Returns:
            [`LoadedBatch`]: without tensors if no sample is left, or none has an image to withhold.
        """
        rows, bad, shown = [], [], False
        options = {"max_context": self.prompts.max_context, "image_token": self.encoder.processor.image_token}
        for number in numbers:
            try:
                record, info = self.source.record(number), self.infos[number].media
                clip = self.clip(record, info, bucket, 0.5)
                prompt = plain_prompt(record, task, clip.first, **options)
                shown = shown or bool(prompt.images)
                if not images:
                    prompt = plain_prompt(record, task, clip.first, images=False, **options)
                rows.append((number, clip.frames, prompt))
            except BadSample as error:
                bad.append(BadSample(error.reason, error.detail, self.source.key(number)))
        encoded, failed = self.encode([row[2] for row in rows]) if rows else ({}, {})
        bad += [BadSample("bad_prompt", error, self.source.key(rows[place][0])) for place, error in failed.items()]
        if failed:
            rows = [row for place, row in enumerate(rows) if place not in failed]
            encoded = self.encoder([row[2] for row in rows]) if rows else {}
        if not rows or not (images or shown):
            return LoadedBatch(None, bad, len(numbers))
        return LoadedBatch(self.collate(rows, bucket, encoded), bad, len(numbers))
