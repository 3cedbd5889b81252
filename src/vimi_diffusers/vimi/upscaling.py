# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the upscaler sees of the base video; training and sampling share it."""

import torch
import torch.nn.functional as F


def enlarge(video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """
    Bilinear enlargement of every frame.

    Args:
        video (`torch.Tensor` of shape `(batch_size, channels, num_frames, low_height, low_width)`): Base videos.
        height (`int`), width (`int`): Size in pixels.
    """
    frames = video.transpose(1, 2)
    enlarged = F.interpolate(frames.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False)
    return enlarged.unflatten(0, frames.shape[:2]).transpose(1, 2)


def corrupt(video: torch.Tensor, noise: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
    """
    The enlarged base video with noise, at unit variance for data of unit variance: `(z + s * noise) / sqrt(1 + s**2)`.

    Trained on clean videos' reductions alone, an upscaler trusts every artefact of the base; noise of a level that it
    is told hides them (Snap Video, 2402.14797, appendix; cascades, 2106.15282).

    Args:
        video (`torch.Tensor` of shape `(batch_size, channels, num_frames, height, width)`): In `[-1, 1]`.
        noise (`torch.Tensor` of the same shape): Standard normal noise.
        noise_level (`torch.Tensor` of shape `(batch_size,)`): `s`, above 0.
    """
    level = noise_level.view(-1, 1, 1, 1, 1)
    return (video + level * noise) / (1 + level**2).sqrt()
