# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How near a picture is to the one it should be, such as the first frame of a prediction: PSNR, SSIM, features."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from .extractor import check_videos


BEST_PSNR = 100.0  # of equal pictures, whose PSNR is infinite, which no mean survives
_WINDOW, _SIGMA = 11, 1.5


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Peak signal-to-noise ratio in dB, over all pixels and channels.

    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [0, 1], such as `videos[:, 0]`.
        targets (`torch.Tensor` of shape `(B, 3, H, W)`): What they should be.

    Returns:
        `torch.Tensor` of shape `(B,)`: at most 100, which equal pictures get.

    Raises:
        `ValueError`: if shapes differ or values are out of range.
    """
    images, targets = _pair(images, targets)
    error = (images - targets).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=10 ** (-BEST_PSNR / 10)).log10()


def ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Structural similarity ([Wang et al., 2004](https://doi.org/10.1109/TIP.2003.819861)): Gaussian windows of 11x11
    pixels with the standard deviation 1.5 that lie wholly inside (torchmetrics also counts a mirrored border), k1
    0.01, k2 0.03, mean over the colour channels.

    Args:
        images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [0, 1]; H and W at least 11.
        targets (`torch.Tensor` of shape `(B, 3, H, W)`): What they should be.

    Returns:
        `torch.Tensor` of shape `(B,)`: at most 1.

    Raises:
        `ValueError`: if shapes differ, sides are too short or values are out of range.
    """
    images, targets = _pair(images, targets)
    if min(images.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs sides of at least {_WINDOW} pixels, got {tuple(images.shape[-2:])}.")
    offsets = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).view(1, 1, 1, -1)

    def smooth(values: torch.Tensor) -> torch.Tensor:
        flat = values.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, window), window.mT).view(*values.shape[:2], -1)

    mean_a, mean_b = smooth(images), smooth(targets)
    variance_a = smooth(images**2) - mean_a**2
    variance_b = smooth(targets**2) - mean_b**2
    covariance = smooth(images * targets) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return similarity.flatten(1).mean(dim=1)


class FeatureMaps(Protocol):
    """A network with several layers to look at, such as [`EfficientNetLite0`]."""

    name: str
    identity: dict[str, Any]

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps `(B, channels, height, width)` of images `(B, 3, H, W)` in [0, 1], of several layers."""


class FeatureMapDistance:
    """
    A perceptual distance of the form of LPIPS ([Zhang et al., 2018](https://huggingface.co/papers/1801.03924)):
    feature maps of unit length at every place, squared differences, weighted over channels, mean over places, sum over
    layers.

    It is LPIPS only with the network and the learned weights of LPIPS. With any other network, or without weights,
    the name says that it is not, and values compare only with those of the same network.

    Args:
        network ([`FeatureMaps`]): The network.
        weights (`Sequence[torch.Tensor]`, *optional*): For each layer `(channels,)`; 1 without.
        name (`str`, *optional*): What it is called; needed with `weights`, such as `"lpips-vgg"`.

    Raises:
        `ValueError`: if there are weights without a name.
    """

    def __init__(self, network: FeatureMaps, weights: Sequence[torch.Tensor] | None = None, name: str | None = None):
        if weights is not None and name is None:
            raise ValueError('Say what these `weights` make it, such as `name="lpips-vgg"`.')
        self.network, self.weights = network, weights
        self.name = name or f"feature-map distance of {network.name} (not LPIPS)"
        self.identity = {"name": self.name, "of": network.identity}

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [0, 1].
            targets (`torch.Tensor` of shape `(B, 3, H, W)`): What they should be.

        Returns:
            `torch.Tensor` of shape `(B,)`: 0 for equal pictures.

        Raises:
            `ValueError`: if shapes differ, or weights do not fit the layers.
        """
        _pair(images, targets)
        pairs = list(zip(self.network.maps(images), self.network.maps(targets), strict=True))
        channels = [one.shape[1] for one, _ in pairs]
        if self.weights is not None and [weight.numel() for weight in self.weights] != channels:
            raise ValueError(
                f"The layers have {channels} channels, the weights {[weight.numel() for weight in self.weights]}."
            )
        distance = torch.zeros(len(images), dtype=torch.float64, device=pairs[0][0].device)
        for layer, (one, other) in enumerate(pairs):
            difference = (F.normalize(one.double(), dim=1) - F.normalize(other.double(), dim=1)).square()
            if self.weights is not None:
                difference = difference * self.weights[layer].to(difference).view(1, -1, 1, 1)
            distance += difference.sum(dim=1).flatten(1).mean(dim=1)
        return distance


def _pair(images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if images.shape != targets.shape or images.ndim != 4:
        raise ValueError(
            f"Pictures and targets must both have the shape (B, 3, H, W), got {tuple(images.shape)} and "
            f"{tuple(targets.shape)}: resize one of them."
        )
    for each in (images, targets):
        check_videos(each[:, None])
    return images.double(), targets.to(images.device).double()
