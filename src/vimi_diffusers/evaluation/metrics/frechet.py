# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The Frechet distance between two sets of features: FVD of video features, FID of image features."""

import torch

from .extractor import check_same_extractor
from .statistics import FeatureStatistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, allow_rank_deficient: bool = False) -> float:
    r"""
    Squared Frechet (2-Wasserstein) distance of the normal distributions with two sets' means and covariances,
    `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`: FVD with features of videos
    ([Unterthiner et al., 2018](https://huggingface.co/papers/1812.01717)), FID with features of images
    ([Heusel et al., 2017](https://huggingface.co/papers/1706.08500)).

    The last trace is the sum of the singular values of `S_a^(1/2) S_b^(1/2)`, with both roots by eigenvalues of
    symmetric matrices. So there are no complex numbers and no root of a nearly singular product, singular covariances
    need no noise on their diagonal, and the distance of a set to itself is 0 up to rounding.

    A covariance of D dimensions from n samples has at most the rank n - 1. With fewer than D + 1 the value says more
    about n than about the videos, so that is an error here. Heusel et al. ask for at least as many samples as
    dimensions (2,048 for Inception) and advise 10,000; FVD is commonly given for 2,048 or 10,000 videos and 400
    dimensions. Also above D + 1 the estimate is biased upwards by about 1/n: compare equal numbers of samples only.

    Args:
        a ([`FeatureStatistics`]): One set.
        b ([`FeatureStatistics`]): The other set, of the same extractor.
        allow_rank_deficient (`bool`, *optional*, defaults to `False`):
            Calculate it from fewer samples, at least 2. Not comparable with published values.

    Returns:
        `float`: at least 0; 0 for equal means and covariances.

    Raises:
        `ValueError`: if the sets are of different extractors or too small, with the number that is needed.
    """
    check_same_extractor(b.settings["identity"], a.settings["identity"], "The second set")
    needed = 2 if allow_rank_deficient else a.dimension + 1
    if min(a.count, b.count) < needed:
        ways = (
            "add samples, take features of fewer dimensions (`ProjectedFeatures`), or pass "
            "`allow_rank_deficient=True` for a value that compares with nothing"
        )
        raise ValueError(
            f"A covariance of {a.dimension} dimensions needs at least {needed} samples in each set, there are "
            f"{a.count} and {b.count}: {'add samples' if allow_rank_deficient else ways}."
        )
    covariances = [a.covariance, b.covariance.to(a.device)]
    first, second = map(_root, covariances)
    overlap = torch.linalg.svdvals(first @ second).sum()
    means = (a.mean - b.mean.to(a.device)).square().sum()
    distance = means + covariances[0].trace() + covariances[1].trace() - 2 * overlap
    return max(float(distance), 0.0)  # rounding may leave it just below


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Symmetric square root; eigenvalues that are zero but for rounding are zero."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    rounding = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(values > rounding, values, 0.0).clamp(min=0).sqrt()
    return (vectors * roots) @ vectors.T
