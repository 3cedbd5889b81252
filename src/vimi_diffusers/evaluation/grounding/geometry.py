# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the estimators share: the size they work at, the camera's rotation, and sampling of pixels."""

import math

import torch
import torch.nn.functional as F

from ..metrics.extractor import check_videos


SIDE = 64  # pixels; videos are brought to it
MAX_FRAMES, MIN_FRAMES = 16, 8  # of longer videos, as many frames are taken evenly
FIELD_OF_VIEW = 75.0  # degrees, the middle of emoji world's 65 to 85


def working_copy(videos: torch.Tensor) -> torch.Tensor:
    """
    Videos in the size at which motion is estimated.

    Args:
        videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): Square RGB videos in [0, 1] of at least 8 frames.

    Returns:
        `torch.Tensor` of shape `(B, min(T, 16), 3, 64, 64)`: float32.

    Raises:
        `ValueError`: if the videos are too short, not square or not in [0, 1].
    """
    check_videos(videos)
    num_frames, height, width = videos.shape[1], *videos.shape[-2:]
    if height != width or num_frames < MIN_FRAMES:
        raise ValueError(
            f"Motion is estimated in square videos of at least {MIN_FRAMES} frames, got {num_frames} of "
            f"{width}x{height}: crop or generate them so."
        )
    if num_frames > MAX_FRAMES:
        videos = videos[:, torch.linspace(0, num_frames - 1, MAX_FRAMES).round().long()]
    videos = videos.float()
    if height == SIDE:
        return videos
    frames = F.interpolate(videos.flatten(0, 1), (SIDE, SIDE), mode="bilinear", antialias=True)
    return frames.unflatten(0, videos.shape[:2])


def pixel_centres(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of the pixels of a working copy, each `(64, 64)`, in parts of the side."""
    centres = (torch.arange(SIDE, device=device) + 0.5) / SIDE
    return centres[None].expand(SIDE, SIDE), centres[:, None].expand(SIDE, SIDE)


def sample(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Bilinear values of `images` `(N, C, 64, 64)` at `x` and `y`, `(N, 64, 64)` in parts of the side."""
    grid = torch.stack([x, y], dim=-1) * 2 - 1
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def inside(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Whether positions lie in the picture."""
    return (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)


def turned(yaw: torch.Tensor, field_of_view: float = FIELD_OF_VIEW) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where a view's pixels are seen after the camera has turned to the right.

    Args:
        yaw (`torch.Tensor` of shape `(N,)`): Degrees.
        field_of_view (`float`, *optional*, defaults to `75.0`): Degrees.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(N, 64, 64)`: x and y in parts of the side.
    """
    focal = 1 / math.tan(math.radians(field_of_view) / 2)
    x, y = ((position * 2 - 1) / focal for position in pixel_centres(yaw.device))
    yaw = torch.deg2rad(yaw)[:, None, None]
    depth = (x * yaw.sin() + yaw.cos()).clamp(min=1e-3)
    return (focal * (x * yaw.cos() - yaw.sin()) / depth + 1) / 2, (focal * y / depth + 1) / 2
