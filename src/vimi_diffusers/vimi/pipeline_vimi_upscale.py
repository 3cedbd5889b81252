# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The second model of the cascade: a small video and its prompt to a large video."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import ProcessorMixin

from ..media import DEFAULT_FPS
from .mllm_conditioner import MLLMConditioner
from .pipeline_base import Image, Video, VIMIPipelineBase
from .pipeline_output import VIMIPipelineOutput
from .scheduling_edm_video import EDMVideoScheduler
from .transformer_vimi import VIMITransformer3DModel
from .upscaling import corrupt, enlarge


EXAMPLE_DOC_STRING = """
    Examples:
        ```python
        >>> from diffusers.utils import export_to_video, load_image
        >>> from vimi_diffusers import VIMIPipeline, VIMIUpscalePipeline

        >>> base = VIMIPipeline.from_pretrained("user/base")
        >>> upscaler = VIMIUpscalePipeline.from_pretrained("user/upscaler")
        >>> prompt = {"prompt": "A <dog> is walking in a park", "images": {"dog": load_image("dog.png")}}
        >>> small = base(**prompt, output_type="pt").frames
        >>> frames = upscaler(small, **prompt, noise_level=0.1).frames[0]
        >>> export_to_video(frames, "dog.mp4", fps=5)
        ```
"""


