# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""[`VIMIPipeline`] as modular blocks of diffusers: the same steps and the same videos, each step replaceable."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import (
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING, BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.utils.hub_utils import populate_model_card
from huggingface_hub import ModelCard
from transformers import AutoProcessor

from ..media import DEFAULT_FPS
from ..model_card import TAGS
from ..prompting import lay_out_prompts
from .guidance import VIMIGuidance, guided_output
from .lora import VIMILoraLoaderMixin
from .mllm_conditioner import MLLMConditioner
from .pipeline_vimi import VIMIPipeline
from .scheduling_edm_video import EDMVideoScheduler
from .transformer_vimi import VIMITransformer3DModel


class VIMIModularPipeline(ModularPipeline, VIMILoraLoaderMixin):
    """
    A [`ModularPipeline`] for VIMI, made by `VIMIBlocks().init_pipeline(repository)`.

    The arguments are those of [`VIMIPipeline`], except that the scale of guidance belongs to the component `guider`:
    `pipe.update_components(guider=VIMIGuidance(guidance_scale=5.0))`.
    """

    default_blocks_name = "VIMIBlocks"

    def __init__(
        self,
        blocks: ModularPipelineBlocks | None = None,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        config_dict: dict[str, Any] | None = None,
        **kwargs,
    ):
        if pretrained_model_name_or_path is not None:  # diffusers loads components from strings only
            pretrained_model_name_or_path = os.fspath(pretrained_model_name_or_path)
        config_dict = _without_null_components(config_dict)
        super().__init__(blocks, pretrained_model_name_or_path, config_dict=config_dict, **kwargs)

    @classmethod
    def _load_pipeline_config(cls, *args, **kwargs) -> tuple[dict | None, dict | None]:
        modular, standard = super()._load_pipeline_config(*args, **kwargs)
        return modular, _without_null_components(standard)

    def _upload_folder(self, working_dir: str | os.PathLike, *args, **kwargs) -> Any:
        readme = Path(working_dir, "README.md")
        if readme.is_file():
            card = ModelCard.load(readme)
            # diffusers tags every modular pipeline that has no workflows as text-to-image
            card.data.tags = [tag for tag in card.data.tags or () if tag != "text-to-image"]
            populate_model_card(card, [tag for tag in TAGS if tag not in card.data.tags]).save(readme)
        return super()._upload_folder(working_dir, *args, **kwargs)

    @property
    def requires_unconditional_embeds(self) -> bool:
        """`bool`: Whether `guider` runs more than the branch of the whole prompt in some step."""
        if getattr(self, "guider", None) is None:
            return False
        guider = copy.copy(self.guider)
        guider._num_inference_steps = None  # what it does before the first step, not after the last run
        return guider.num_conditions > 1

    def standard_pipeline(self) -> VIMIPipeline:
        """A [`VIMIPipeline`] of the components at hand, whose methods the blocks call."""
        names = ("text_encoder", "text_processor", "transformer", "scheduler", "vae")
        pipe = VIMIPipeline(
            **{name: getattr(self, name, None) for name in names},
            guider=self.guider if self.requires_unconditional_embeds else None,
        )
        pipe._guidance_scale = 1.0  # the guider alone decides
        return pipe


def _without_null_components(config_dict: dict[str, Any] | None) -> dict[str, Any] | None:
    # `[null, null]` in model_index.json is an optional component left out: nothing to load, or the blocks' default.
    if config_dict is None:
        return None
    return {name: value for name, value in config_dict.items() if value not in ([None, None], (None, None))}


MODULAR_PIPELINE_MAPPING["vimi"] = lambda config_dict=None: "VIMIModularPipeline"

