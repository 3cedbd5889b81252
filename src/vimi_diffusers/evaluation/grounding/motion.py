# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How the subject moves: the trajectory whose two layers, subject and background, best explain the video.

A trajectory says where the subject is in each frame and how large. Between two frames, a pixel near the subject is
explained by the subject's motion or by the camera's, whichever leaves less; any other pixel by the camera's alone. The
gain of a trajectory is the share of the differences left by the camera that it takes away. Nothing is known of the
subject's looks, and no threshold is set on colours.

The candidates are emoji world's moves in several amplitudes, so that a generated motion may be smaller or larger than
a real one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from ...emoji_world.captions import MOVES
from .geometry import inside, pixel_centres, sample, turned, working_copy


LAGS = (1, 2, 3)
TRUNCATION = 0.25
WINDOW = 5  # pixels over which differences are averaged
SUBJECT_SIDE = 0.56  # of the square in which a pixel may belong to the subject
CENTRE_X, CENTRE_Y = 0.5, 0.56
# Gains that a motion must reach, tuned on concepts of the train split. A drawing's own animation takes away some of
# the differences under any trajectory; the small displacements of a zoom gain less than a shift.
SMALLEST_SHIFT_GAIN, SMALLEST_ZOOM_GAIN = 0.2, 0.12
ZOOM_MARGIN = 0.02  # over "still", where the camera pans
SMALLEST_CHANGE = 0.002  # mean difference below which nothing moves: half a step of a byte


@dataclass(frozen=True)
class Trajectory:
    """
    Attributes:
        move (`str`): One of `MOVES`.
        x, y, size (`torch.Tensor` of shape `(T,)`): Centre in parts of the side; size relative to the middle's.
    """

    move: str
    x: torch.Tensor
    y: torch.Tensor
    size: torch.Tensor


@lru_cache(maxsize=4)
def trajectories(num_frames: int) -> tuple[Trajectory, ...]:
    """The candidates for videos of `num_frames` frames."""
    return tuple(_trajectories(torch.linspace(0, 1, num_frames)))


def _trajectories(time: torch.Tensor) -> Iterator[Trajectory]:
    rest, one, turn = torch.zeros_like(time), torch.ones_like(time), 2 * math.pi * time
    yield Trajectory("still", rest + CENTRE_X, rest + CENTRE_Y, one)
    for distance in (0.25, 0.4, 0.5, 0.6):
        path = distance * (time - 0.5)
        yield Trajectory("right", CENTRE_X + path, rest + CENTRE_Y, one)
        yield Trajectory("left", CENTRE_X - path, rest + CENTRE_Y, one)
        yield Trajectory("down", rest + CENTRE_X, 0.5 + path, one)
        yield Trajectory("up", rest + CENTRE_X, 0.5 - path, one)
    for zoom in (0.21, 0.3):
        for x in (0.42, 0.5, 0.58):
            for y in (0.5, 0.6):
                for move, sign in (("near", 1), ("far", -1)):
                    yield Trajectory(move, rest + x, rest + y, torch.exp(sign * zoom * (2 * time - 1)))
    for radius in (0.09, 0.14):
        yield Trajectory("circle", CENTRE_X + radius * turn.cos(), CENTRE_Y + radius * turn.sin(), one)
    for height in (0.14, 0.22):
        yield Trajectory("bounce", rest + CENTRE_X, CENTRE_Y + height * (0.5 - turn.sin().abs()), one)


@dataclass(frozen=True)
class Motions:
    """
    Attributes:
        moves (`list[str]`): Each video's move, one of `MOVES`.
        trajectory (`torch.Tensor` of shape `(B,)`): Numbers of the trajectories in [`trajectories`].
        gains (`torch.Tensor` of shape `(B, len(MOVES))`): The best gain of each move.
    """

    moves: list[str]
    trajectory: torch.Tensor
    gains: torch.Tensor


