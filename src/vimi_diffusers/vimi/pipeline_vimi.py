# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The inference path of VIMI: prompt, images and retrieved context to C, then EDM sampling with the FIT generator."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import ProcessorMixin

from ..media import DEFAULT_FPS, load_images
from ..prompting import MultimodalPrompt, format_prompt, lay_out_prompts
from .mllm_conditioner import MLLMConditioner
from .pipeline_output import VIMIPipelineOutput
from .scheduling_edm_video import EDMVideoScheduler
from .transformer_vimi import VIMITransformer3DModel


logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

EXAMPLE_DOC_STRING = """
    Examples:
        ```python
        >>> import torch
        >>> from diffusers.utils import export_to_video, load_image
        >>> from vimi_diffusers import VIMIPipeline, default_checkpoint

        >>> pipe = VIMIPipeline.from_pretrained(default_checkpoint())
        >>> dog, park = load_image("dog.png"), load_image("park.png")
        >>> frames = pipe(
        ...     "A <image_1> is walking in a <image_2>",
        ...     images=[dog, park],
        ...     generator=torch.Generator().manual_seed(0),
        ... ).frames[0]
        >>> export_to_video(frames, "dog.mp4", fps=5)
        ```
"""


class VIMIPipeline(DiffusionPipeline):
    r"""
    Pipeline from a prompt of text and images to a video (VIMI, arXiv 2407.06304).

    One model does three tasks, told apart by the instruction in front of the prompt: text-to-video with retrieved
    text-image pairs, subject-driven generation from images inside the prompt, and prediction from a first frame.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        text_encoder ([`MLLMConditioner`]):
            Multimodal language model that turns the interleaved prompt into the embedding C.
        text_processor ([`~transformers.ProcessorMixin`]):
            Tokenizer and image processor of that model.
        transformer ([`VIMITransformer3DModel`]):
            FIT generator that predicts the network output F of EDM.
        scheduler ([`EDMVideoScheduler`]):
            EDM with input scaling; called with `transformer` to denoise.
        vae ([`ModelMixin`], *optional*):
            Video autoencoder of diffusers. Without it the generator works on pixels.
        checkpoint_version (`int`, *optional*, defaults to `1`):
            Version of the checkpoint's layout, stored in `model_index.json`.

    Raises:
        `ValueError`: if `checkpoint_version` is not `VIMIPipeline.CHECKPOINT_VERSION`.
    """

    CHECKPOINT_VERSION = 1

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _optional_components = ["vae"]

    def __init__(
        self,
        text_encoder: MLLMConditioner,
        text_processor: ProcessorMixin,
        transformer: VIMITransformer3DModel,
        scheduler: EDMVideoScheduler,
        vae: ModelMixin | None = None,
        checkpoint_version: int = CHECKPOINT_VERSION,
    ):
        super().__init__()
        self._check_version(checkpoint_version)
        self.register_modules(
            text_encoder=text_encoder,
            text_processor=text_processor,
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
        )
        self.register_to_config(checkpoint_version=checkpoint_version)
        self.vae_scale_factor_temporal = self._vae_compression("temporal")
        self.vae_scale_factor_spatial = self._vae_compression("spatial")
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

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

    def _vae_compression(self, axis: str) -> int:
        vae = getattr(self, "vae", None)
        if vae is None:
            return 1
        for name in (f"scale_factor_{axis}", f"{axis}_compression_ratio"):
            if name in vae.config or hasattr(vae, name):
                return int(vae.config[name] if name in vae.config else getattr(vae, name))
        raise ValueError(f"`vae` {type(vae).__name__} does not tell its {axis} compression: use a video autoencoder.")

    # ------------------------------------------------------------------ state of the current call
    @property
    def guidance_scale(self) -> float:
        """`float`: Weight of classifier-free guidance; may be changed by a callback."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """`bool`: Whether the current step runs the unconditional branch."""
        return self._guidance_scale > 1

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

    # ------------------------------------------------------------------ lifecycle
    def check_inputs(
        self,
        prompt: str | list[str] | None,
        images: Sequence | None,
        task: str | list[str] | None,
        context: Sequence | None,
        negative_prompt: str | list[str] | None,
        height: int,
        width: int,
        num_frames: int,
        fps: float,
        num_inference_steps: int,
        num_videos_per_prompt: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        prompt_attention_mask: torch.Tensor | None,
        negative_prompt_attention_mask: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raise a `ValueError` for arguments of [`~VIMIPipeline.__call__`] that cannot work, before any model runs."""
        self._check_sizes(num_frames, height, width)
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

        shape = self._latent_shape(batch_size * num_videos_per_prompt, num_frames, height, width)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}, this call needs {shape}.")
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(
                f"`generator` holds {len(generator)} generators for {shape[0]} videos: give one for each."
            )

    def _check_sizes(self, num_frames: int, height: int, width: int) -> None:
        temporal, spatial = self.vae_scale_factor_temporal, self.vae_scale_factor_spatial
        if (num_frames - 1) % temporal:
            raise ValueError(
                f"`num_frames` {num_frames} does not fit the VAE: use a multiple of {temporal}, plus one."
            )
        if height % spatial or width % spatial:
            raise ValueError(f"Size {height}x{width} does not fit the VAE: use multiples of {spatial}.")
        self.transformer.check_sample_size(*self._latent_shape(1, num_frames, height, width)[2:])

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
        images = [load_images(prompt.images) for prompt in prompts]
        if max_sequence_length is None:
            max_sequence_length = self.text_encoder.config.mllm_config.get_text_config().max_position_embeddings
        texts = [
            self._truncate(prompt.text, own, max_sequence_length) for prompt, own in zip(prompts, images, strict=True)
        ]
        inputs = self._process(texts, images).to(device)
        return self.text_encoder(**inputs), inputs["attention_mask"].bool()

    def _process(self, texts: list[str], images: list[list[PIL.Image.Image]]) -> Any:
        return self.text_processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )

    def _truncate(self, text: str, images: list[PIL.Image.Image], max_sequence_length: int) -> str:
        """Cut words from the end of `text`, but no image, until it has at most `max_sequence_length` tokens."""
        token, whole = self.text_processor.image_token, text
        while (excess := self._process([text], [images])["input_ids"].shape[1] - max_sequence_length) > 0:
            segments = text.split(token)
            last = max((index for index, segment in enumerate(segments) if segment), default=None)
            if last is None:
                raise ValueError(
                    f"The images alone have more than `max_sequence_length` {max_sequence_length} tokens: pass fewer "
                    f"images than {len(images)}."
                )
            offsets = self.text_processor.tokenizer(
                segments[last], add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            segments[last] = segments[last][: offsets[-excess][0]] if excess < len(offsets) else ""
            text = token.join(segments)
        if text != whole:
            logger.warning(f"The prompt was cut to {max_sequence_length} tokens; left out: {whole[len(text) :]!r}.")
        return text

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

    def _latent_shape(self, batch_size: int, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        return (
            batch_size,
            self.transformer.config.in_channels,
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

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """From what the sampler ends with to pixels in `[-1, 1]`, `(batch, 3, frames, height, width)`."""
        if self.vae is None:
            return latents
        config, latents = self.vae.config, latents.to(self.vae.dtype)
        if config.get("latents_mean") is not None:
            mean, std = (
                latents.new_tensor(config[name])[:, None, None, None] for name in ("latents_mean", "latents_std")
            )
            latents = latents * std + mean
        else:
            latents = latents / config.scaling_factor
        return self.vae.decode(latents, return_dict=False)[0]

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        images: Sequence[PIL.Image.Image | str | Path]
        | Sequence[Sequence[PIL.Image.Image | str | Path]]
        | None = None,
        task: str | list[str] | None = None,
        context: Sequence | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float = DEFAULT_FPS,
        num_inference_steps: int = 24,
        guidance_scale: float = 2.0,
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
        Generate videos.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                The prompt or a batch of prompts. For `"subject"`, `<image_1>`, `<image_2>`, ... (or as many plain
                `<image>` tags as images) stand where the images belong.
            images (`list`, *optional*):
                The images of one prompt (PIL images of any mode, paths or URLs), or a list of lists for a batch;
                prompts may have different numbers of images. Transparent parts become white.
            task (`str` or `list[str]`, *optional*):
                `"text-to-video"`, `"subject"` or `"prediction"` (one image, the first frame). Defaults to `"subject"`
                for a prompt with tags and to `"text-to-video"` otherwise.
            context (`list`, *optional*):
                Retrieved text-image pairs for `"text-to-video"`, best first, as [`ImageTextMemory.search`] returns
                them, or `(text, image)` tuples; a list of lists for a batch.
            negative_prompt (`str` or `list[str]`, *optional*):
                What to guide away from. Defaults to the unconditional prompt.
            height (`int`, *optional*):
                Height in pixels. Defaults to the generator's size.
            width (`int`, *optional*):
                Width in pixels. Defaults to the generator's size.
            num_frames (`int`, *optional*):
                Number of frames. Defaults to the generator's length.
            fps (`float`, *optional*, defaults to `16 / 3`):
                Frames per second that the generator is told; `float("inf")` for a still image.
            num_inference_steps (`int`, *optional*, defaults to `24`):
                Number of noise levels. Heun calls the generator twice on all but the last.
            guidance_scale (`float`, *optional*, defaults to `2.0`):
                Weight of classifier-free guidance (2207.12598); at most `1` switches it off.
            num_videos_per_prompt (`int`, *optional*, defaults to `1`):
                Number of videos for each prompt.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Source of the noise, or one for each video.
            latents (`torch.Tensor` of shape `(videos, channels, frames, height, width)`, *optional*):
                Standard normal noise to start from instead of drawing it.
            prompt_embeds (`torch.Tensor` of shape `(batch, tokens, channels)`, *optional*):
                C of the prompts, instead of `prompt`, `images`, `task` and `context`.
            negative_prompt_embeds (`torch.Tensor` of shape `(batch, tokens, channels)`, *optional*):
                C of the negative prompts, instead of `negative_prompt`.
            prompt_attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                Which tokens of `prompt_embeds` count. Defaults to all.
            negative_prompt_attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                Which tokens of `negative_prompt_embeds` count. Defaults to all.
            output_type (`str`, *optional*, defaults to `"np"`):
                `"np"`, `"pt"`, `"pil"` or `"latent"`, see [`VIMIPipelineOutput`].
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`VIMIPipelineOutput`] instead of a tuple.
            attention_kwargs (`dict`, *optional*):
                Handed to the generator; `{"scale": ...}` weighs loaded LoRA layers.
            callback_on_step_end (`Callable`, [`PipelineCallback`] or [`MultiPipelineCallbacks`], *optional*):
                Called as `callback(pipe, step, timestep, callback_kwargs)` after each model call; returns a dict whose
                tensors replace the pipeline's.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `["latents"]`):
                Tensors in `callback_kwargs`, among `latents`, `prompt_embeds` and `negative_prompt_embeds`.
            max_sequence_length (`int`, *optional*):
                Longest prompt in tokens, image tokens included; longer text is cut from the end, images never.
                Defaults to what the multimodal model has positions for.

        Examples:

        Returns:
            [`VIMIPipelineOutput`] or `tuple`: the videos, batch first; a tuple holds `frames` alone.

        Raises:
            `ValueError`: for arguments that cannot work, before any model runs.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Check inputs
        sample = self.transformer.config
        height = sample.height * self.vae_scale_factor_spatial if height is None else height
        width = sample.width * self.vae_scale_factor_spatial if width is None else width
        if num_frames is None:
            num_frames = (sample.num_frames - 1) * self.vae_scale_factor_temporal + 1
        self._guidance_scale = guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep = None
        self._interrupt = False
        self.check_inputs(
            prompt,
            images,
            task,
            context,
            negative_prompt,
            height,
            width,
            num_frames,
            fps,
            num_inference_steps,
            num_videos_per_prompt,
            generator,
            latents,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        device = self._execution_device

        # 2. Encode the prompts with their images
        prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask = (
            self.encode_prompt(
                prompt=prompt,
                images=images,
                task=task,
                context=context,
                negative_prompt=negative_prompt,
                do_classifier_free_guidance=self.do_classifier_free_guidance,
                num_videos_per_prompt=num_videos_per_prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                prompt_attention_mask=prompt_attention_mask,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
                max_sequence_length=max_sequence_length,
                device=device,
            )
        )
        num_videos, dtype = prompt_embeds.shape[0], self.transformer.dtype
        prompt_embeds, prompt_attention_mask = prompt_embeds.to(device, dtype), prompt_attention_mask.to(device)
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.to(device, dtype)
            negative_prompt_attention_mask = negative_prompt_attention_mask.to(device)

        # 3. Prepare timesteps and noise
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        self.scheduler.set_begin_index(0)
        latents = self.prepare_latents(num_videos, num_frames, height, width, device, generator, latents)

        # 4. Denoise
        masks = [prompt_attention_mask]
        if negative_prompt_embeds is not None:
            masks.append(torch.cat([negative_prompt_attention_mask, prompt_attention_mask]))
        masks = [None if mask.all() else mask for mask in masks]  # attention back ends are faster without a mask
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t

                embeds = prompt_embeds
                model_input = self.scheduler.scale_model_input(latents, t).to(dtype)
                guided = self.do_classifier_free_guidance and negative_prompt_embeds is not None
                if guided:
                    embeds = torch.cat([negative_prompt_embeds, embeds])
                    model_input = torch.cat([model_input, model_input])
                with self.transformer.cache_context(
                    "cond_uncond" if guided else "cond",
                    step_index=i,
                    sigma=float(self.scheduler.sigmas[i]),
                    num_inference_steps=self._num_timesteps,
                ):
                    model_output = self.transformer(
                        hidden_states=model_input,
                        timestep=t.expand(len(model_input)),
                        encoder_hidden_states=embeds,
                        encoder_attention_mask=masks[guided],
                        fps=t.new_full((len(model_input),), fps),
                        attention_kwargs=attention_kwargs,
                        return_dict=False,
                    )[0].float()
                if guided:
                    unconditional, conditional = model_output.chunk(2)
                    model_output = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(model_output, t, latents, generator=generator, return_dict=False)[0]

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for k in callback_on_step_end_tensor_inputs:
                        callback_kwargs[k] = locals()[k]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                    prompt_embeds = callback_outputs.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = callback_outputs.pop("negative_prompt_embeds", negative_prompt_embeds)

                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()
        self._current_timestep = None

        # 5. Decode
        if output_type == "latent":
            video = latents
        else:
            video = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (video,)
        return VIMIPipelineOutput(frames=video)
