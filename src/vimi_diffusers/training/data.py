# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches for the loop: samples drawn and tokenised in loader processes, pixels rendered on the device."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Sampler

from ..emoji_world.recipes import Sample
from ..emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer
from ..emoji_world.samples import Collator, EmojiWorldDataset
from ..emoji_world.world_index import WorldIndex
from ..vimi.transformer_vimi import VIMITransformer3DModel
from .config import TrainingConfig


ENDLESS = 2**40  # samples are drawn, not stored: every index is a new one
TOKENIZER_SAMPLES = 20_000


class StepSampler(Sampler[list[int]]):
    """
    The indices of each step's batch, a function of the step alone, so that a resumed run sees what it would have seen.

    Args:
        batch_size (`int`): Samples of each process.
        start_step (`int`): First step.
        rank (`int`): This process.
        world_size (`int`): Number of processes.
    """

    def __init__(self, batch_size: int, start_step: int = 0, rank: int = 0, world_size: int = 1):
        self.batch_size, self.start_step, self.rank, self.world_size = batch_size, start_step, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            first = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            step += 1


class TrainingData:
    """
    Emoji world as training batches.

    Args:
        config ([`TrainingConfig`]): Folder, task mix and shapes.
        accelerator (`Accelerator`): Device and processes.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.index = WorldIndex.load(config.train_data_dir)
        self.shape: dict[str, int] = {}  # of the videos; [`~TrainingData.bind`] knows it
        self.measured: dict[tuple[int, int], Any] = {}  # held-out samples, drawn once

    def split(self, split: str, task_weights: dict[str, float], length: int, canonical: bool = False):
        return EmojiWorldDataset(
            self.index, split, task_weights, seed=self.config.seed, length=length, canonical=canonical, **self.shape
        )

    def texts(self) -> Iterator[str]:
        """Text of training samples over all tasks, for a new tokenizer. Held-out words are not among it."""
        tasks = {"text-to-video": 1.0, "subject": 1.0, "prediction": 1.0}
        dataset = self.split("train", tasks, length=TOKENIZER_SAMPLES)
        return (dataset[i].text() for i in range(TOKENIZER_SAMPLES))

    def bind(self, processor: Any, transformer: VIMITransformer3DModel, chat: bool = False) -> None:
        """
        Makes data set, renderer and collator for the shapes of a model.

        Raises:
            ValueError: If the model's videos are not square, or its conditioner has a chat template (`chat`).
        """
        if chat:
            raise ValueError(
                "Emoji world has plain prompts: it needs a conditioner without chat template (`crop_start` 0)."
            )
        video = transformer.config
        if video.height != video.width:
            raise ValueError(
                f"Emoji world makes square videos, the model {video.height}x{video.width} (height x width)."
            )
        size = processor.image_processor.crop_size["height"]
        self.shape = {"num_frames": video.num_frames, "size": video.height}
        self.dataset = self.split("train", self.config.task_weights, length=ENDLESS)
        assets = EmojiWorldAssets.load(self.index, device=self.accelerator.device)
        self.renderer = EmojiWorldRenderer(assets, reference_size=size, **self.shape)
        self.collator = Collator(
            processor.tokenizer,
            self.index,
            processor.image_token_id,
            (size // processor.patch_size) ** 2,
            self.config.max_sequence_length,
            self.config.num_images,
        )

    def batches(self, start_step: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Endless batches on the device, from `start_step` on."""
        accelerator, workers = self.accelerator, self.config.dataloader_num_workers
        sampler = StepSampler(
            self.config.train_batch_size, start_step, accelerator.process_index, accelerator.num_processes
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=self.collator,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # else each start of a loader draws from the stream of the noise
        )
        for batch in loader:
            yield self.to_device(batch)

    def held_out(self, num_samples: int, batch_size: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Fixed batches of concepts that are not trained on, each with the name of what it measures."""
        from .validation import HeldOutLoss

        size = (num_samples, batch_size)
        if size not in self.measured:
            tasks = list(self.config.task_weights)
            self.measured[size] = HeldOutLoss(self.renderer, self.collator, tasks, *size, self.config.seed)
        return self.measured[size].batches()

    def to_device(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Moves a collated batch to the device and renders its videos and images."""
        return render_batch(batch, self.renderer)


@torch.no_grad()
def render_batch(batch: dict[str, Any], renderer: EmojiWorldRenderer) -> dict[str, torch.Tensor]:
    """
    What [`VIMITrainingModel`] takes beside noise, of a batch of [`Collator`], on the renderer's device.

    Args:
        batch (`dict`): Tokens and the renderer's parameters.
        renderer ([`EmojiWorldRenderer`]): Makes `video` and `pixel_values`.
    """
    device = renderer.device
    render = batch["render"].to(device)
    video = renderer.videos(render)
    return {
        "video": video,
        "pixel_values": renderer.references(render, video),
        **{name: batch[name].to(device, non_blocking=True) for name in ("input_ids", "attention_mask", "fps")},
    }


def without_images(sample: Sample) -> Sample:
    """The control of a grounded sample: the same video and words, all images withheld."""
    from ..prompting import DEFAULT_INSTRUCTIONS, instruction_key

    return dataclasses.replace(
        sample,
        task="text-to-video",
        instruction=DEFAULT_INSTRUCTIONS[instruction_key("text-to-video", 0)],
        prompt=sample.caption,
        context=(),
    )
