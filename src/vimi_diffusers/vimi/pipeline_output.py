# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class VIMIPipelineOutput(BaseOutput):
    """
    Output class of [`VIMIPipeline`].

    Args:
        frames (`np.ndarray`, `torch.Tensor` or `list[list[PIL.Image.Image]]`):
            The videos, batch first: an array `(batch, frames, height, width, 3)` in `[0, 1]` (`"np"`), a tensor
            `(batch, frames, 3, height, width)` in `[0, 1]` (`"pt"`), a list of frames for each video (`"pil"`), or the
            latents `(batch, channels, frames, height, width)` (`"latent"`).
    """

    frames: np.ndarray | torch.Tensor | list[list[PIL.Image.Image]]