class VIMIUpscalePipeline(VIMIPipelineBase):
    r"""
    Pipeline from the video of [`VIMIPipeline`] and the same prompt to a video of higher resolution (the upsampler of
    Snap Video, 2402.14797, section 3.5).

    Args:
        text_encoder ([`MLLMConditioner`]):
            Multimodal language model that turns the interleaved prompt into the embedding C.
        text_processor ([`~transformers.ProcessorMixin`]):
            Tokenizer and image processor of that model.
        transformer ([`VIMITransformer3DModel`]):
            Generator whose input channels are those of the noisy video, then those of the enlarged base video
            (`in_channels` twice `out_channels`), with `noise_level_token=True`.
        scheduler ([`EDMVideoScheduler`]):
            EDM with the input scaling of the resolution, 32 for Snap Video's 512x288.
        guider ([`~guiders.BaseGuidance`], *optional*):
            Guidance; without it a call's `guidance_scale` decides.
        checkpoint_version (`int`, *optional*, defaults to `1`):
            Version of the checkpoint's layout, stored in `model_index.json`.

    Raises:
        `ValueError`: if `checkpoint_version` is another one, or `transformer` is no upscaler.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _optional_components = ["guider"]
    vae_scale_factor_temporal = vae_scale_factor_spatial = 1

    def __init__(
        self,
        text_encoder: MLLMConditioner,
        text_processor: ProcessorMixin,
        transformer: VIMITransformer3DModel,
        scheduler: EDMVideoScheduler,
        guider: BaseGuidance | None = None,
        checkpoint_version: int = VIMIPipelineBase.CHECKPOINT_VERSION,
    ):
        super().__init__()
        self._check_version(checkpoint_version)
        config = getattr(transformer, "config", None)
        if config is not None and not (
            config.noise_level_token and config.in_channels == 2 * (config.out_channels or config.in_channels)
        ):
            raise ValueError(
                "`transformer` is no upscaler: it needs `noise_level_token=True` and twice as many input as output "
                f"channels, got {config.noise_level_token}, {config.in_channels} and {config.out_channels}."
            )
        self.register_modules(
            text_encoder=text_encoder,
            text_processor=text_processor,
            transformer=transformer,
            scheduler=scheduler,
            guider=guider,
        )
        self.register_to_config(checkpoint_version=checkpoint_version)
        self.video_processor = VideoProcessor(vae_scale_factor=1, do_resize=False)

    def check_inputs(
        self,
        video: Video | Sequence[Video],
        height: int,
        width: int,
        noise_level: float,
    ) -> torch.Tensor:
        """
        The base videos as `(batch_size, 3, frames, height, width)` in `[-1, 1]`.

        Raises:
            `ValueError`: if they or the sizes cannot work.
        """
        if not 0 < noise_level < float("inf"):
            raise ValueError(f"`noise_level` must be above 0, got {noise_level}: 0.001 is as good as none.")
        frames = self._preprocess_video(video)
        self.transformer.check_sample_size(frames.shape[2], height, width)
        if frames.shape[3] > height or frames.shape[4] > width:
            raise ValueError(
                f"`video` has {frames.shape[3]}x{frames.shape[4]} pixels, more than the result's {height}x{width}."
            )
        return frames

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        video: Video | Sequence[Video],
        prompt: str | list[str] | None = None,
        images: Sequence[Image] | Sequence[Sequence[Image]] | Mapping[str, Image | Sequence[Image]] | None = None,
        task: str | list[str] | None = None,
        context: Sequence | None = None,
        negative_prompt: str | list[str] | None = None,
        noise_level: float = 0.1,
        height: int | None = None,
        width: int | None = None,
        fps: float = DEFAULT_FPS,
        num_inference_steps: int = 40,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        max_sequence_length: int | None = None,
    ) -> VIMIPipelineOutput | tuple:
        r"""
        Upscale videos.

        Args:
            video (`np.ndarray`, `torch.Tensor`, `list[PIL.Image.Image]` or a list of them):
                Base videos as [`VIMIPipeline`] returns them, one for each prompt, or one video.
            prompt, images, task, context, negative_prompt:
                As in [`VIMIPipeline.__call__`]: what the base video was made from.
            noise_level (`float`, *optional*, defaults to `0.1`):
                Standard deviation of the noise that hides the base video's artefacts, for data in `[-1, 1]`: more
                leaves more to the upscaler.
            height (`int`, *optional*), width (`int`, *optional*):
                Size of the result in pixels. Defaults to the generator's.
            fps, num_inference_steps, sigmas, guidance_scale, num_videos_per_prompt, generator, latents:
                As in [`VIMIPipeline.__call__`]; 40 steps and no guidance by default.
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask:
                C, as in [`VIMIPipeline.__call__`].
            output_type, return_dict, attention_kwargs, callback_on_step_end, callback_on_step_end_tensor_inputs:
                As in [`VIMIPipeline.__call__`].
            max_sequence_length (`int`, *optional*):
                Longest prompt in tokens, as in [`VIMIPipeline.__call__`].

        Examples:

        Returns:
            [`VIMIPipelineOutput`] or `tuple`: the videos, batch first; a tuple holds `frames` alone.

        Raises:
            `ValueError`: for arguments that cannot work, before any model runs.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Check inputs
        height = height or self.transformer.config.height
        width = width or self.transformer.config.width
        if sigmas is not None:
            num_inference_steps = len(sigmas)
        self._begin_call(guidance_scale, None, attention_kwargs)
        small = self.check_inputs(video, height, width, noise_level)
        self._check_call(
            num_inference_steps, num_videos_per_prompt, fps, output_type, callback_on_step_end_tensor_inputs
        )
        batch_size = self._check_prompts(
            prompt,
            images,
            task,
            context,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
        )
        if len(small) not in (1, batch_size):
            raise ValueError(f"`video` holds {len(small)} videos for {batch_size} prompts: give one for each.")
        num_videos = batch_size * num_videos_per_prompt
        self._check_noise(self._latent_shape(num_videos, small.shape[2], height, width), latents, generator)
        guider, device = self._choose_guider(prompt_embeds), self._execution_device
        prompts = None if prompt_embeds is not None else self._lay_out(prompt, images, task, context)

        # 2. Encode the prompts with their images
        branches = self._encode_branches(
            guider,
            prompts,
            num_videos_per_prompt,
            max_sequence_length,
            device,
            prompt=prompt,
            images=images,
            task=task,
            context=context,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
        )

        # 3. Prepare timesteps, noise and the base video
        self._set_timesteps(num_inference_steps, sigmas, device)
        latents = self.prepare_latents(num_videos, small.shape[2], height, width, device, generator, latents)
        large = enlarge(small.to(device), height, width)
        large = large.repeat_interleave(num_videos // len(large), dim=0)
        noise = randn_tensor(large.shape, generator=generator, device=device, dtype=torch.float32)
        level = torch.full((num_videos,), float(noise_level), device=device)
        constants = {
            "fps": torch.tensor(float(fps), device=device),
            "noise_level": self.scheduler.precondition_noise(level[0]),
        }

        # 4. Denoise
        latents = self._denoise(
            latents,
            branches,
            {},
            constants,
            guider,
            num_inference_steps,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            concatenated=corrupt(large, noise, level).to(self.transformer.dtype),
        )

        # 5. To frames
        frames = latents
        if output_type != "latent":
            frames = self.video_processor.postprocess_video(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (frames,)
        return VIMIPipelineOutput(frames=frames)
