# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What VIMI's pipelines share: encoding of multimodal prompts, and the guided denoising loop."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.guiders import BaseGuidance
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from ..media import load_images
from ..model_card import ModelCardMixin
from ..prompting import MultimodalPrompt, format_prompt, lay_out_prompts
from .guidance import VIMIGuidance, guided_output
from .lora import VIMILoraLoaderMixin
from .mllm_text import cut_prompt, process_prompts


logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

Image = PIL.Image.Image | str | Path
Video = Sequence[PIL.Image.Image] | np.ndarray | torch.Tensor


class VIMIPipelineBase(ModelCardMixin, DiffusionPipeline, VIMILoraLoaderMixin):
    """Base of [`VIMIPipeline`] and [`VIMIUpscalePipeline`]."""

    CHECKPOINT_VERSION = 1

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    @classmethod
    def _check_version(cls, version: int) -> None:
        if version != cls.CHECKPOINT_VERSION:
            raise ValueError(
                f"This checkpoint has version {version!r}, this release of vimi_diffusers reads version "
                f"{cls.CHECKPOINT_VERSION}: install the release that wrote the checkpoint, or take another checkpoint."
            )

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        # Both `VIMIPipeline` and `DiffusionPipeline` come through here before they load any component.
        cls._check_version(config_dict.get("checkpoint_version", cls.CHECKPOINT_VERSION))
        return super().extract_init_dict(config_dict, **kwargs)

    # ------------------------------------------------------------------ state of the current call
    @property
    def guidance_scale(self) -> float:
        """`float`: Weight of classifier-free guidance; may be changed by a callback."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """`bool`: Whether there is an unconditional branch."""
        return self.guider is not None or self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """`int`: Number of model calls of the current sampling run, `2 * num_inference_steps - 1` for Heun."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """`torch.Tensor`: Timestep of the current step, `None` outside the loop."""
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """`dict`: Arguments handed to the attention processors."""
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """`bool`: Set `pipe._interrupt = True` in a callback to skip the remaining steps."""
        return self._interrupt

    def _begin_call(
        self, guidance_scale: float, image_guidance_scale: float | None, attention_kwargs: dict[str, Any] | None
    ) -> None:
        self._guidance_scale = guidance_scale
        self._image_guidance_scale = image_guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False

    # ------------------------------------------------------------------ checks
    def _check_call(
        self,
        num_inference_steps: int,
        num_videos_per_prompt: int,
        fps: float,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        if not hasattr(self.scheduler, "add_churn_noise"):  # by remote code the class is another of the same name
            raise ValueError(
                f"The pipeline needs an `EDMVideoScheduler`, got {type(self.scheduler).__name__}: use "
                "`EDMVideoScheduler.from_config(pipe.scheduler.config, solver='euler')` (or 'dpmsolver++')."
            )
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_videos_per_prompt", num_videos_per_prompt),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        if not fps > 0:
            raise ValueError(f"`fps` must be positive, got {fps!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"Unknown `output_type` {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
            )

    def _check_prompts(
        self,
        prompt: str | list[str] | None,
        images: Sequence | Mapping | None,
        task: str | list[str] | None,
        context: Sequence | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        prompt_attention_mask: torch.Tensor | None,
        negative_prompt_attention_mask: torch.Tensor | None,
    ) -> int:
        """Number of prompts."""
        if prompt_embeds is None:
            batch_size = len(self._lay_out(prompt, images, task, context))
        elif any(value is not None for value in (prompt, images, task, context)):
            raise ValueError(
                "`prompt_embeds` replaces `prompt`, `images`, `task` and `context`: pass one or the other."
            )
        else:
            batch_size = prompt_embeds.shape[0]
        self._check_negative(negative_prompt, negative_prompt_embeds, batch_size)
        for name, embeds, mask in (
            ("prompt", prompt_embeds, prompt_attention_mask),
            ("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask),
        ):
            if mask is not None and (embeds is None or mask.shape != embeds.shape[:2]):
                shape = None if embeds is None else tuple(embeds.shape[:2])
                raise ValueError(
                    f"`{name}_attention_mask` has shape {tuple(mask.shape)}, `{name}_embeds` needs {shape}."
                )
        return batch_size

    @staticmethod
    def _check_noise(
        shape: tuple[int, ...],
        latents: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, this call needs {shape}.")
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(
                f"`generator` holds {len(generator)} generators for {shape[0]} videos: give one for each."
            )

    def _check_negative(
        self, negative_prompt: str | list[str] | None, negative_prompt_embeds: torch.Tensor | None, batch_size: int
    ) -> None:
        if negative_prompt_embeds is not None:
            if negative_prompt is not None:
                raise ValueError("`negative_prompt_embeds` replaces `negative_prompt`: pass one or the other.")
            if negative_prompt_embeds.shape[0] != batch_size:
                raise ValueError(
                    f"`negative_prompt_embeds` holds {negative_prompt_embeds.shape[0]} rows for {batch_size} prompts."
                )
        elif isinstance(negative_prompt, (list, tuple)) and len(negative_prompt) != batch_size:
            raise ValueError(f"`negative_prompt` holds {len(negative_prompt)} texts for {batch_size} prompts.")
        elif self.text_encoder is None and self.do_classifier_free_guidance:
            raise ValueError(
                "Guidance without `text_encoder` needs `negative_prompt_embeds`: pass them, or `guidance_scale=1`."
            )

    # ------------------------------------------------------------------ prompts
    def _lay_out(
        self,
        prompt: str | list[str] | None,
        images: Sequence | None,
        task: str | list[str] | None,
        context: Sequence | None,
    ) -> list[MultimodalPrompt]:
        if self.text_encoder is None or self.text_processor is None:
            raise ValueError(
                "A `prompt` needs `text_encoder` and `text_processor`: load them or pass `prompt_embeds`."
            )
        return lay_out_prompts(prompt, images, task, context, image_token=self.text_processor.image_token)

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        images: Sequence | None = None,
        task: str | list[str] | None = None,
        context: Sequence | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int | None = None,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        r"""
        Encode prompts with their images into C, and the negative prompts, both padded to one length.

        Args:
            prompt, images, task, context, negative_prompt:
                As in [`~VIMIPipeline.__call__`].
            do_classifier_free_guidance (`bool`, *optional*, defaults to `True`):
                Whether to encode the negative prompt.
            num_videos_per_prompt (`int`, *optional*, defaults to `1`):
                How often each row of the result is repeated.
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask:
                Results that are known already, as in [`~VIMIPipeline.__call__`].
            max_sequence_length (`int`, *optional*):
                Longest prompt in tokens, as in [`~VIMIPipeline.__call__`].
            device (`torch.device`, *optional*):
                Where to encode. Defaults to the pipeline's device.

        Returns:
            `tuple`: `prompt_embeds`, `negative_prompt_embeds`, `prompt_attention_mask` and
            `negative_prompt_attention_mask`; the negative ones are `None` without guidance.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            prompts = self._lay_out(prompt, images, task, context)
            prompt_embeds, prompt_attention_mask = self._encode(prompts, max_sequence_length, device)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            token = self.text_processor.image_token
            texts = (
                [negative_prompt] if negative_prompt is None or isinstance(negative_prompt, str) else negative_prompt
            )
            # The unconditional prompt of training is the empty one, without an instruction.
            negatives = [format_prompt("text-to-video", text, (), token) if text else "" for text in texts]
            negative_prompt_embeds, negative_prompt_attention_mask = self._encode(
                [MultimodalPrompt(text) for text in negatives], max_sequence_length, device
            )
            if len(texts) == 1:
                negative_prompt_embeds = negative_prompt_embeds.expand(prompt_embeds.shape[0], -1, -1)
                negative_prompt_attention_mask = negative_prompt_attention_mask.expand(prompt_embeds.shape[0], -1)
        if not do_classifier_free_guidance:
            negative_prompt_embeds, negative_prompt_attention_mask = None, None

        length = max(embeds.shape[1] for embeds in (prompt_embeds, negative_prompt_embeds) if embeds is not None)
        prompt_embeds, prompt_attention_mask = self._pad_and_repeat(
            prompt_embeds, prompt_attention_mask, length, num_videos_per_prompt
        )
        if negative_prompt_embeds is not None:
            negative_prompt_embeds, negative_prompt_attention_mask = self._pad_and_repeat(
                negative_prompt_embeds, negative_prompt_attention_mask, length, num_videos_per_prompt
            )
        return prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask

    def _encode(
        self, prompts: list[MultimodalPrompt], max_sequence_length: int | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts = [load_images(prompt.images) for prompt in prompts], [prompt.text for prompt in prompts]
        if max_sequence_length is None:
            text_config = self.text_encoder.config.mllm_config.get_text_config()
            max_sequence_length = getattr(text_config, "max_position_embeddings", None)  # some have no limit
        if max_sequence_length is not None:
            texts = [self._truncate(text, own, max_sequence_length) for text, own in zip(texts, images, strict=True)]
        inputs = self._process(texts, images).to(device)
        return self.text_encoder(**inputs), self.text_encoder.condition_mask(inputs["attention_mask"])

    @property
    def _chat(self) -> bool:
        return self.text_encoder.config.crop_start > 0  # what is cropped is the start of a chat template

    def _process(self, texts: list[str], images: list[list[PIL.Image.Image]]) -> Any:
        return process_prompts(self.text_processor, texts, images, self._chat)

    def _truncate(self, text: str, images: list[PIL.Image.Image], max_sequence_length: int) -> str:
        """Cut words from the end of `text`, but no image, until it has at most `max_sequence_length` tokens."""
        cut = cut_prompt(self.text_processor, text, images, max_sequence_length, self._chat)
        if cut is None:
            raise ValueError(
                f"The images alone have more than `max_sequence_length` {max_sequence_length} tokens: pass fewer "
                f"images than {len(images)}."
            )
        if cut != text:
            logger.warning(f"The prompt was cut to {max_sequence_length} tokens; left out: {text[len(cut) :]!r}.")
        return cut

    @staticmethod
    def _pad_and_repeat(
        embeds: torch.Tensor, mask: torch.Tensor | None, length: int, repeats: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        missing = length - embeds.shape[1]
        embeds = F.pad(embeds, (0, 0, 0, missing)).repeat_interleave(repeats, dim=0)
        mask = F.pad(mask.bool(), (0, missing), value=False).repeat_interleave(repeats, dim=0)
        return embeds, mask

    # ------------------------------------------------------------------ sampling
    def _preprocess_video(
        self, video: Video | Sequence[Video], height: int | None = None, width: int | None = None
    ) -> torch.Tensor:
        """Videos as `(batch, 3, frames, height, width)` in `[-1, 1]`."""
        if isinstance(video, np.ndarray) and video.dtype == np.uint8:
            video = video.astype(np.float32) / 255
        return self.video_processor.preprocess_video(video, height=height, width=width).float()

    def _set_timesteps(self, num_inference_steps: int, sigmas: list[float] | None, device: torch.device) -> None:
        if sigmas is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        self.scheduler.set_begin_index(0)

    def _latent_shape(self, batch_size: int, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return (
            batch_size,
            self.transformer.out_channels,
            (num_frames - 1) // self.vae_scale_factor_temporal + 1,
            height // self.vae_scale_factor_spatial,
            width // self.vae_scale_factor_spatial,
        )

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The initial state of the sampler in fp32: standard normal noise, or `latents`, at the scheduler's scale."""
        if latents is None:
            shape = self._latent_shape(batch_size, num_frames, height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def _choose_guider(self, prompt_embeds: torch.Tensor | None) -> BaseGuidance:
        """The component, or one of the call's scales."""
        guider = self.guider
        if guider is not None and self._image_guidance_scale is not None:
            raise ValueError("`image_guidance_scale` cannot change the component `guider`: set the scale in that.")
        if guider is None:
            scales = max(self._guidance_scale, 1.0), self._image_guidance_scale
            guider = VIMIGuidance(guidance_scale=scales[0], image_guidance_scale=scales[1])
        if hasattr(guider, "check_scheduler"):
            guider.check_scheduler(self.scheduler)
            if guider.image_guidance_scale is not None and prompt_embeds is not None:
                raise ValueError(
                    "An image guidance scale needs `prompt`, whose words it separates: drop `prompt_embeds`."
                )
        return guider

    def _encode_branches(
        self,
        guider: BaseGuidance,
        prompts: list[MultimodalPrompt] | None,
        num_videos_per_prompt: int,
        max_sequence_length: int | None,
        device: torch.device,
        **arguments: Any,
    ) -> dict[str, tuple[torch.Tensor | None, ...]]:
        """
        C of all branches that `guider` needs, see [`~VIMIPipelineBase._prepare_branches`].

        Args:
            prompts: The prompts as laid out, `None` if their embeddings are among `arguments`.
            arguments: What [`~VIMIPipelineBase.encode_prompt`] takes beside.
        """
        options = {
            "num_videos_per_prompt": num_videos_per_prompt,
            "max_sequence_length": max_sequence_length,
            "device": device,
        }
        whole, negative, whole_mask, negative_mask = self.encode_prompt(
            do_classifier_free_guidance=self.do_classifier_free_guidance, **options, **arguments
        )
        words = words_mask = None
        if getattr(guider, "image_guidance_scale", None) is not None:  # it weighs words and images apart
            words, _, words_mask, _ = self.encode_prompt(
                prompt=[prompt.words for prompt in prompts],
                task="text-to-video",
                do_classifier_free_guidance=False,
                **options,
            )
        return self._prepare_branches((whole, negative, words), (whole_mask, negative_mask, words_mask), device)

    def _prepare_branches(
        self,
        embeds: tuple[torch.Tensor | None, ...],
        masks: tuple[torch.Tensor | None, ...],
        device: torch.device,
    ) -> dict[str, tuple[torch.Tensor | None, ...]]:
        """C of each branch of guidance (whole prompt, negative prompt, words alone), padded to one length."""
        length = max(each.shape[1] for each in embeds if each is not None)
        padded = [
            (None, None) if each is None else self._pad_and_repeat(each, mask, length, 1)
            for each, mask in zip(embeds, masks)
        ]
        masks = tuple(None if mask is None else mask.to(device) for _, mask in padded)
        if all(mask is None or mask.all() for mask in masks):  # attention back ends are faster without a mask
            masks = (None,) * len(masks)
        return {
            "encoder_hidden_states": tuple(
                None if each is None else each.to(device, self.transformer.dtype) for each, _ in padded
            ),
            "encoder_attention_mask": masks,
        }

    def _denoise(
        self,
        latents: torch.Tensor,
        branches: dict[str, tuple[torch.Tensor | None, ...]],
        shared: dict[str, torch.Tensor],
        constants: dict[str, torch.Tensor],
        guider: BaseGuidance,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str],
        beginning: torch.Tensor | None = None,
        concatenated: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The loop over `scheduler.timesteps`.

        Args:
            latents: Initial state.
            branches: Inputs of the generator that differ between the branches of guidance, `None` for one that never
                runs, see [`~VIMIPipelineBase._prepare_branches`].
            shared: Further inputs of the generator, one row for each video.
            constants: Inputs of the generator that are the same for all videos.
            guider: Combines the branches' outputs.
            beginning: First frames that the videos must have, in the units of the data.
            concatenated: Further channels of each model input.
        """
        scheduler, dtype = self.scheduler, self.transformer.dtype
        timesteps = scheduler.timesteps
        self._num_timesteps = len(timesteps)
        num_warmup_steps = len(timesteps) - num_inference_steps * scheduler.order
        prompt_embeds, negative_prompt_embeds, words = branches["encoder_hidden_states"]
        if beginning is not None:  # the state of known frames is known as well, with the noise that they started from
            length = beginning.shape[2]
            noise = latents[:, :, :length] / scheduler.init_noise_sigma
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t

                latents = scheduler.add_churn_noise(latents, t, generator=generator)
                told = scheduler.current_timestep(t)
                if beginning is not None:
                    known = scheduler.add_noise(beginning, noise, timesteps=told.reshape(1))
                    latents = torch.cat([known, latents[:, :, length:]], dim=2)
                model_input = scheduler.scale_model_input(latents, t).to(dtype)
                if concatenated is not None:
                    model_input = torch.cat([model_input, concatenated], dim=1)
                branches["encoder_hidden_states"] = (prompt_embeds, negative_prompt_embeds, words)
                inputs = {
                    "hidden_states": model_input,
                    "timestep": told.expand(len(model_input)),
                    **branches,
                    **shared,
                }
                model_output, carried = self._predict(guider, i, num_inference_steps, inputs, constants)
                if carried is not None:
                    shared["previous_latents"] = carried
                latents = scheduler.step(model_output, t, latents, generator=generator, return_dict=False)[0]

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for k in callback_on_step_end_tensor_inputs:
                        callback_kwargs[k] = locals()[k]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = callback_outputs.pop("negative_prompt_embeds", negative_prompt_embeds)

                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % scheduler.order == 0):
                    progress_bar.update()
        self._current_timestep = None
        if beginning is not None:
            latents = torch.cat([beginning, latents[:, :, length:]], dim=2)
        return latents

    def _predict(
        self,
        guider: BaseGuidance,
        index: int,
        num_inference_steps: int,
        inputs: dict[str, Any],
        constants: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The guided output of one model call, and the latents that self-conditioning carries on."""
        if guider is not self.guider:  # a callback may have changed the scale
            guided = inputs["encoder_hidden_states"][1] is not None
            guider.guidance_scale = max(self._guidance_scale, 1.0) if guided else 1.0
        return guided_output(
            guider,
            self.transformer,
            self.scheduler,
            index,
            self.current_timestep,
            num_inference_steps,
            inputs,
            attention_kwargs=self.attention_kwargs,
            **constants,
        )
