# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where the subject is: what differs from the place behind it, cut out by GrabCut.

The video itself gives a plate of its background: pixels away from the subject's path, brought together by the
camera's turn. Near the path, what differs from the plate is likely the subject. What is always covered, all of a
subject that stays before a camera that stays, is told by GrabCut's colours alone. Nothing of the references or of a
true clip enters.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .geometry import SIDE, inside, pixel_centres, sample, turned, working_copy
from .motion import Motions, trajectories


PATH_SIDE, OUTER_SIDE, CORE_SIDE = 0.72, 0.80, 0.40  # of squares around the subject's centre, times its size
SAME, DIFFERENT = 0.05, 0.12  # mean difference of RGB values from the plate
ITERATIONS = 3
SMALLEST_SHARE, SPECK = 0.25, 0.1  # of the seeds' area; of the largest part's
CROP_SIDE = 64
SHOWN = (0.25, 0.5, 0.75)  # of the video, the frames that are looked at


@torch.no_grad()
def subject_crops(videos: torch.Tensor, pan: torch.Tensor, motions: Motions) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cuts the subjects out of three frames of each video.

    Args:
        videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): Square RGB videos in [0, 1].
        pan (`torch.Tensor` of shape `(B,)`): Of [`estimate_pan`].
        motions ([`Motions`]): Of [`estimate_motions`].

    Returns:
        `tuple`: crops `(B, 3, 3, 64, 64)` on white, as [`crop_on_white`] makes them, and whether there is a subject in
        each, `(B, 3)`.

    Raises:
        `ImportError`: if OpenCV is not installed.
    """
    videos = working_copy(videos)
    num_frames = videos.shape[1]
    crops = torch.ones(len(videos), len(SHOWN), 3, CROP_SIDE, CROP_SIDE)
    found = torch.zeros(len(videos), len(SHOWN), dtype=torch.bool)
    for video, (frames, turn, number) in enumerate(zip(videos, pan, motions.trajectory.tolist())):
        for place, share in enumerate(SHOWN):
            shown = round(share * (num_frames - 1))
            mask = _subject_mask(frames, float(turn), number, shown)
            if mask.any():
                crops[video, place] = crop_on_white(frames[shown].cpu(), torch.from_numpy(mask).float())
                found[video, place] = True
    return crops, found


def crop_on_white(image: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """
    What a mask shows of a picture, on white, in a square just around it.

    Args:
        image (`torch.Tensor` of shape `(3, H, W)`): RGB in [0, 1].
        alpha (`torch.Tensor` of shape `(H, W)`): In [0, 1], somewhere above 0.5.

    Returns:
        `torch.Tensor` of shape `(3, 64, 64)`.
    """
    rows, columns = torch.where(alpha > 0.5)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    image = (image * alpha + 1 - alpha)[:, top:bottom, left:right]
    tall, wide = image.shape[1:]
    side = round(max(tall, wide) * 1.1) + 1
    above, before = (side - tall) // 2, (side - wide) // 2
    image = F.pad(image, (before, side - wide - before, above, side - tall - above), value=1.0)
    return F.interpolate(image[None], (CROP_SIDE,) * 2, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _window(x: float, y: float, side: float) -> torch.Tensor:
    column, row = pixel_centres(torch.device("cpu"))
    return ((column - x).abs() < side / 2) & ((row - y).abs() < side / 2)


def _subject_mask(frames: torch.Tensor, pan: float, number: int, shown: int) -> np.ndarray:
    """Truth values `(64, 64)` of one frame."""
    frames, path = frames.cpu(), trajectories(len(frames))[number]
    covers = [_window(float(x), float(y), PATH_SIDE * float(s)) for x, y, s in zip(path.x, path.y, path.size)]
    yaw = (torch.arange(len(frames)) - shown) * pan / (len(frames) - 1)
    x, y = turned(yaw)
    moved = sample(torch.cat([frames, (~torch.stack(covers)[:, None]).float()], dim=1), x, y)
    weight = (moved[:, 3:] > 0.99) * inside(x, y)[:, None]
    plate = (moved[:, :3] * weight).sum(0) / weight.sum(0).clamp(min=1)
    known = weight.sum(0)[0] > 0
    difference = F.avg_pool2d((frames[shown] - plate).abs().mean(0)[None], 3, 1, 1, count_include_pad=False)[0]
    centre, size = (float(path.x[shown]), float(path.y[shown])), float(path.size[shown])
    return _grab_cut(
        frames[shown],
        background=~_window(*centre, OUTER_SIDE * size),
        probably_subject=torch.where(known, difference > DIFFERENT, _window(*centre, CORE_SIDE * size)),
        probably_background=known & (difference < SAME),
    )


def _grab_cut(
    frame: torch.Tensor, background: torch.Tensor, probably_subject: torch.Tensor, probably_background: torch.Tensor
) -> np.ndarray:
    try:
        import cv2
    except ImportError as error:
        raise ImportError('Cutting out subjects needs OpenCV: pip install "vimi_diffusers[eval]".') from error
    labels = np.full((SIDE, SIDE), cv2.GC_PR_BGD, np.uint8)
    labels[probably_subject.numpy()] = cv2.GC_PR_FGD
    labels[probably_background.numpy()] = cv2.GC_PR_BGD
    labels[background.numpy()] = cv2.GC_BGD
    seeds = (labels == cv2.GC_PR_FGD).astype(np.uint8)
    if not seeds.any() or seeds.all():
        return _without_specks(seeds)
    pixels = np.ascontiguousarray((frame * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1])
    cv2.setRNGSeed(0)  # its first clusters are drawn
    cv2.grabCut(pixels, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), ITERATIONS, cv2.GC_INIT_WITH_MASK)
    mask = (labels == cv2.GC_PR_FGD).astype(np.uint8)
    # Where subject and place have the same colours, GrabCut finds next to nothing.
    return _without_specks(mask if mask.sum() >= SMALLEST_SHARE * seeds.sum() else seeds)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    import cv2

    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return np.zeros(mask.shape, bool)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    return np.isin(parts, 1 + np.flatnonzero(areas >= SPECK * areas.max()))
