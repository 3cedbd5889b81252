# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The diffusion loss on held-out concepts, with the images and with them withheld."""

import torch

from .config import TrainingConfig
from .data import TrainingData, without_images
from .objective import VIMITrainingModel


class HeldOutLoss:
    """
    Mean squared error in F space over fixed samples, noise levels and noise of never-trained concepts.

    Args:
        data ([`TrainingData`]): Source of samples, with its collator bound.
        config ([`TrainingConfig`]): Tasks, `validation_samples` and batch size.
        split (`str`, *optional*, defaults to `"val_concept"`): Which samples.
    """

    def __init__(self, data: TrainingData, config: TrainingConfig, split: str = "val_concept"):
        self.data, self.config = data, config
        self.samples = {}
        for task in config.task_weights:
            dataset = data.split(split, {task: 1.0}, length=config.validation_samples, canonical=True)
            self.samples[task] = [dataset[i] for i in range(config.validation_samples)]

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

    def _error(self, model: VIMITrainingModel, samples: list) -> float:
        generator = torch.Generator().manual_seed(0)
        device, total = self.data.accelerator.device, 0.0
        for start in range(0, len(samples), self.config.train_batch_size):
            batch = self.data.to_device(self.data.collator(samples[start : start + self.config.train_batch_size]))
            sigmas = model.scheduler.sample_sigmas(len(batch["video"]), generator=generator)
            noise = torch.randn(batch["video"].shape, generator=generator)
            with self.data.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                _, error = model(noise=noise.to(device), sigmas=sigmas.to(device), **batch)
            total += error.sum().item()
        return total / len(samples)
