# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How much moves in a video: optical flow, and the share of videos that are dynamic."""

import numpy as np
import torch

from .extractor import check_videos


FLOW_ESTIMATOR = "OpenCV DIS, preset medium"  # Dense Inverse Search, Kroeger et al., 2016; no weights
RATE = 8.0  # frames per second that are compared
REFERENCE_SIDE = 256  # speeds are pixels of videos whose shorter side is this
TOP = 0.05  # share of pixels, the fastest ones, whose mean is a frame's speed
THRESHOLD = 6.0  # speed of a dynamic pair of frames
SHARE = 0.25  # of frames that must be dynamic


def flow_speeds(videos: torch.Tensor, fps: float) -> torch.Tensor:
    """
    Speed of the fastest 5 % of pixels between frames at about 8 per second, by OpenCV's DIS flow on grey values.

    Args:
        videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): RGB in [0, 1]; H and W at least 16.
        fps (`float`): Their frames per second. Below 8 all frames are compared, and less moves slower than it is.

    Returns:
        `torch.Tensor` of shape `(B, pairs)`: pixels for each pair, as of a video with a shorter side of 256.

    Raises:
        `ImportError`: if OpenCV is not installed.
        `ValueError`: if videos are too small or too short to compare frames.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError('Optical flow needs OpenCV: pip install "vimi_diffusers[eval]".') from error
    check_videos(videos)
    height, width = videos.shape[-2:]
    if fps <= 0 or min(height, width) < 16:
        raise ValueError(
            f"Flow needs a positive `fps` and sides of at least 16 pixels, got {fps} and {width}x{height}."
        )
    videos = videos[:, :: max(1, round(fps / RATE))]
    if videos.shape[1] < 2:
        raise ValueError(f"Less than 2 frames are left at {RATE:g} per second: give longer videos.")
    pixels = (videos.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    top = max(1, int(height * width * TOP))
    speeds = np.zeros((len(pixels), pixels.shape[1] - 1))
    for speed, video in zip(speeds, pixels):
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
        for pair, (before, after) in enumerate(zip(grey, grey[1:])):
            lengths = np.linalg.norm(flow.calc(before, after, None), axis=-1).ravel()
            speed[pair] = np.partition(lengths, -top)[-top:].mean()
    return torch.from_numpy(speeds) * (REFERENCE_SIDE / min(height, width))


def is_dynamic(speeds: torch.Tensor, threshold: float = THRESHOLD, share: float = SHARE) -> torch.Tensor:
    """
    Whether videos move. Their share is the dynamic degree, by the rule of VBench ([Huang et al.,
    2023](https://huggingface.co/papers/2311.17982)), which however takes RAFT's flow: values do not compare with it.

    Args:
        speeds (`torch.Tensor` of shape `(B, pairs)`): Of [`flow_speeds`].
        threshold (`float`, *optional*, defaults to `6.0`): Speed above which a pair of frames counts.
        share (`float`, *optional*, defaults to `0.25`): Pairs that must count, as a share of the frames compared.

    Returns:
        `torch.Tensor` of shape `(B,)`: truth values; [`ScalarStatistics`] takes them.
    """
    if speeds.ndim != 2 or not speeds.shape[1]:
        raise ValueError(f"Speeds must have the shape (B, pairs), got {tuple(speeds.shape)}.")
    needed = max(1, round(share * (speeds.shape[1] + 1)))
    return (speeds > threshold).sum(dim=1) >= needed