_PROMPTS = {
    "prompt": InputParam("prompt", str | list[str], description="The prompt or a batch of prompts."),
    "images": InputParam("images", list, description="The images that the tags stand for, or the first frame."),
    "task": InputParam("task", str, description="`text-to-video`, `subject` or `prediction`."),
    "context": InputParam("context", list, description="Retrieved text-image pairs for `text-to-video`."),
    "negative_prompt": InputParam("negative_prompt", str | list[str], description="What to guide away from."),
    "max_sequence_length": InputParam("max_sequence_length", int, description="Longest prompt in tokens."),
}
_EMBEDS = {
    name: InputParam(name, torch.Tensor, description=text)
    for name, text in {
        "prompt_embeds": "C of the prompts, instead of `prompt`, `images`, `task` and `context`.",
        "negative_prompt_embeds": "C of the negative prompts.",
        "prompt_attention_mask": "Which tokens of `prompt_embeds` count.",
        "negative_prompt_attention_mask": "Which tokens of `negative_prompt_embeds` count.",
        "words_embeds": "C of the prompts' words without images, for a guider with an image scale.",
        "words_attention_mask": "Which tokens of `words_embeds` count.",
    }.items()
}
_SIZES = {
    "height": InputParam("height", int, description="Height in pixels. Defaults to the generator's size."),
    "width": InputParam("width", int, description="Width in pixels. Defaults to the generator's size."),
    "num_frames": InputParam("num_frames", int, description="Number of frames. Defaults to the generator's length."),
}
_SAMPLING = {
    "fps": InputParam("fps", float, default=DEFAULT_FPS, description="Frames per second; infinity for a still."),
    "original_size": InputParam("original_size", tuple, description="Height and width that the generator is told."),
    "num_inference_steps": InputParam("num_inference_steps", int, default=24, description="Number of noise levels."),
    "sigmas": InputParam("sigmas", list[float], description="The noise levels themselves, falling."),
    "num_videos_per_prompt": InputParam("num_videos_per_prompt", int, default=1, description="Videos per prompt."),
    "generator": InputParam("generator", torch.Generator, description="Source of the noise, or one for each video."),
    "latents": InputParam("latents", torch.Tensor, description="Standard normal noise to start from."),
    "attention_kwargs": InputParam("attention_kwargs", dict, description="Handed to the generator."),
    "output_type": InputParam("output_type", str, default="np", description="`np`, `pt`, `pil` or `latent`."),
}
_INPUTS = _PROMPTS | _EMBEDS | _SIZES | _SAMPLING


def _inputs(*names: str, required: tuple[str, ...] = ()) -> list[InputParam]:
    params = [copy.copy(_INPUTS[name]) for name in (*names, *required)]
    for param in params[len(names) :]:
        param.required = True
    return params


def _outputs(*names: str) -> list[OutputParam]:
    return [OutputParam(name, _INPUTS[name].type_hint, _INPUTS[name].description) for name in names]


_TEXT_ENCODER = ComponentSpec("text_encoder", MLLMConditioner, description="Multimodal language model.")
_TEXT_PROCESSOR = ComponentSpec("text_processor", AutoProcessor, description="Its tokenizer and image processor.")
_TRANSFORMER = ComponentSpec("transformer", VIMITransformer3DModel, description="FIT generator.")
_SCHEDULER = ComponentSpec("scheduler", EDMVideoScheduler, description="EDM with input scaling.")
_VAE = ComponentSpec("vae", AutoModel, description="Video autoencoder; without it the generator works on pixels.")
_GUIDER = ComponentSpec(
    "guider",
    VIMIGuidance,
    description="Guidance; any guider of diffusers.",
    config=FrozenDict({"guidance_scale": 3.0}),
    default_creation_method="from_config",
)


