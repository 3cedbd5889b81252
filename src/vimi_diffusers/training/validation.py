# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The diffusion loss on held-out concepts, with the images and with them withheld."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def __call__(self, model: VIMITrainingModel) -> dict[str, float]:
        """Returns `held_out/{task}` and `held_out/{task}_without_images`."""
        return held_out_errors(model, self.batches(), self.autocast)

    def batches(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """The fixed batches, each with the name of what it measures."""
        for task, samples in self.samples.items():
            for name, chosen in ((task, samples), (f"{task}_without_images", [without_images(s) for s in samples])):
                for start in range(0, len(chosen), self.batch_size):
                    batch = self.collator(chosen[start : start + self.batch_size])
                    yield name, render_batch(batch, self.renderer)


@torch.no_grad()
def held_out_errors(
    model: VIMITrainingModel,
    batches: Iterable[tuple[str, dict[str, torch.Tensor]]],
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """
    Mean squared error in F space, with noise levels and noise that are the same at every call.

    Args:
        model ([`VIMITrainingModel`]): Measured in evaluation mode.
        batches (`Iterable`): Names and batches as training has them; those of a name belong together.
        autocast (`Callable`, *optional*): Makes the context in which the model runs; none by default.

    Returns:
        `dict[str, float]`: `held_out/{name}`, the mean over the samples.
    """
    training = model.training
    model.eval()
    generators: dict[str, torch.Generator] = {}
    errors: dict[str, list[torch.Tensor]] = {}
    for name, batch in batches:
        device = batch["video"].device
        generator = generators.setdefault(name, torch.Generator().manual_seed(0))
        sigmas = model.scheduler.sample_sigmas(len(batch["video"]), generator=generator)
        noise = torch.randn(batch["video"].shape, generator=generator)
        with autocast(), torch.compiler.set_stance("force_eager"):
            _, error = model(noise=noise.to(device), sigmas=sigmas.to(device), **batch)
        errors.setdefault(f"held_out/{name}", []).append(error)
    model.train(training)
    return {name: torch.cat(parts).double().mean().item() for name, parts in errors.items()}
