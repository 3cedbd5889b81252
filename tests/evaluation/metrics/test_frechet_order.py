"""The Frechet distance of videos rises with what makes videos worse."""

import pytest
import torch
import torch.nn.functional as F
from metric_cases import TinyImageExtractor, moving_squares

from vimi_diffusers.evaluation.metrics import (
    AppearanceMotionFeatures,
    FeatureStatistics,
    default_video_extractor,
    frechet_distance,
)
from vimi_diffusers.evaluation.metrics.efficientnet import PACKAGE


def blurred(videos, sigma):
    offsets = torch.arange(-8, 9, dtype=videos.dtype)
    window = torch.exp(-(offsets**2) / (2 * sigma**2))
    window = (window / window.sum()).view(1, 1, 1, -1)
    flat = F.pad(videos.flatten(0, 2)[:, None], (8, 8, 8, 8), mode="replicate")
    return F.conv2d(F.conv2d(flat, window), window.mT).view(videos.shape)


def noisy(videos, level):
    noise = torch.randn(videos.shape, generator=torch.Generator().manual_seed(0))
    return (videos + level * noise).clamp(0, 1)


def shuffled(videos, share):
    """A share of the videos with their frames in disorder."""
    videos, generator = videos.clone(), torch.Generator().manual_seed(0)
    for video in videos[: round(share * len(videos))]:
        video[:] = video[torch.randperm(len(video), generator=generator)]
    return videos


HARMS = {
    "blur": (blurred, (1.0, 2.0, 3.0)),
    "noise": (noisy, (0.03, 0.1, 0.3)),
    "shuffle": (shuffled, (0.3, 0.6, 1.0)),
}


def is_worse(harm, extractor, videos, others):
    """The distances to `others` of the videos as they are and with more and more harm."""
    apply, levels = HARMS[harm]
    sets = [videos, *(apply(videos, level) for level in levels)]
    statistics = [FeatureStatistics(extractor.identity).update(extractor(each)) for each in [others, *sets]]
    found = [frechet_distance(each, statistics[0]) for each in statistics[1:]]
    return found == sorted(found) and found[-1] > 1.2 * found[0]


@pytest.mark.parametrize("harm", HARMS)
def test_it_rises_with_a_random_network(harm):
    """Already a network that was never trained feels all three."""
    extractor = AppearanceMotionFeatures(TinyImageExtractor(size=32))
    assert is_worse(harm, extractor, moving_squares(150, seed=0), moving_squares(150, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_it_rises_on_emoji_world(harm, emoji_clips):
    """EfficientNet-Lite0 on real clips against others of the same world."""
    pytest.importorskip(PACKAGE)
    assert is_worse(harm, default_video_extractor(dimension=16), emoji_clips[::2], emoji_clips[1::2])


@pytest.fixture(scope="module")
def emoji_clips(world):
    """80 clips of the small world: 4 frames of 64x64 pixels."""
    from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
    from vimi_diffusers.emoji_world.samples import EmojiWorldDataset

    assets = EmojiWorldAssets.load(world)
    samples = EmojiWorldDataset(assets.index, "train", {"text-to-video": 1.0}, seed=0, length=80, size=64)
    renderer = EmojiWorldRenderer(assets, size=64)
    batches = [[samples[number] for number in range(start, start + 16)] for start in range(0, 80, 16)]
    videos = torch.cat([renderer.videos(RenderBatch.from_samples(batch, assets.index)) for batch in batches])
    return ((videos + 1) / 2).clamp(0, 1).transpose(1, 2)[:, ::4]
