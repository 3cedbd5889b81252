# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop with an upscaler in it."""

from collections.abc import Iterable
from typing import Any

from ..vimi.pipeline_vimi_upscale import VIMIUpscalePipeline
from .config import TrainingConfig
from .loop import Trainer
from .upscale import UpscaleTrainingModel, build_upscaler_components, upscaling_options


class UpscaleTrainer(Trainer):
    """
    A run that trains an upscaler. Its configuration has a section `model.upscaling` with `base_size` and, if wanted,
    `noise_levels`, see [`UpscaleTrainingModel`].

    Raises:
        ValueError: If the section is wrong, or `validation_prompts` are given, for which there is no base video.
    """

    pipeline_class = VIMIUpscalePipeline

    def __init__(self, config: TrainingConfig):
        upscaling_options(config)  # refused before anything is loaded
        if config.validation_prompts:
            raise ValueError("`validation_prompts` have no base video that an upscaler could enlarge: leave them out.")
        super().__init__(config)

    def make_components(self, texts: Iterable[str]) -> dict[str, Any]:
        return build_upscaler_components(self.config, texts)

    def make_model(self, components: dict[str, Any]) -> UpscaleTrainingModel:
        parts = (components[name] for name in ("text_encoder", "transformer", "scheduler"))
        options = upscaling_options(self.config)
        return UpscaleTrainingModel(*parts, loss_weighting=self.config.loss_weighting, **options)
