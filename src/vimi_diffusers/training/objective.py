# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The diffusion loss as one module, so that it can be wrapped, compiled and captured as a whole."""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from ..vimi.mllm_conditioner import MLLMConditioner
from ..vimi.scheduling_edm_video import EDMVideoScheduler
from ..vimi.transformer_vimi import VIMITransformer3DModel


class UncertaintyWeight(nn.Module):
    """The log of the expected loss as a learned function u of the noise level (EDM2, 2312.02696, section 2.2)."""

    def __init__(self, channels: int = 128):
        super().__init__()
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        features = get_timestep_embedding(10 * timestep.float(), self.linear.in_features)  # smooth in ln(sigma)
        with torch.autocast(timestep.device.type, enabled=False):
            return self.linear(features)[:, 0]


class VIMITrainingModel(nn.Module):
    """
    Conditioner and generator with the EDM loss (paper: the only loss of both stages).

    Args:
        text_encoder ([`MLLMConditioner`]): Gives C.
        transformer ([`VIMITransformer3DModel`]): The generator.
        scheduler ([`EDMVideoScheduler`]): Equations and noise distribution.
        loss_weighting (`str`): `"snap"` or `"uncertainty"`, see [`TrainingConfig`].
    """

    def __init__(
        self,
        text_encoder: MLLMConditioner,
        transformer: VIMITransformer3DModel,
        scheduler: EDMVideoScheduler,
        loss_weighting: str = "uncertainty",
    ):
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer
        self.scheduler = scheduler
        self.uncertainty = UncertaintyWeight() if loss_weighting == "uncertainty" else None

    def forward(
        self,
        video: torch.Tensor,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        fps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            video (`torch.Tensor` of shape `(batch_size, channels, num_frames, height, width)`): Clean video, [-1, 1].
            noise (`torch.Tensor` of the same shape): Standard normal noise.
            sigmas (`torch.Tensor` of shape `(batch_size,)`): Noise levels.
            input_ids, attention_mask, pixel_values: Inputs of the conditioner.
            fps (`torch.Tensor` of shape `(batch_size,)`): Frames per second.

        Returns:
            The scalar to minimise, and each sample's mean squared error in F space, of shape `(batch_size,)`.
        """
        prompt_embeds = self.text_encoder(input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return self.diffusion_loss(video, noise, sigmas, prompt_embeds, attention_mask, fps)

    def diffusion_loss(
        self,
        video: torch.Tensor,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        prompt_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        fps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The part of [`~VIMITrainingModel.forward`] after the conditioner: C in, loss and errors out."""
        timestep = self.scheduler.precondition_noise(sigmas)
        noisy = self.scheduler.add_noise(video, noise, sigmas=sigmas)
        noisy = self.scheduler.precondition_inputs(noisy, sigmas.view(-1, 1, 1, 1, 1))
        output = self.transformer(
            noisy, timestep, prompt_embeds, encoder_attention_mask=attention_mask, fps=fps, return_dict=False
        )[0]
        target = self.scheduler.get_target(video, noise, sigmas)
        error = F.mse_loss(output.float(), target, reduction="none").mean(dim=(1, 2, 3, 4))
        weighted = self.scheduler.loss_weight(sigmas) * error
        if self.uncertainty is not None:
            log_scale = self.uncertainty(timestep)
            weighted = weighted * torch.exp(-log_scale) + log_scale
        return weighted.mean(), error.detach()
