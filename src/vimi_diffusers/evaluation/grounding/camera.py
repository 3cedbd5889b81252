# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which way the camera turns: one steady pan that best explains all pairs of frames.

On a cylinder around the camera a pan is a shift of columns. Each candidate's shift is undone for frames 1, 2 and 4
apart; the candidate with the least remaining difference wins. Differences are truncated, and the middle of the
picture, where subjects are, counts less, so that a moving subject does not pass for a moving camera.
"""

import math

import torch
import torch.nn.functional as F

from .geometry import FIELD_OF_VIEW, SIDE, pixel_centres, working_copy


CAMERAS = {-1: "left", 0: "still", 1: "right"}
LAGS = (1, 2, 4)
LARGEST_SHIFT, STEP = 67.5, 3.75  # columns over the whole video; 0.25 a frame in 16 frames
SMALLEST_PAN = 13.0  # degrees; emoji world's cameras turn by 25 to 60 or not at all
TRUNCATION = 0.1
MIDDLE, MIDDLE_WEIGHT = 0.3, 0.35


@torch.no_grad()
def estimate_pan(videos: torch.Tensor) -> torch.Tensor:
    """
    How far the camera turns.

    Args:
        videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): Square RGB videos in [0, 1] of at least 8 frames.

    Returns:
        `torch.Tensor` of shape `(B,)`: degrees over the whole video for a field of view of 75, positive to the right;
        exactly 0 below 13.

    Raises:
        `ValueError`: if the videos are too short or not square.
    """
    frames = _on_cylinder(working_copy(videos))
    steps = frames.shape[1] - 1
    x, y = pixel_centres(frames.device)
    middle = ((x - 0.5).abs() < MIDDLE) & ((y - 0.56).abs() < MIDDLE)
    weights = torch.where(middle, MIDDLE_WEIGHT, 1.0)
    candidates = torch.arange(-LARGEST_SHIFT, LARGEST_SHIFT + STEP, STEP, device=frames.device)
    costs = torch.stack([_cost(frames, shift / steps, weights) for shift in candidates.tolist()], dim=1)
    # Of equal costs, as of frames without texture, the smallest shift is taken.
    order = candidates.abs().argsort(stable=True)
    pan = candidates[order][costs[:, order].argmin(dim=1)] * FIELD_OF_VIEW / SIDE
    return torch.where(pan.abs() < SMALLEST_PAN, 0.0, pan)


def _on_cylinder(videos: torch.Tensor) -> torch.Tensor:
    half = math.radians(FIELD_OF_VIEW) / 2
    x, y = (position * 2 - 1 for position in pixel_centres(videos.device))
    angle = x * half
    grid = torch.stack([angle.tan() / math.tan(half), y * math.cos(half) / angle.cos()], dim=-1)
    flat = videos.flatten(0, 1)
    on_cylinder = F.grid_sample(flat, grid.expand(len(flat), -1, -1, -1), align_corners=False, padding_mode="border")
    return on_cylinder.unflatten(0, videos.shape[:2])


def _cost(frames: torch.Tensor, shift: float, weights: torch.Tensor) -> torch.Tensor:
    """Mean truncated difference `(B,)` where the picture moves by `shift` columns to the left from frame to frame."""
    cost = torch.zeros(len(frames), device=frames.device)
    for lag in LAGS:
        columns = shift * lag
        whole = math.floor(-columns)
        part = -columns - whole
        before = frames[:, :-lag]
        moved = torch.roll(before, whole, -1) * (1 - part) + torch.roll(before, whole + 1, -1) * part
        difference = (moved - frames[:, lag:]).abs().mean(dim=2).clamp(max=TRUNCATION)
        lost = math.ceil(abs(columns))
        seen = slice(0, SIDE - lost) if columns > 0 else slice(lost, SIDE)
        weight = weights[:, seen]
        cost += (difference[..., seen] * weight).mean(dim=1).sum(dim=(1, 2)) / weight.sum()
    return cost / len(LAGS)