class VIMICheckInputsStep(ModularPipelineBlocks):
    """Raises a `ValueError` for arguments that cannot work, before any model runs."""

    model_name = "vimi"
    description = "Checks all arguments before any model runs and fills in the generator's own size."
    expected_components = [_TEXT_ENCODER, _TEXT_PROCESSOR, _TRANSFORMER, _SCHEDULER, _VAE, _GUIDER]
    inputs = _inputs(
        *_PROMPTS,
        *(name for name in _EMBEDS if not name.startswith("words")),
        *_SIZES,
        *(name for name in _SAMPLING if name not in ("original_size", "attention_kwargs")),
    )
    intermediate_outputs = _outputs(*_SIZES, "num_inference_steps")

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        pipe, sample = components.standard_pipeline(), components.transformer.config
        if block_state.height is None:
            block_state.height = sample.height * pipe.vae_scale_factor_spatial
        if block_state.width is None:
            block_state.width = sample.width * pipe.vae_scale_factor_spatial
        if block_state.num_frames is None:
            block_state.num_frames = (sample.num_frames - 1) * pipe.vae_scale_factor_temporal + 1
        if block_state.sigmas is not None:
            block_state.num_inference_steps = len(block_state.sigmas)
        arguments = block_state.as_dict()
        arguments = {name: value for name, value in arguments.items() if name not in ("sigmas", "max_sequence_length")}
        pipe.check_inputs(**arguments, callback_on_step_end_tensor_inputs=[])
        self.set_block_state(state, block_state)
        return components, state


class VIMITextEncoderStep(ModularPipelineBlocks):
    """Encodes the prompts with their images, and the negative prompts, into C."""

    model_name = "vimi"
    description = "Encodes the prompts with their images, and what guidance compares them with, into C."
    expected_components = [_TEXT_ENCODER, _TEXT_PROCESSOR, _GUIDER]
    inputs = _inputs(*_PROMPTS, *(name for name in _EMBEDS if not name.startswith("words")))
    intermediate_outputs = _outputs(*_EMBEDS)

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        pipe, device = components.standard_pipeline(), components._execution_device
        has_prompt = block_state.prompt_embeds is None
        (
            block_state.prompt_embeds,
            block_state.negative_prompt_embeds,
            block_state.prompt_attention_mask,
            block_state.negative_prompt_attention_mask,
        ) = pipe.encode_prompt(
            **block_state.as_dict(),
            do_classifier_free_guidance=components.requires_unconditional_embeds,
            device=device,
        )
        block_state.words_embeds = block_state.words_attention_mask = None
        if getattr(components.guider, "image_guidance_scale", None) is not None:
            if not has_prompt:
                raise ValueError(
                    "The guider's `image_guidance_scale` needs `prompt`, whose words it separates: drop "
                    "`prompt_embeds`, or use `image_guidance_scale=None`."
                )
            token = components.text_processor.image_token
            prompts = lay_out_prompts(
                block_state.prompt, block_state.images, block_state.task, block_state.context, image_token=token
            )
            block_state.words_embeds, _, block_state.words_attention_mask, _ = pipe.encode_prompt(
                prompt=[each.words for each in prompts],
                task="text-to-video",
                do_classifier_free_guidance=False,
                max_sequence_length=block_state.max_sequence_length,
                device=device,
            )
        self.set_block_state(state, block_state)
        return components, state


class VIMIInputStep(ModularPipelineBlocks):
    """Repeats C for every video, pads its branches to one length, and collects what else the generator is told."""

    model_name = "vimi"
    description = "Repeats C for every video, pads it to one length, and collects what else the generator is told."
    expected_components = [_TEXT_PROCESSOR, _TRANSFORMER, _VAE]
    inputs = _inputs(
        *("prompt", "images", "task", "context", "num_videos_per_prompt", "fps", "original_size"),
        *(name for name in _EMBEDS if name != "prompt_embeds"),
        required=("prompt_embeds", "height", "width"),
    )
    intermediate_outputs = [
        OutputParam("branches", dict, "Inputs of the generator for the branches of guidance."),
        OutputParam("shared", dict, "Further inputs of the generator, one row for each video."),
        OutputParam("constants", dict, "Inputs of the generator that are the same for all videos."),
        OutputParam("batch_size", int, "Number of videos."),
    ]

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        pipe, device = components.standard_pipeline(), components._execution_device
        repeats, pairs = block_state.num_videos_per_prompt, []
        for name in ("prompt", "negative_prompt", "words"):
            embeds, mask = block_state[f"{name}_embeds"], block_state[f"{name}_attention_mask"]
            if embeds is not None:  # known embeddings are only repeated
                embeds, _, mask, _ = pipe.encode_prompt(
                    prompt_embeds=embeds,
                    prompt_attention_mask=mask,
                    do_classifier_free_guidance=False,
                    num_videos_per_prompt=repeats,
                    device=device,
                )
            pairs.append((embeds, mask))
        block_state.branches = pipe._prepare_branches(*zip(*pairs), device)
        block_state.batch_size = len(pairs[0][0])
        size = block_state.original_size or (block_state.height, block_state.width)
        block_state.constants = pipe.prepare_constants(block_state.fps, size, device)
        block_state.shared = {}
        if components.transformer.config.reference_patch_size and block_state.prompt is not None:
            token = components.text_processor.image_token
            prompts = lay_out_prompts(
                block_state.prompt, block_state.images, block_state.task, block_state.context, image_token=token
            )
            block_state.shared = pipe.prepare_references(prompts, repeats, device)
        self.set_block_state(state, block_state)
        return components, state


