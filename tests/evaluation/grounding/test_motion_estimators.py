"""Estimators of motion and camera on videos whose truth is known, from shapes and from the small emoji world."""

import math

import pytest
import torch

from vimi_diffusers.emoji_world.captions import MOVES
from vimi_diffusers.evaluation.grounding import estimate_motions, estimate_pan
from vimi_diffusers.evaluation.grounding.geometry import working_copy


def texture(width=256, seed=0):
    noise = torch.rand(1, 3, 16, width // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (64, width), mode="bicubic").clamp(0, 1)[0]


def clip(move, pan=0, frames=16):
    """A patterned disc before a patterned wall; `pan` columns of the wall pass by."""
    wall, skin = texture(), texture(64, seed=1)
    row, column = torch.meshgrid(torch.arange(64) / 64, torch.arange(64) / 64, indexing="ij")
    video = []
    for number in range(frames):
        time = number / (frames - 1)
        turn = 2 * math.pi * time
        dx, dy = {
            "right": (time - 0.5, 0), "left": (0.5 - time, 0), "up": (0, 0.5 - time), "down": (0, time - 0.5),
            "circle": (0.28 * math.cos(turn), 0.28 * math.sin(turn)),
            "bounce": (0, 0.44 * (0.5 - abs(math.sin(turn)))),
        }.get(move, (0, 0))  # fmt: skip
        x, y = 0.5 + 0.5 * dx, 0.55 + 0.5 * dy
        size = 1.35 ** ({"near": 1, "far": -1}.get(move, 0) * (2 * time - 1))
        grid = torch.stack([(column - x) / size, (row - y) / size], -1)
        disc = torch.nn.functional.grid_sample(skin[None], grid[None] * 3, align_corners=False)[0]
        start = 96 + round(pan * (time - 0.5))
        hit = ((column - x) ** 2 + (row - y) ** 2).sqrt() < 0.2 * size
        video.append(torch.where(hit, disc, wall[:, :, start : start + 64]))
    return torch.stack(video)


@pytest.mark.parametrize("pan", [0, 36])
def test_every_motion_of_a_disc_is_told(pan):
    videos = torch.stack([clip(move, pan) for move in MOVES])
    turn = estimate_pan(videos)
    assert estimate_motions(videos, turn).moves == list(MOVES)
    assert (turn > 0).all() if pan else (turn == 0).all()


def test_reversed_videos_move_the_other_way():
    videos = torch.stack([clip("right", 40), clip("near", -40), clip("up")]).flip(1)
    turn = estimate_pan(videos)
    assert turn.sign().tolist() == [-1, 1, 0]
    assert estimate_motions(videos, turn).moves == ["left", "far", "down"]


def test_the_turn_is_in_degrees():
    turn = estimate_pan(clip("still", 36)[None])
    assert 30 < float(turn) < 50  # 36 of 64 columns of a view of 75 degrees


@pytest.mark.parametrize("video", [torch.zeros(1, 16, 3, 64, 64), clip("still")[:1].expand(16, -1, -1, -1)[None]])
def test_a_picture_that_never_changes_is_still(video):
    turn = estimate_pan(video)
    assert float(turn) == 0 and estimate_motions(video, turn).moves == ["still"]


def test_size_and_length_of_videos_do_not_matter():
    video = clip("left", frames=32)[None]
    video = torch.nn.functional.interpolate(video[0], (96, 96), mode="bilinear")[None].clamp(0, 1)
    assert working_copy(video).shape == (1, 16, 3, 64, 64)
    assert estimate_motions(video, estimate_pan(video)).moves == ["left"]


@pytest.mark.parametrize("shape", [(1, 7, 3, 64, 64), (1, 16, 3, 64, 48)])
def test_short_and_oblong_videos_are_refused(shape):
    with pytest.raises(ValueError, match="square videos of at least 8 frames"):
        estimate_pan(torch.zeros(shape))
