# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The diffusion loss as one module, so that it can be wrapped, compiled and captured as a whole."""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from ..vimi.mllm_conditioner import MLLMConditioner
from ..vimi.scheduling_edm_video import EDMVideoScheduler
from ..vimi.transformer_vimi import VIMITransformer3DModel


# what a batch may hold for the generator beside video and frame rate; the rest is the conditioner's
GENERATOR_INPUTS = ("resolution", "noise_level", "reference_images", "reference_mask", "concatenated")


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
        self_conditioning_rate (`float`, *optional*, defaults to `0.9`):
            Share of the samples that start from the latents of a first pass without gradients, if the generator was
            built with `self_conditioning` (Snap Video, table 8). In evaluation all do, as in sampling.
    """

    def __init__(
        self,
        text_encoder: MLLMConditioner,
        transformer: VIMITransformer3DModel,
        scheduler: EDMVideoScheduler,
        loss_weighting: str = "uncertainty",
        self_conditioning_rate: float = 0.9,
    ):
        super().__init__()
        if not 0 <= self_conditioning_rate <= 1:
            raise ValueError(f"`self_conditioning_rate` must be in [0, 1], got {self_conditioning_rate}.")
        self.text_encoder = text_encoder
        self.transformer = transformer
        self.scheduler = scheduler
        self.self_conditioning_rate = self_conditioning_rate
        self.uncertainty = UncertaintyWeight() if loss_weighting == "uncertainty" else None

    def forward(
        self,
        video: torch.Tensor,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        fps: torch.Tensor,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            video (`torch.Tensor` of shape `(batch_size, channels, num_frames, height, width)`): Clean video, [-1, 1].
            noise (`torch.Tensor` of the same shape): Standard normal noise.
            sigmas (`torch.Tensor` of shape `(batch_size,)`): Noise levels.
            fps (`torch.Tensor` of shape `(batch_size,)`): Frames per second.
            prompt_embeds (`torch.Tensor`, *optional*): C in place of the conditioner's inputs, from a cache.
            prompt_attention_mask (`torch.Tensor`, *optional*): Its mask.
            inputs (`dict`):
                What the text processor returns (`input_ids`, `attention_mask`, `pixel_values`, ...), and further
                inputs of the generator, such as `resolution`.

        Returns:
            The scalar to minimise, and each sample's mean squared error in F space, of shape `(batch_size,)`.
        """
        conditions = {name: inputs.pop(name) for name in GENERATOR_INPUTS if name in inputs}
        if prompt_embeds is None:
            prompt_embeds = self.text_encoder(**inputs)
            prompt_attention_mask = self.text_encoder.condition_mask(inputs["attention_mask"])
        return self.diffusion_loss(video, noise, sigmas, prompt_embeds, prompt_attention_mask, fps, **conditions)

    def diffusion_loss(
        self,
        video: torch.Tensor,
        noise: torch.Tensor,
        sigmas: torch.Tensor,
        prompt_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        fps: torch.Tensor,
        concatenated: torch.Tensor | None = None,
        **conditions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The part of [`~VIMITrainingModel.forward`] after the conditioner: C in, loss and errors out. `concatenated` are
        further channels of the generator's input, an upscaler's base video.
        """
        timestep = self.scheduler.precondition_noise(sigmas)
        noisy = self.scheduler.add_noise(video, noise, sigmas=sigmas)
        noisy = self.scheduler.precondition_inputs(noisy, sigmas.view(-1, 1, 1, 1, 1))
        if concatenated is not None:
            noisy = torch.cat([noisy, concatenated], dim=1)
        inputs = {
            "hidden_states": noisy,
            "timestep": timestep,
            "encoder_hidden_states": prompt_embeds,
            "encoder_attention_mask": attention_mask,
            "fps": fps,
            **conditions,
        }
        output = self.transformer(**inputs, **self._self_conditioning(inputs), return_dict=False)[0]
        target = self.scheduler.get_target(video, noise, sigmas)
        error = F.mse_loss(output.float(), target, reduction="none").mean(dim=(1, 2, 3, 4))
        weighted = self.scheduler.loss_weight(sigmas) * error
        if self.uncertainty is not None:
            log_scale = self.uncertainty(timestep)
            weighted = weighted * torch.exp(-log_scale) + log_scale
        return weighted.mean(), error.detach()

    def _self_conditioning(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Latents of a first pass that starts from zeros, themselves zeros in the share of samples left out. Every
        sample runs the first pass, so that the step has one shape and no branch and can be captured.
        """
        if not self.transformer.config.self_conditioning:
            return {}
        with torch.no_grad():
            latents = self.transformer(**inputs, return_dict=False)[1]
            if self.training:
                kept = torch.rand(latents.shape[0], device=latents.device) < self.self_conditioning_rate
                latents = torch.where(kept[:, None, None], latents, 0)
        return {"previous_latents": latents}
