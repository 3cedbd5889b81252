# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What feature networks get to see: resizing with antialiasing, centre crop and normalisation, stated in full."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F


RESCALE = 1 / 255  # what image processors multiply bytes by; videos here are in [0, 1] already
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


@dataclass(frozen=True)
class Preprocessing:
    """
    Pixels in [0, 1] of any size to what a network was trained on. Works on tensors, on the device they are on; beside
    Pillow, which rounds to bytes after resizing, values differ by up to about 1/255.

    Args:
        height (`int`): Height that the network gets.
        width (`int`): Width that the network gets.
        shortest_edge (`int`, *optional*):
            Resize to this shorter side and crop the centre. `None` resizes to `height` x `width` whatever the aspect
            ratio, so that nothing is cut off.
        interpolation (`str`, *optional*, defaults to `"bicubic"`): `"bicubic"` or `"bilinear"`.
        antialias (`bool`, *optional*, defaults to `True`): Whether what becomes smaller is low-passed, as by Pillow.
        mean (`tuple[float]`, *optional*, defaults to `(0.0, 0.0, 0.0)`): Subtracted from red, green and blue.
        std (`tuple[float]`, *optional*, defaults to `(1.0, 1.0, 1.0)`): What they are divided by after that.

    Raises:
        `ValueError`: if a value cannot be used.
    """

    height: int
    width: int
    shortest_edge: int | None = None
    interpolation: str = "bicubic"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        if self.interpolation not in _INTERPOLATIONS.values():
            raise ValueError(f'`interpolation` must be "bicubic" or "bilinear", not {self.interpolation!r}.')
        if self.shortest_edge is not None and self.shortest_edge < max(self.height, self.width):
            raise ValueError(
                f"`shortest_edge` {self.shortest_edge} is smaller than the crop of {self.width}x{self.height}: choose "
                f"at least {max(self.height, self.width)}."
            )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(N, 3, H, W)`): RGB in [0, 1].

        Returns:
            `torch.Tensor` of shape `(N, 3, height, width)`.
        """
        size = self._resized(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            for step in ((images.shape[-2], size[1]), size):  # one side after the other and cut off, as Pillow does
                images = F.interpolate(images, step, mode=self.interpolation, antialias=self.antialias).clamp(0, 1)
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        images = images[..., top : top + self.height, left : left + self.width]
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest_edge is None:
            return self.height, self.width
        short = min(height, width)
        return int(height * self.shortest_edge / short), int(width * self.shortest_edge / short)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_image_processor(cls, processor: Any) -> "Preprocessing":
        """
        The settings of an image processor of transformers.

        Raises:
            `ValueError`: if it does something else than resize, crop and normalise.
        """
        name = type(processor).__name__
        size, crop = (_sizes(getattr(processor, field, None)) for field in ("size", "crop_size"))
        if (
            getattr(processor, "do_rescale", True)
            and abs(getattr(processor, "rescale_factor", RESCALE) - RESCALE) > 1e-6
        ):
            raise ValueError(f"{name} rescales by {processor.rescale_factor}, not 1/255: pass `preprocessing`.")
        if int(processor.resample) not in _INTERPOLATIONS:
            raise ValueError(f"{name} resamples with {processor.resample!r}: pass `preprocessing`.")
        crop = crop if getattr(processor, "do_center_crop", False) else {}
        target = crop or size
        if "shortest_edge" in target:  # an edge without a crop of its own leaves the size open
            target = {"height": target["shortest_edge"], "width": target["shortest_edge"]}
        if not {"height", "width"} <= set(target) or not ("shortest_edge" in size or {"height", "width"} <= set(size)):
            raise ValueError(f"{name} resizes to {size} and crops to {crop or 'nothing'}: pass `preprocessing`.")
        if crop and "shortest_edge" not in size:
            raise ValueError(f"{name} crops {crop} out of {size}: pass `preprocessing`.")
        normalised = getattr(processor, "do_normalize", True)
        return cls(
            height=target["height"],
            width=target["width"],
            shortest_edge=size.get("shortest_edge"),
            interpolation=_INTERPOLATIONS[int(processor.resample)],
            mean=_three(processor.image_mean) if normalised else (0.0, 0.0, 0.0),
            std=_three(processor.image_std) if normalised else (1.0, 1.0, 1.0),
        )


def _sizes(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size or {}).items() if value is not None}


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