class VIMISetTimestepsStep(ModularPipelineBlocks):
    """Sets the scheduler's noise levels."""

    model_name = "vimi"
    description = "Sets the scheduler's noise levels."
    expected_components = [_SCHEDULER]
    inputs = _inputs("num_inference_steps", "sigmas")
    intermediate_outputs = [OutputParam("timesteps", torch.Tensor, "One timestep for each call of the generator.")]

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state, scheduler = self.get_block_state(state), components.scheduler
        if block_state.sigmas is None:
            scheduler.set_timesteps(block_state.num_inference_steps, device=components._execution_device)
        else:
            scheduler.set_timesteps(sigmas=block_state.sigmas, device=components._execution_device)
            block_state.num_inference_steps = len(block_state.sigmas)
        scheduler.set_begin_index(0)
        block_state.timesteps = scheduler.timesteps
        self.set_block_state(state, block_state)
        return components, state


class VIMIPrepareLatentsStep(ModularPipelineBlocks):
    """Draws the noise, or takes what was passed, at the scheduler's scale."""

    model_name = "vimi"
    description = "Draws the noise that sampling starts from, at the scheduler's scale."
    expected_components = [_TRANSFORMER, _SCHEDULER, _VAE]
    inputs = [
        *_inputs("generator", "latents", required=("height", "width", "num_frames")),
        InputParam("batch_size", int, required=True, description="Number of videos."),
    ]
    intermediate_outputs = _outputs("latents")

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        pipe = components.standard_pipeline()
        block_state.latents = pipe.prepare_latents(**block_state.as_dict(), device=components._execution_device)
        self.set_block_state(state, block_state)
        return components, state


class VIMILoopBeforeDenoiser(ModularPipelineBlocks):
    """Within the loop: churn, and the scaled input of the generator."""

    model_name = "vimi"
    description = "Within the loop: raises the noise level where churn is on and scales the generator's input."
    expected_components = [_SCHEDULER, _TRANSFORMER]
    inputs = _inputs("generator", required=("latents",))

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[VIMIModularPipeline, BlockState]:
        scheduler = components.scheduler
        block_state.latents = scheduler.add_churn_noise(block_state.latents, t, generator=block_state.generator)
        model_input = scheduler.scale_model_input(block_state.latents, t).to(components.transformer.dtype)
        block_state.model_input = {
            "hidden_states": model_input,
            "timestep": scheduler.current_timestep(t).expand(len(model_input)),
        }
        return components, block_state


class VIMILoopDenoiser(ModularPipelineBlocks):
    """Within the loop: the generator's output for all branches of guidance, combined by the guider."""

    model_name = "vimi"
    description = "Within the loop: runs the generator on the branches of guidance in one batch and combines them."
    expected_components = [_GUIDER, _SCHEDULER, _TRANSFORMER]
    inputs = [
        *_inputs("attention_kwargs", "num_inference_steps"),
        InputParam("branches", dict, required=True, description="Inputs that differ between the branches."),
        InputParam("shared", dict, required=True, description="Further inputs, one row for each video."),
        InputParam("constants", dict, required=True, description="Inputs that are the same for all videos."),
    ]

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[VIMIModularPipeline, BlockState]:
        guider, scheduler = components.guider, components.scheduler
        if i == 0 and isinstance(guider, VIMIGuidance):
            guider.check_scheduler(scheduler)
        block_state.model_output, carried = guided_output(
            guider,
            components.transformer,
            scheduler,
            i,
            t,
            block_state.num_inference_steps,
            {**block_state.model_input, **block_state.branches, **block_state.shared},
            attention_kwargs=block_state.attention_kwargs,
            **block_state.constants,
        )
        if carried is not None:
            block_state.shared["previous_latents"] = carried
        return components, block_state


