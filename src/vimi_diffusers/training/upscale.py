# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training of the upscaler: its loss, and its components, new, from a base model or from an upscaler."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from ..vimi.mllm_conditioner import MLLMConditioner
from ..vimi.pipeline_vimi import VIMIPipeline
from ..vimi.pipeline_vimi_upscale import VIMIUpscalePipeline
from ..vimi.scheduling_edm_video import EDMVideoScheduler
from ..vimi.transformer_embeddings import resample_positions
from ..vimi.transformer_vimi import VIMITransformer3DModel
from ..vimi.upscaling import corrupt, enlarge
from .components import build_components, extend_transformer
from .config import TrainingConfig
from .objective import VIMITrainingModel


EVALUATION_SEED = 0
COMPONENTS = ("text_encoder", "text_processor", "transformer", "scheduler")


class UpscaleTrainingModel(VIMITrainingModel):
    """
    Conditioner and upscaler with the EDM loss (Snap Video, 2402.14797, section 3.5). The base video is the clean one
    reduced to the base's size, then enlarged and corrupted with noise of a random level as
    [`VIMIUpscalePipeline`] does with the base's video; the upscaler gets it as further channels and is told the level.

    In evaluation levels and noise of the base are the same in each call.

    Args:
        text_encoder ([`MLLMConditioner`]): Gives C.
        transformer ([`VIMITransformer3DModel`]): The upscaler: twice as many input as output channels, and
            `noise_level_token`.
        scheduler ([`EDMVideoScheduler`]): Equations and noise distribution, with the upscaler's `sigma_in`.
        base_size (`tuple[int, int]`): Height and width of the base's videos in pixels.
        noise_levels (`tuple[float, float]`, *optional*, defaults to `(0.01, 1.0)`):
            Range of the base's noise, log-uniform; for data in [-1, 1]. The paper corrupts with variable noise and
            prints no range.
        loss_weighting (`str`, *optional*, defaults to `"uncertainty"`): As in [`VIMITrainingModel`].

    Raises:
        ValueError: If the transformer is no upscaler, the base is larger than its videos, or the levels are no range.
    """

    def __init__(
        self,
        text_encoder: MLLMConditioner,
        transformer: VIMITransformer3DModel,
        scheduler: EDMVideoScheduler,
        base_size: Sequence[int],
        noise_levels: Sequence[float] = (0.01, 1.0),
        loss_weighting: str = "uncertainty",
    ):
        super().__init__(text_encoder, transformer, scheduler, loss_weighting)
        config = transformer.config
        if not config.noise_level_token or config.in_channels != 2 * transformer.out_channels:
            raise ValueError(
                "`transformer` is no upscaler: it needs `noise_level_token=True` and twice as many input as output "
                f"channels, got {config.noise_level_token}, {config.in_channels} and {transformer.out_channels}."
            )
        height, width = base_size
        if not (1 <= height <= config.height and 1 <= width <= config.width):
            raise ValueError(
                f"`base_size` {height}x{width} must fit in the upscaler's {config.height}x{config.width}."
            )
        low, high = noise_levels
        if not 0 < low <= high < math.inf:
            raise ValueError(f"`noise_levels` must be a range above 0, got {low} and {high}.")
        self.base_size, self.noise_levels = (height, width), (low, high)

    def diffusion_loss(
        self, video: torch.Tensor, *inputs: torch.Tensor, **conditions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As [`VIMITrainingModel.diffusion_loss`], with the corrupted base of the same videos."""
        base, level = self.corrupted_base(video)
        level = self.scheduler.precondition_noise(level)
        return super().diffusion_loss(video, *inputs, concatenated=base, noise_level=level, **conditions)

    def corrupted_base(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What the upscaler sees of the base for clean videos of shape `(batch_size, channels, num_frames, height,
        width)`: the same shape, and the noise levels of shape `(batch_size,)`.
        """
        options: dict[str, Any] = {"device": video.device}
        if not self.training:
            options["generator"] = torch.Generator(video.device).manual_seed(EVALUATION_SEED)
        low, high = self.noise_levels
        # drawn for each sample for itself: sigmas rise along the batch, and levels must not go with them
        level = low * (high / low) ** torch.rand(video.shape[0], **options)
        noise = torch.randn(video.shape, dtype=video.dtype, **options)
        large = enlarge(reduce(video, *self.base_size), *video.shape[3:])
        return corrupt(large, noise, level), level


def reduce(video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    The base of clean videos: each pixel the mean over its area.

    Args:
        video (`torch.Tensor` of shape `(batch_size, channels, num_frames, high_height, high_width)`): Videos.
        height (`int`), width (`int`): Size in pixels.
    """
    frames = video.transpose(1, 2)
    reduced = F.interpolate(frames.flatten(0, 1), size=(height, width), mode="area")
    return reduced.unflatten(0, frames.shape[:2]).transpose(1, 2)


def upscaling_options(config: TrainingConfig) -> dict[str, Any]:
    """
    The section `model.upscaling` of a configuration.

    Raises:
        ValueError: If it is missing or has other keys than `base_size` and `noise_levels`, of two numbers each.
    """
    options = config.model.get("upscaling")
    if not isinstance(options, dict) or not {"base_size"} <= set(options) <= {"base_size", "noise_levels"}:
        raise ValueError(
            "An upscaler's configuration needs a section `model.upscaling` with `base_size: [height, width]` and, if "
            f"wanted, `noise_levels: [lowest, highest]`; got {options!r}."
        )
    for name, value in options.items():
        if (
            not isinstance(value, (list, tuple))
            or len(value) != 2
            or not all(isinstance(v, (int, float)) for v in value)
        ):
            raise ValueError(f"`model.upscaling.{name}` must be two numbers, got {value!r}.")
    return options


def build_upscaler_components(config: TrainingConfig, texts: Iterable[str]) -> dict[str, Any]:
    """
    Builds or loads `text_encoder`, `text_processor`, `transformer` and `scheduler` of an upscaler, in fp32: new from
    the `model` section, or those of `pretrained_model_name_or_path`, which may be an upscaler or, as in the paper, a
    base model ([`upscaler_from_base`]).

    Args:
        config ([`TrainingConfig`]): With a base model, `model.scheduler.sigma_in` and the size in `model.transformer`.
        texts (`Iterable[str]`): Text to train a new tokenizer on; unused with a pretrained pipeline.

    Raises:
        ValueError: If the configuration and the pretrained pipeline do not fit.
    """
    model = {name: value for name, value in config.model.items() if name != "upscaling"}
    path = config.pretrained_model_name_or_path
    if not path:
        return build_components(dataclasses.replace(config, model=model), texts)
    if unknown := set(model) - {"transformer", "scheduler"}:
        raise ValueError(
            f"With a pretrained pipeline `model` can only hold `transformer`, `scheduler` and `upscaling`, not "
            f"{sorted(unknown)}."
        )
    changes, scheduling = model.get("transformer", {}), model.get("scheduler", {})
    is_base = DiffusionPipeline.load_config(path)["_class_name"] == VIMIPipeline.__name__
    if is_base and "sigma_in" not in scheduling:
        raise ValueError(
            "An upscaler from a base model needs `model.scheduler.sigma_in`: the base's times the enlargement."
        )
    pipeline_class = VIMIPipeline if is_base else VIMIUpscalePipeline
    pipeline = pipeline_class.from_pretrained(path, dtype=torch.float32)
    components = {name: pipeline.components[name] for name in COMPONENTS}
    build = upscaler_from_base if is_base else extend_transformer
    components["transformer"] = build(components["transformer"], changes)
    components["scheduler"] = EDMVideoScheduler.from_config(components["scheduler"].config, **scheduling)
    return components


def upscaler_from_base(base: VIMITransformer3DModel, changes: dict[str, Any]) -> VIMITransformer3DModel:
    """
    An upscaler that starts from a base model's weights, as Snap Video's does (2402.14797, table 9). The weights for
    the channels of the base video start at zero, positions are stretched to the new grid, what a base lacks (the noise
    level's token, further latents) starts fresh, and `input_skip` is left out.

    Args:
        base ([`VIMITransformer3DModel`]): The base model.
        changes (`dict`): Options that differ, such as `height`, `width`, `group_size` and `shared_positions`.

    Raises:
        ValueError: If a change gives weights another shape for which there is no rule.
    """
    options = {key: value for key, value in base.config.items() if not key.startswith("_")}
    channels = base.out_channels
    options |= {"in_channels": 2 * channels, "out_channels": channels, "noise_level_token": True, "input_skip": False}
    upscaler = VIMITransformer3DModel(**{**options, **changes})
    old, new = base.state_dict(), upscaler.state_dict()
    if base.config.patch_dim == upscaler.config.patch_dim:
        old["pos_embed"] = resample_positions(old["pos_embed"], tuple(new["pos_embed"].shape[:3]))
        # the channels come first in a patch, and those of the noisy video lead
        first = new["patch_embed.weight"].zero_()
        first[:, : old["patch_embed.weight"].shape[1]] = old["patch_embed.weight"]
        old["patch_embed.weight"] = first
    for name, weight in old.items():
        if name in new and new[name].shape == weight.shape:
            new[name] = weight
        elif name != "latents" and not name.startswith("skip_gain."):
            raise ValueError(f"The changes {changes} do not fit the base's weights: {name} has no place any more.")
    upscaler.load_state_dict(new)
    return upscaler