@torch.no_grad()
def estimate_motions(videos: torch.Tensor, pan: torch.Tensor) -> Motions:
    """
    Finds the subjects' motion.

    Args:
        videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): Square RGB videos in [0, 1] of at least 8 frames.
        pan (`torch.Tensor` of shape `(B,)`): Their cameras' turn, of [`estimate_pan`].

    Returns:
        [`Motions`]

    Raises:
        `ValueError`: if the videos are too short or not square.
    """
    videos = working_copy(videos)
    candidates = trajectories(videos.shape[1])
    left = torch.zeros(len(videos), len(candidates), device=videos.device)
    total = torch.zeros(len(videos), device=videos.device)
    for lag in LAGS:
        by_camera = _camera_differences(videos, pan, lag)
        total += by_camera.sum(dim=(1, 2, 3))
        for number, candidate in enumerate(candidates):
            left[:, number] += _differences(videos, by_camera, candidate, lag).sum(dim=(1, 2, 3))
    pixels = sum(videos.shape[1] - lag for lag in LAGS) * videos.shape[-1] * videos.shape[-2]
    gains = (total[:, None] - left) / total[:, None].clamp(min=SMALLEST_CHANGE * pixels)
    of_move = {move: [n for n, each in enumerate(candidates) if each.move == move] for move in MOVES}
    best = torch.stack([gains[:, numbers].max(dim=1).values for numbers in of_move.values()], dim=1)
    chosen = [_choose(dict(zip(MOVES, row)), float(turn) == 0) for row, turn in zip(best.tolist(), pan)]
    numbers = [of_move[move][int(row[of_move[move]].argmax())] for move, row in zip(chosen, gains)]
    return Motions(chosen, torch.tensor(numbers), best)


def _choose(gains: dict[str, float], camera_is_still: bool) -> str:
    still = gains.pop("still")
    move = max(gains, key=gains.__getitem__)
    zooms = move in ("near", "far")
    if camera_is_still:  # a still subject is part of the background, and gains nothing
        enough = gains[move] >= (SMALLEST_ZOOM_GAIN if zooms else SMALLEST_SHIFT_GAIN)
    else:
        enough = gains[move] > still + (ZOOM_MARGIN if zooms else 0)
    return move if enough else "still"


def _smooth(differences: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(differences, WINDOW, 1, WINDOW // 2, count_include_pad=False)


def _camera_differences(videos: torch.Tensor, pan: torch.Tensor, lag: int) -> torch.Tensor:
    """What the camera's motion leaves between frames `lag` apart: `(B, T - lag, 64, 64)`, 0 out of view."""
    pairs = videos.shape[1] - lag
    before, after = videos[:, :-lag], videos[:, lag:]
    x, y = turned(pan * lag / (videos.shape[1] - 1))
    grid = [position.repeat_interleave(pairs, 0) for position in (x, y)]
    moved = sample(after.flatten(0, 1), *grid).unflatten(0, after.shape[:2])
    differences = (moved - before).abs().mean(dim=2).clamp(max=TRUNCATION)
    return _smooth(differences) * inside(x, y)[:, None]


def _differences(videos: torch.Tensor, by_camera: torch.Tensor, path: Trajectory, lag: int) -> torch.Tensor:
    """What is left where the subject may take `path`."""
    batch, num_frames = videos.shape[:2]
    before, after = videos[:, :-lag], videos[:, lag:]
    column, row = pixel_centres(videos.device)
    x, y, size = (value.to(videos.device)[:, None, None] for value in (path.x, path.y, path.size))
    from_x, from_y = column - x[:-lag], row - y[:-lag]
    growth = size[lag:] / size[:-lag]
    to_x, to_y = x[lag:] + growth * from_x, y[lag:] + growth * from_y
    # All videos take the same path, so that they are channels of one sampling.
    channels = after.transpose(0, 1).flatten(1, 2)
    moved = sample(channels, to_x, to_y).unflatten(1, (batch, 3)).transpose(0, 1)
    by_subject = _smooth((moved - before).abs().mean(dim=2).clamp(max=TRUNCATION))
    half = SUBJECT_SIDE / 2 * size[:-lag]
    near = (from_x.abs() < half) & (from_y.abs() < half) & inside(to_x, to_y)
    return torch.where(near, torch.minimum(by_subject, by_camera), by_camera)