class VIMILoopAfterDenoiser(ModularPipelineBlocks):
    """Within the loop: the scheduler's step."""

    model_name = "vimi"
    description = "Within the loop: the scheduler's step."
    expected_components = [_SCHEDULER]
    inputs = _inputs("generator")
    intermediate_outputs = _outputs("latents")

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, block_state: BlockState, i: int, t: torch.Tensor
    ) -> tuple[VIMIModularPipeline, BlockState]:
        block_state.latents = components.scheduler.step(
            block_state.model_output, t, block_state.latents, generator=block_state.generator, return_dict=False
        )[0]
        return components, block_state


class VIMIDenoiseStep(LoopSequentialPipelineBlocks):
    """The loop over the timesteps; its sub-blocks are replaceable."""

    model_name = "vimi"
    description = "Denoises the latents: for each timestep before_denoiser, denoiser and after_denoiser."
    block_classes = [VIMILoopBeforeDenoiser, VIMILoopDenoiser, VIMILoopAfterDenoiser]
    block_names = ["before_denoiser", "denoiser", "after_denoiser"]
    loop_expected_components = [_SCHEDULER]
    loop_inputs = [
        *_inputs("num_inference_steps"),
        InputParam("timesteps", torch.Tensor, required=True, description="One for each call of the generator."),
    ]

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state, order = self.get_block_state(state), components.scheduler.order
        timesteps, steps = block_state.timesteps, block_state.num_inference_steps
        num_warmup_steps = len(timesteps) - steps * order
        with self.progress_bar(total=steps) as progress_bar:
            for i, t in enumerate(timesteps):
                components, block_state = self.loop_step(components, block_state, i=i, t=t)
                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % order == 0):
                    progress_bar.update()
        self.set_block_state(state, block_state)
        return components, state


class VIMIDecodeStep(ModularPipelineBlocks):
    """From the sampler's last state to videos."""

    model_name = "vimi"
    description = "Decodes the latents, if there is a video autoencoder, into videos."
    expected_components = [_VAE]
    inputs = _inputs("output_type", required=("latents",))
    intermediate_outputs = [OutputParam.template("videos")]

    @torch.no_grad()
    def __call__(
        self, components: VIMIModularPipeline, state: PipelineState
    ) -> tuple[VIMIModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        block_state.videos = block_state.latents
        if block_state.output_type != "latent":
            pipe = components.standard_pipeline()
            video = pipe.decode_latents(block_state.latents)
            block_state.videos = pipe.video_processor.postprocess_video(video, output_type=block_state.output_type)
        self.set_block_state(state, block_state)
        return components, state


class VIMIBlocks(SequentialPipelineBlocks):
    """
    The blocks of [`VIMIPipeline`]: text-to-video, subject-driven generation and prediction.

    ```python
    pipe = VIMIBlocks().init_pipeline("user/repo")
    pipe.load_components()
    video = pipe(prompt="A red ball rolls", output="videos")[0]
    ```
    """

    model_name = "vimi"
    description = "VIMI: a prompt of text and images becomes a short video that is grounded in those images."
    block_classes = [
        VIMICheckInputsStep,
        VIMITextEncoderStep,
        VIMIInputStep,
        VIMISetTimestepsStep,
        VIMIPrepareLatentsStep,
        VIMIDenoiseStep,
        VIMIDecodeStep,
    ]
    block_names = ["check_inputs", "text_encoder", "input", "set_timesteps", "prepare_latents", "denoise", "decode"]
    outputs = [OutputParam.template("videos")]
