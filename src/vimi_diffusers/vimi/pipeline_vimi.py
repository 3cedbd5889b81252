# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The inference path of VIMI: prompt, images and retrieved context to C, then EDM sampling with the FIT generator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.utils import replace_example_docstring
from diffusers.video_processor import VideoProcessor
from transformers import ProcessorMixin

from ..media import DEFAULT_FPS, load_images
from ..prompting import MultimodalPrompt
from .mllm_conditioner import MLLMConditioner
from .pipeline_base import Image, Video, VIMIPipelineBase
from .pipeline_output import VIMIPipelineOutput
from .scheduling_edm_video import EDMVideoScheduler
from .transformer_vimi import VIMITransformer3DModel


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


class VIMIPipeline(VIMIPipelineBase):
    r"""
    Pipeline from a prompt of text and images to a video (VIMI, arXiv 2407.06304).

    One model does three tasks, told apart by the instruction in front of the prompt: text-to-video with retrieved
    text-image pairs, subject-driven generation from images inside the prompt, and prediction from a first frame.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.), and from
    [`VIMILoraLoaderMixin`], which loads LoRA layers into the generator.

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
        guider ([`~guiders.BaseGuidance`], *optional*):
            Guidance, such as [`VIMIGuidance`] or a guider of diffusers. Without it a call's `guidance_scale` and
            `image_guidance_scale` decide.
        checkpoint_version (`int`, *optional*, defaults to `1`):
            Version of the checkpoint's layout, stored in `model_index.json`.

    Raises:
        `ValueError`: if `checkpoint_version` is not `VIMIPipeline.CHECKPOINT_VERSION`.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "guider"]

    def __init__(
        self,
        text_encoder: MLLMConditioner,
        text_processor: ProcessorMixin,
        transformer: VIMITransformer3DModel,
        scheduler: EDMVideoScheduler,
        vae: ModelMixin | None = None,
        guider: BaseGuidance | None = None,
        checkpoint_version: int = VIMIPipelineBase.CHECKPOINT_VERSION,
    ):
        super().__init__()
        self._check_version(checkpoint_version)
        self.register_modules(
            text_encoder=text_encoder,
            text_processor=text_processor,
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            guider=guider,
        )
        self.register_to_config(checkpoint_version=checkpoint_version)
        self.vae_scale_factor_temporal = self._vae_compression("temporal")
        self.vae_scale_factor_spatial = self._vae_compression("spatial")
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    def _vae_compression(self, axis: str) -> int:
        vae = getattr(self, "vae", None)
        if vae is None:
            return 1
        for name in (f"scale_factor_{axis}", f"{axis}_compression_ratio"):
            if name in vae.config or hasattr(vae, name):
                return int(vae.config[name] if name in vae.config else getattr(vae, name))
        raise ValueError(f"`vae` {type(vae).__name__} does not tell its {axis} compression: use a video autoencoder.")

    # ------------------------------------------------------------------ lifecycle
    def check_inputs(
        self,
        prompt: str | list[str] | None,
        images: Sequence | Mapping | None,
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
        shape = self._latent_shape(batch_size * num_videos_per_prompt, num_frames, height, width)
        self._check_noise(shape, latents, generator)

    def _check_sizes(self, num_frames: int, height: int, width: int) -> None:
        temporal, spatial = self.vae_scale_factor_temporal, self.vae_scale_factor_spatial
        if (num_frames - 1) % temporal:
            raise ValueError(
                f"`num_frames` {num_frames} does not fit the VAE: use a multiple of {temporal}, plus one."
            )
        if height % spatial or width % spatial:
            raise ValueError(f"Size {height}x{width} does not fit the VAE: use multiples of {spatial}.")
        self.transformer.check_sample_size(*self._latent_shape(1, num_frames, height, width)[2:])

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """From what the sampler ends with to pixels in `[-1, 1]`, `(batch, 3, frames, height, width)`."""
        if self.vae is None:
            return latents
        latents = latents.to(self.vae.dtype)
        mean, std = self._latent_statistics(latents)
        latents = latents * std + mean
        return self.vae.decode(latents, return_dict=False)[0]

    def prepare_video(self, video: Any, height: int, width: int, num_frames: int, batch_size: int) -> torch.Tensor:
        """
        The frames that videos begin with as `(batch_size, 3, frames, height, width)` in `[-1, 1]`.

        Raises:
            `ValueError`: if there are too many frames, too few or too many videos, or their number does not fit the
                VAE.
        """
        frames = self._preprocess_video(video, height, width)
        if len(frames) == 1:
            frames = frames.expand(batch_size, -1, -1, -1, -1)
        if len(frames) != batch_size:
            raise ValueError(
                f"`video` holds {len(frames)} videos for {batch_size} prompts: give one, or one for each."
            )
        if frames.shape[2] >= num_frames:
            raise ValueError(
                f"`video` has {frames.shape[2]} frames, the result {num_frames} in all: pass the last few frames, or "
                "a larger `num_frames`."
            )
        if (frames.shape[2] - 1) % self.vae_scale_factor_temporal:
            raise ValueError(
                f"`video` has {frames.shape[2]} frames, which do not fit the VAE: use a multiple of "
                f"{self.vae_scale_factor_temporal}, plus one."
            )
        return frames

    def encode_video(self, frames: torch.Tensor) -> torch.Tensor:
        """From pixels in `[-1, 1]` to the sampler's data: the inverse of [`~VIMIPipeline.decode_latents`]."""
        if self.vae is None:
            return frames
        latents = self.vae.encode(frames.to(self.vae.dtype)).latent_dist.mode().float()
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def _latent_statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        config = self.vae.config
        if config.get("latents_mean") is None:
            return 0.0, 1 / config.scaling_factor
        return tuple(latents.new_tensor(config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))

    def prepare_constants(self, fps: float, size: tuple[int, int], device: torch.device) -> dict[str, torch.Tensor]:
        """Inputs of the generator that are the same for all videos: frame rate, and original size if it takes it."""
        constants = {"fps": torch.tensor(float(fps), device=device)}
        if self.transformer.config.resolution_token:
            constants["resolution"] = torch.tensor(size, device=device)
        return constants

    def prepare_references(
        self, prompts: list[MultimodalPrompt], repeats: int, device: torch.device
    ) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """
        For a generator that looks at them, pixels of the prompts' images, `(videos, images, 3, height, width)`, and
        which of them there are, for each branch of guidance: only that of the whole prompt sees any.
        """
        most = max(len(prompt.images) for prompt in prompts)
        if not self.transformer.config.reference_patch_size or not most:
            return {}
        height, width = self.transformer.config.height, self.transformer.config.width
        pixels = torch.zeros(len(prompts), most, 3, height, width)
        mask = torch.zeros(len(prompts), most, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            for column, image in enumerate(load_images(prompt.images)):
                pixels[row, column] = self.video_processor.preprocess(image, height=height, width=width)[0]
                mask[row, column] = True
        shown = mask.repeat_interleave(repeats, dim=0).to(device)
        hidden = torch.zeros_like(shown)
        return {
            "reference_images": pixels.repeat_interleave(repeats, dim=0).to(device, self.transformer.dtype),
            "reference_mask": (shown, hidden, hidden),
        }

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        images: Sequence[Image] | Sequence[Sequence[Image]] | Mapping[str, Image | Sequence[Image]] | None = None,
        task: str | list[str] | None = None,
        context: Sequence | None = None,
        video: Video | Sequence[Video] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float = DEFAULT_FPS,
        num_inference_steps: int = 24,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.0,
        image_guidance_scale: float | None = None,
        original_size: tuple[int, int] | None = None,
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
                `<image>` tags as images, or names such as `<dog>`) stand where the images belong.
            images (`list` or `dict`, *optional*):
                The images of one prompt (PIL images of any mode, paths or URLs), or a list of lists for a batch;
                prompts may have different numbers of images. Transparent parts become white. A dict
                (`{"dog": image}`) binds names; a name may have a list of several views of its subject.
            task (`str` or `list[str]`, *optional*):
                `"text-to-video"`, `"subject"` or `"prediction"` (one image, the first frame). Defaults to `"subject"`
                for a prompt with tags and to `"text-to-video"` otherwise.
            context (`list`, *optional*):
                Retrieved text-image pairs for `"text-to-video"`, best first, as [`ImageTextMemory.search`] returns
                them, or `(text, image)` tuples; a list of lists for a batch.
            video (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`, *optional*):
                Frames that the result begins with, fewer than `num_frames`; or a list of such videos for a batch.
                Without `task` it means `"prediction"`, whose image then is the first of these frames. For more than
                one window see [`~VIMIPipeline.extend`].
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
            sigmas (`list[float]`, *optional*):
                Noise levels to use instead of the scheduler's grid; their number replaces `num_inference_steps`.
            guidance_scale (`float`, *optional*, defaults to `3.0`):
                Weight of classifier-free guidance (2207.12598); at most `1` switches it off. With a `guider` among
                the components, that decides instead.
            image_guidance_scale (`float`, *optional*):
                Weight of the images apart from that of the words (see [`VIMIGuidance`]), for a third branch.
            original_size (`tuple[int, int]`, *optional*):
                Height and width that the generator is told as the original resolution, where it takes them. Defaults
                to those of the result.
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
        if sigmas is not None:
            num_inference_steps = len(sigmas)
        self._begin_call(guidance_scale, image_guidance_scale, attention_kwargs)
        beginning = None
        if video is not None:
            num_prompts = 1 if prompt is None or isinstance(prompt, str) else len(prompt)
            num_prompts = num_prompts if prompt_embeds is None else len(prompt_embeds)
            beginning = self.prepare_video(video, height, width, num_frames, num_prompts)
            task = "prediction" if task is None and prompt_embeds is None else task
            if task == "prediction" and images is None:
                first = self.video_processor.postprocess(beginning[:, :, 0], output_type="pil")
                images = first if isinstance(prompt, str) else [[image] for image in first]
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
        guider = self._choose_guider(prompt_embeds)
        device = self._execution_device
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

        # 3. Prepare timesteps, noise and further inputs of the generator
        self._set_timesteps(num_inference_steps, sigmas, device)
        num_videos = branches["encoder_hidden_states"][0].shape[0]
        latents = self.prepare_latents(num_videos, num_frames, height, width, device, generator, latents)
        if beginning is not None:
            beginning = self.encode_video(beginning.to(device)).repeat_interleave(num_videos_per_prompt, dim=0)
        constants = self.prepare_constants(fps, original_size or (height, width), device)
        shared = {} if prompts is None else self.prepare_references(prompts, num_videos_per_prompt, device)

        # 4. Denoise
        latents = self._denoise(
            latents,
            branches,
            shared,
            constants,
            guider,
            num_inference_steps,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            beginning=beginning,
        )

        # 5. Decode
        if output_type == "latent":
            frames = latents
        else:
            frames = self.video_processor.postprocess_video(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (frames,)
        return VIMIPipelineOutput(frames=frames)

    def extend(
        self,
        video: Video,
        prompt: str | Sequence[str],
        num_new_frames: int,
        overlap: int = 4,
        output_type: str = "np",
        **kwargs: Any,
    ) -> VIMIPipelineOutput:
        """
        Continue a video by prediction, window after window: each begins with the last `overlap` frames so far.

        Args:
            video (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
                The frames of one video.
            prompt (`str` or `list[str]`):
                What goes on, or one prompt for each window.
            num_new_frames (`int`):
                How many frames to add.
            overlap (`int`, *optional*, defaults to `4`):
                How many frames a window shares with what was there: more keep the motion, fewer make longer steps.
            output_type (`str`, *optional*, defaults to `"np"`):
                `"np"`, `"pt"` or `"pil"`.
            kwargs:
                Other arguments of [`~VIMIPipeline.__call__`].

        Returns:
            [`VIMIPipelineOutput`]: one video, `video` with the new frames after it.

        Raises:
            `ValueError`: if the numbers do not fit each other, before any model runs.
        """
        window = kwargs.get("num_frames")
        if window is None:
            window = (self.transformer.config.num_frames - 1) * self.vae_scale_factor_temporal + 1
        height, width = (
            kwargs.get(name) or self.transformer.config[name] * self.vae_scale_factor_spatial
            for name in ("height", "width")
        )
        if output_type not in ("np", "pt", "pil"):
            raise ValueError(f"`output_type` must be 'np', 'pt' or 'pil' to join windows, got {output_type!r}.")
        if num_new_frames < 1:
            raise ValueError(f"`num_new_frames` must be at least 1, got {num_new_frames}.")
        frames = self._preprocess_video(video, height, width).cpu()
        if len(frames) != 1:
            raise ValueError(f"`extend` continues one video, got {len(frames)}: call it for each.")
        if not 1 <= overlap <= min(frames.shape[2], window - 1):
            raise ValueError(
                f"`overlap` must be from 1 to {min(frames.shape[2], window - 1)} with {frames.shape[2]} frames given "
                f"and windows of {window}, got {overlap}."
            )
        windows = -(-num_new_frames // (window - overlap))
        prompts = [prompt] * windows if isinstance(prompt, str) else list(prompt)
        if len(prompts) != windows:
            raise ValueError(f"{num_new_frames} new frames take {windows} windows, `prompt` has {len(prompts)} texts.")
        total = frames.shape[2] + num_new_frames
        for text in prompts:
            last = (frames[0, :, -overlap:] / 2 + 0.5).permute(1, 0, 2, 3)  # frames first, in [0, 1]
            new = self(text, task="prediction", video=last[None], output_type="pt", **kwargs).frames.float().cpu()
            frames = torch.cat([frames, new.transpose(1, 2)[:, :, overlap:] * 2 - 1], dim=2)
        return VIMIPipelineOutput(
            frames=self.video_processor.postprocess_video(frames[:, :, :total], output_type=output_type)
        )
