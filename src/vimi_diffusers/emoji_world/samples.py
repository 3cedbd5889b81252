# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Emoji world as a torch data set: samples without pixels, and the collator that makes them a batch of fixed shape."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .recipes import MAX_REFERENCES, Sample, SampleDrawer
from .render import RenderBatch
from .world_index import CLIP_FRAMES, WorldIndex


class EmojiWorldDataset(Dataset):
    """
    Samples of emoji world, drawn on access; no pixels are read.

    Item `i` depends on the world's version, `split`, `seed`, `i` and the settings below alone, so that workers,
    processes and resumed runs agree. Pixels come from [`render.EmojiWorldRenderer`].

    Args:
        root (`str`, `Path` or [`WorldIndex`]): A folder written by `vimi emoji-world build`, or its tables.
        split (`str`): `"train"`, `"val_seen"`, `"val_concept"`, `"val_place"` or `"val_both"`.
        task_weights (`Mapping[str, float]`): Task mix, for example `{"text-to-video": 0.3, "subject": 0.4,
            "prediction": 0.3}`.
        seed (`int`, *optional*, defaults to `0`): Seed.
        length (`int`, *optional*, defaults to `1_000_000`): Number of samples.
        canonical (`bool`, *optional*, defaults to `False`): Canonical wording, every image shown: for evaluation.
        still_share (`float`, *optional*, defaults to `0.5`): Share of single drawings among the subjects of the
            subject and prediction tasks, in training.
        num_frames (`int`, *optional*, defaults to `16`): Frames of a video.
        size (`int`, *optional*, defaults to `64`): Its height and width in pixels.

    Raises:
        `ValueError`: If a setting is unknown or the world lacks what the split needs.
    """

    def __init__(
        self,
        root: str | Path | WorldIndex,
        split: str,
        task_weights: Mapping[str, float],
        seed: int = 0,
        length: int = 1_000_000,
        canonical: bool = False,
        still_share: float = 0.5,
        num_frames: int = CLIP_FRAMES,
        size: int = 64,
    ):
        if length < 1:
            raise ValueError(f"`length` is {length}: give a number of at least 1.")
        self.index = root if isinstance(root, WorldIndex) else WorldIndex.load(root)
        self.drawer = SampleDrawer(self.index, split, task_weights, seed, canonical, still_share, num_frames, size)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < self.length:
            raise IndexError(f"Sample {number} of {self.length}.")
        return self.drawer.draw(number)


class Collator:
    """
    Makes a batch of fixed shape of samples: tokens, and the renderer's parameters.

    Each prompt is tokenised, its image placeholders expanded as the text processor does, and padded on the right to
    `max_length`; of longer ones words are cut from the end, but no image, as the pipeline does. So that every batch
    holds the same number of image tokens, those of unused reference slots stand at the end of the padding, masked;
    image features flattened slot after slot therefore fit in order.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text processor, with a padding token.
        index ([`WorldIndex`]): The world the samples were drawn from.
        image_token_id (`int`): Id of the image placeholder.
        tokens_per_image (`int`): Tokens that one image takes.
        max_length (`int`): Length of every row.
        num_reference_slots (`int`, *optional*, defaults to `2`): K, images per sample.
    """

    def __init__(
        self,
        tokenizer: Any,
        index: WorldIndex,
        image_token_id: int,
        tokens_per_image: int,
        max_length: int,
        num_reference_slots: int = MAX_REFERENCES,
    ):
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no padding token: set `tokenizer.pad_token`.")
        if max_length <= num_reference_slots * tokens_per_image:
            raise ValueError(
                f"`max_length` is {max_length}, but {num_reference_slots} images take "
                f"{num_reference_slots * tokens_per_image} tokens: give more."
            )
        self.tokenizer, self.index = tokenizer, index
        self.image_token_id, self.tokens_per_image = image_token_id, tokens_per_image
        self.max_length, self.num_reference_slots = max_length, num_reference_slots
        self.image_token = tokenizer.convert_ids_to_tokens(image_token_id)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """
        Returns:
            `dict`: `input_ids` and `attention_mask` (int64, `(B, max_length)`); `fps` (float32, `(B,)`);
            `reference_valid` (bool, `(B, K)`); `render`, a [`render.RenderBatch`].

        Raises:
            `ValueError`: If a prompt shows more images than there are slots.
        """
        render = RenderBatch.from_samples(samples, self.index, self.num_reference_slots)
        input_ids, attention_mask = self.tokenize(samples)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "fps": torch.tensor([sample.video.fps for sample in samples], dtype=torch.float32),
            "reference_valid": render.reference_kind != 0,
            "render": render,
        }

    def tokenize(self, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask of `samples`, both of shape `(B, max_length)`."""
        texts = [sample.text(self.image_token) for sample in samples]
        encoded = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False)["input_ids"]
        ids = np.full((len(samples), self.max_length), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(samples), self.max_length), dtype=np.int64)
        for row, (tokens, sample) in enumerate(zip(encoded, samples)):
            tokens = np.asarray(tokens, dtype=np.int64)
            images = tokens == self.image_token_id
            tokens = np.repeat(tokens, np.where(images, self.tokens_per_image, 1))
            used = int(images.sum())
            if used != len(sample.context):
                raise ValueError(
                    f"Sample {sample.id} has {used} image placeholders for {len(sample.context)} images, in its text "
                    f"{texts[row]!r}."
                )
            unused = (self.num_reference_slots - used) * self.tokens_per_image
            excess = len(tokens) + unused - self.max_length
            if excess > 0:
                tokens = np.delete(tokens, np.flatnonzero(tokens != self.image_token_id)[-excess:])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            if unused:
                ids[row, -unused:] = self.image_token_id
        return torch.from_numpy(ids), torch.from_numpy(mask)


def write_samples(samples: Iterable[Sample], path: str | Path) -> None:
    """
    Writes samples as JSON lines; the file appears whole or not at all.

    Args:
        samples (`Iterable[Sample]`): A data set, or any samples.
        path (`str` or `Path`): The file.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for sample in samples:
                file.write(sample.to_json() + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_samples(path: str | Path) -> list[Sample]:
    """Reads the JSON lines of [`write_samples`]."""
    return [Sample.from_json(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
