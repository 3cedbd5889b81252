# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Features made of other features: fewer dimensions for small sets, and videos by a network for images."""

import numpy as np
import torch

from .extractor import FeatureExtractor, ImageFeatureExtractor


class ProjectedFeatures(ImageFeatureExtractor):
    """
    A fixed random projection of another extractor's features, for sets with fewer samples than these have dimensions.
    Distances are kept on average (Johnson and Lindenstrauss, 1984), more roughly the fewer dimensions are left; values
    compare with none of the whole features.

    Args:
        extractor ([`ImageFeatureExtractor`]): The other extractor.
        dimension (`int`, *optional*, defaults to `64`): Dimensions that are left.
        seed (`int`, *optional*, defaults to `0`): Of `numpy.random.RandomState`, which is the same everywhere.

    Raises:
        `ValueError`: if `dimension` is not smaller than the other extractor's.
    """

    def __init__(self, extractor: ImageFeatureExtractor, dimension: int = 64, seed: int = 0):
        if not 1 <= dimension < extractor.dimension:
            raise ValueError(f"`dimension` must be from 1 to {extractor.dimension - 1}, not {dimension}.")
        if extractor.output != "features":
            raise ValueError(f"{extractor.name!r} gives {extractor.output}: only features can be projected.")
        super().__init__(
            f"{extractor.name}, {dimension} random projections",
            dimension,
            {"kind": "projection", "seed": seed, "of": extractor.identity},
            extractor.preprocessing,
            batch_size=extractor.batch_size,
            device=extractor.device,
        )
        self.extractor = extractor
        matrix = np.random.RandomState(seed).standard_normal((extractor.dimension, dimension)) / dimension**0.5
        self.matrix = torch.from_numpy(matrix).float().to(extractor.device)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.extractor.encode(pixels).float() @ self.matrix


class AppearanceMotionFeatures(FeatureExtractor):
    """
    Features of videos by a network for images: the mean of the frames' features, which say what is seen, beside the
    mean absolute difference of neighbouring frames' features, which says how much changes. For a Frechet distance
    that also feels shuffled, frozen and flickering frames where no video network is at hand.

    It knows no direction of time: a video played backwards has the same features. Change is that between two frames,
    so videos must have equal frame rates. Being no I3D, it gives no FVD that compares with published ones.

    Args:
        extractor ([`ImageFeatureExtractor`]): The network for images; give it few dimensions ([`ProjectedFeatures`])
            where videos are few, since a covariance needs more videos than twice its dimensions.
    """

    def __init__(self, extractor: ImageFeatureExtractor):
        if extractor.output != "features":
            raise ValueError(f"{extractor.name!r} gives {extractor.output}: appearance and motion need features.")
        identity = {"kind": "appearance-motion", "of": extractor.identity}
        super().__init__(f"appearance and motion by {extractor.name}", 2 * extractor.dimension, identity)
        self.extractor = extractor

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        return self.pool(self.extractor.frames(videos))

    def pool(self, frames: torch.Tensor) -> torch.Tensor:
        """
        Features of videos whose frames' features are there already.

        Args:
            frames (`torch.Tensor` of shape `(B, T, D)`): `extractor.frames(videos)`.

        Returns:
            `torch.Tensor` of shape `(B, 2 D)`.

        Raises:
            `ValueError`: if there is only one frame.
        """
        if frames.ndim != 3 or frames.shape[1] < 2:
            raise ValueError(f"Motion needs features (B, T, D) of at least 2 frames, got {tuple(frames.shape)}.")
        return torch.cat([frames.mean(dim=1), frames.diff(dim=1).abs().mean(dim=1)], dim=1)


def default_video_extractor(dimension: int = 64, device: str | torch.device = "cpu") -> AppearanceMotionFeatures:
    """
    The extractor of videos that needs no network: EfficientNet-Lite0, projected, appearance and motion.

    Args:
        dimension (`int`, *optional*, defaults to `64`): Of the projection; the features have twice as many.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """
    from .efficientnet import EfficientNetLite0

    return AppearanceMotionFeatures(ProjectedFeatures(EfficientNetLite0(device=device), dimension))
