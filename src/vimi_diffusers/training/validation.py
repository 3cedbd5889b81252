# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The diffusion loss on held-out concepts, with the images and with them withheld."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ..emoji_world.recipes import Sample
from ..emoji_world.render import EmojiWorldRenderer
from ..emoji_world.samples import Collator, EmojiWorldDataset
from .data import render_batch, without_images
from .objective import VIMITrainingModel


class HeldOutLoss:
    """
    Mean squared error in F space over fixed samples, noise levels and noise of never-trained concepts.

    Args:
        renderer ([`EmojiWorldRenderer`]): Makes the pixels, in the model's shapes.
        collator ([`Collator`]): Makes the tokens; its world is where the samples come from.
        tasks (`Sequence[str]`): Which tasks.
        num_samples (`int`): Samples of each task.
        batch_size (`int`): Samples of a batch, whose noise levels are stratified: the result depends on it.
        seed (`int`, *optional*, defaults to `0`): Seed of the samples.
        split (`str`, *optional*, defaults to `"val_concept"`): Which samples.
        autocast (`Callable`, *optional*): Makes the context in which the model runs; none by default.
    """

    def __init__(
        self,
        renderer: EmojiWorldRenderer,
        collator: Collator,
        tasks: Sequence[str],
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        split: str = "val_concept",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.renderer, self.collator = renderer, collator
        self.batch_size, self.autocast = batch_size, autocast
        shape = {"num_frames": renderer.num_frames, "size": renderer.size}
        self.samples: dict[str, list[Sample]] = {}
        for task in tasks:
            dataset = EmojiWorldDataset(
                collator.index, split, {task: 1.0}, seed=seed, length=num_samples, canonical=True, **shape
            )
            self.samples[task] = list(dataset)

    @torch.no_grad()
    def __call__(self, model: VIMITrainingModel) -> dict[str, float]:
        """Returns `held_out/{task}` and `held_out/{task}_without_images`."""
        training = model.training
        model.eval()
        results = {}
        for task, samples in self.samples.items():
            results[f"held_out/{task}"] = self._error(model, samples)
            results[f"held_out/{task}_without_images"] = self._error(model, [without_images(s) for s in samples])
        model.train(training)
        return results

    def _error(self, model: VIMITrainingModel, samples: list[Sample]) -> float:
        generator = torch.Generator().manual_seed(0)
        device, total = self.renderer.device, 0.0
        for start in range(0, len(samples), self.batch_size):
            batch = render_batch(self.collator(samples[start : start + self.batch_size]), self.renderer)
            sigmas = model.scheduler.sample_sigmas(len(batch["video"]), generator=generator)
            noise = torch.randn(batch["video"].shape, generator=generator)
            with self.autocast(), torch.compiler.set_stance("force_eager"):
                _, error = model(noise=noise.to(device), sigmas=sigmas.to(device), **batch)
            total += error.sum().item()
        return total / len(samples)
