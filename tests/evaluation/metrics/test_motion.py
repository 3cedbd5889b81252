import pytest
import torch
import torch.nn.functional as F

from vimi_diffusers.evaluation.metrics import flow_speeds, is_dynamic


def shifting(step, frames=6, size=64, seed=0):
    """A smooth pattern that moves to the right by `step` pixels a frame."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    pattern = F.interpolate(coarse, (size, 2 * size), mode="bicubic").clamp(0, 1)[0]
    return torch.stack([pattern[:, :, size - t * step :][:, :, :size] for t in range(frames)])[None]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_speed_is_that_of_the_pattern(step):
    speeds = flow_speeds(shifting(step), fps=8)
    assert speeds.shape == (1, 5)
    assert speeds.mean().item() == pytest.approx(step * 256 / 64, rel=0.3)  # the fastest 5 % lie at the edges


def test_speeds_do_not_depend_on_the_resolution():
    small = shifting(2, seed=1)
    large = F.interpolate(small[0], scale_factor=3, mode="bicubic").clamp(0, 1)[None]
    assert flow_speeds(large, 8).median().item() == pytest.approx(flow_speeds(small, 8).median().item(), rel=0.25)


def test_frames_are_compared_at_eight_per_second():
    video = shifting(1, frames=10)
    assert torch.equal(flow_speeds(video, fps=24), flow_speeds(video[:, ::3], fps=8))
    assert flow_speeds(video, fps=5).shape == (1, 9)


def test_a_still_video_is_not_dynamic_and_a_moving_one_is():
    videos = torch.cat([shifting(0), shifting(3)])
    speeds = flow_speeds(videos, fps=8)
    assert speeds[0].max() < 0.1
    assert is_dynamic(speeds).tolist() == [False, True]


def test_a_quarter_of_the_frames_must_move():
    speeds = torch.zeros(3, 15)
    speeds[1, :4], speeds[2, :3] = 7.0, 7.0
    assert is_dynamic(speeds).tolist() == [False, True, False]
    assert is_dynamic(speeds, threshold=8.0).tolist() == [False] * 3
    assert is_dynamic(torch.tensor([[7.0]])).tolist() == [True]


def test_videos_without_flow_are_named():
    with pytest.raises(ValueError, match="at least 16 pixels, got 8 and 12x40"):
        flow_speeds(torch.rand(1, 4, 3, 40, 12), 8)
    with pytest.raises(ValueError, match="positive `fps`.*got 0"):
        flow_speeds(torch.rand(1, 4, 3, 40, 40), 0)
    with pytest.raises(ValueError, match="Less than 2 frames are left"):
        flow_speeds(torch.rand(1, 3, 3, 40, 40), 30)
