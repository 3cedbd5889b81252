# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Guidance of the sampler: one scale for the text, one for the images, and when they apply."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput, rescale_noise_cfg
from diffusers.utils import logging


if TYPE_CHECKING:
    from diffusers.modular_pipelines.modular_pipeline import BlockState


_base_logger = logging.get_logger("diffusers.guiders.guider_utils")


def default_guidance(shows_images: bool) -> dict[str, float]:
    """
    The scales with which the command line samples, as arguments of [`VIMIPipeline`]: where a prompt shows images,
    their weight alone is raised. On the embedded weights that follows images further than weighing words and images
    together, for the same two branches.

    Args:
        shows_images (`bool`): Whether the prompt has images, given or retrieved.
    """
    return {"guidance_scale": 1.0, "image_guidance_scale": 4.0} if shows_images else {"guidance_scale": 3.0}


class VIMIGuidance(BaseGuidance):
    r"""
    Classifier-free guidance with separate scales for the text `T` and the images `I` of a prompt.

    With `e(T, I)` the network output for the whole prompt, `e(T, 0)` for its text without the images and `e(0, 0)`
    for the empty prompt, the guided output is (after InstructPix2Pix, 2211.09800, eq. 3, in the order that suits an
    image inside a text)

        e(0, 0) + s_text * (e(T, 0) - e(0, 0)) + s_image * (e(T, I) - e(T, 0))

    which samples from `p(x) * p(T | x)**s_text * p(I | x, T)**s_image`. Only the branches whose weight is not zero are
    evaluated: three in general; two for equal scales, which is ordinary classifier-free guidance (2207.12598), or for
    a text scale of 1; one when both are 1, which is no guidance.

    Guidance applies on the steps that all of `start`, `stop`, `oscillation_start` and `guidance_interval` allow; on
    the other steps both scales are 1 and only `e(T, I)` is evaluated.

    Values of `prepare_inputs` are tensors that all branches share, or tuples in the order (whole prompt, empty prompt,
    text alone): the first two entries are where the other guiders of diffusers look for them. The third may be left
    out where the two scales are equal.

    Args:
        guidance_scale (`float`, *optional*, defaults to `3.0`):
            Scale of the text, `s_text`, and of the images unless `image_guidance_scale` is given.
        image_guidance_scale (`float`, *optional*):
            Scale of the images, `s_image`. `None` makes it equal to `guidance_scale`.
        guidance_rescale (`float`, *optional*, defaults to `0.0`):
            How far, 0 to 1, the guided output is brought back to the standard deviation of `e(T, I)` (2305.08891,
            section 3.4).
        oscillation_start (`float`, *optional*):
            Share of the steps after which guided and unguided steps alternate, beginning with a guided one (Imagen
            Video, 2210.02303); 0 alternates from the first step. `None`: no alternation.
        guidance_interval (`tuple[float, float]`, *optional*):
            Noise levels `(low, high]` of the guided steps (2404.07724), in units of plain EDM, that is
            `sigma_in * sigma`. A step is guided or not as a whole: what counts is the level where it starts.
        sigma_in (`float`, *optional*):
            Input scaling of the scheduler, needed for `guidance_interval`.
        start (`float`, *optional*, defaults to `0.0`):
            Share of the steps before the first guided one.
        stop (`float`, *optional*, defaults to `1.0`):
            Share of the steps after which there is no guidance any more.
        enabled (`bool`, *optional*, defaults to `True`):
            `False` switches guidance off.

    Raises:
        ValueError: If a value is out of its range, or `guidance_interval` comes without `sigma_in`.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_text"]

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 3.0,
        image_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        oscillation_start: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        sigma_in: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        _base_logger.disabled = True  # it warns with each guider that they are experimental; pipelines make many
        try:
            super().__init__(start, stop, enabled)
        finally:
            _base_logger.disabled = False
        for name, value in (("guidance_scale", guidance_scale), ("image_guidance_scale", image_guidance_scale)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be a finite number of at least 0 (1 is no guidance), got {value}.")
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"`guidance_rescale` must be between 0 and 1, got {guidance_rescale}.")
        if oscillation_start is not None and not 0 <= oscillation_start < 1:
            raise ValueError(f"`oscillation_start` is a share of the steps, 0 <= share < 1, got {oscillation_start}.")
        if guidance_interval is not None:
            is_pair = isinstance(guidance_interval, (list, tuple)) and len(guidance_interval) == 2
            if not is_pair or not 0 <= guidance_interval[0] < guidance_interval[1]:
                raise ValueError(f"`guidance_interval` needs two levels, 0 <= low < high, got {guidance_interval}.")
            if sigma_in is None:
                raise ValueError("`guidance_interval` needs `sigma_in`: pass the scheduler's (1 for plain EDM).")
        if sigma_in is not None and not sigma_in > 0:
            raise ValueError(f"`sigma_in` must be positive, got {sigma_in}.")
        self.guidance_scale = guidance_scale
        self.image_guidance_scale = image_guidance_scale
        self.guidance_rescale = guidance_rescale
        self.oscillation_start = oscillation_start
        self.guidance_interval = guidance_interval
        self.sigma_in = sigma_in
        self._noise_level: float | None = None

    # ------------------------------------------------------------------ when guidance applies
    def set_state(self, step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        """
        Tells the guider where the sampler is.

        Args:
            step (`int`): Index of the step. The two model calls of a Heun step have the same.
            num_inference_steps (`int`): Number of steps.
            timestep (`torch.Tensor`): `c_noise = ln(sigma) / 4` where the step starts, for both calls of a Heun step.
        """
        super().set_state(step, num_inference_steps, timestep)
        if self.guidance_interval is not None:  # only then: reading a timestep waits for the device
            self._noise_level = self.sigma_in * math.exp(4 * float(timestep))

    def check_scheduler(self, scheduler: Any) -> None:
        """
        Checks that the guider measures noise levels as the scheduler does.

        Raises:
            ValueError: If `guidance_interval` is used with another `sigma_in` than the scheduler's.
        """
        if self.guidance_interval is not None and not math.isclose(self.sigma_in, scheduler.config.sigma_in):
            raise ValueError(
                f"The guider's `sigma_in` {self.sigma_in} is not the scheduler's {scheduler.config.sigma_in}: "
                f"use `guider.new(sigma_in={scheduler.config.sigma_in})`."
            )

    def current_scales(self) -> tuple[float, float]:
        """The scales of text and images at this step: 1 and 1 where guidance is off."""
        if not self._enabled or not self._is_guided_step():
            return 1.0, 1.0
        image_scale = self.guidance_scale if self.image_guidance_scale is None else self.image_guidance_scale
        return self.guidance_scale, image_scale

    def _is_guided_step(self) -> bool:
        if self._num_inference_steps is None:  # before the first `set_state`
            return True
        step, steps = self._step, self._num_inference_steps
        if not int(self._start * steps) <= step < int(self._stop * steps):
            return False
        if self.oscillation_start is not None:
            since = step - int(self.oscillation_start * steps)
            if since > 0 and since % 2:
                return False
        if self.guidance_interval is None:
            return True
        low, high = self.guidance_interval
        level = self._noise_level * (1 - 1e-5)  # timesteps are logarithms in fp32: keep a level at the border inside
        return low <= level < high

    # ------------------------------------------------------------------ diffusers' protocol of a guider
    def _current_predictions(self) -> list[str]:
        text_scale, image_scale = self.current_scales()
        needed = (True, not math.isclose(text_scale, 1.0), not math.isclose(text_scale, image_scale))
        return [name for name, is_needed in zip(self._input_predictions, needed) if is_needed]

    @property
    def num_conditions(self) -> int:
        """`int`: Number of branches at this step."""
        return len(self._current_predictions())

    @property
    def is_conditional(self) -> bool:
        """`bool`: Whether the branch prepared last is that of the whole prompt."""
        return self._count_prepared == 1

    def prepare_inputs(self, data: Mapping[str, torch.Tensor | tuple]) -> list["BlockState"]:
        """
        Sorts the model's inputs into the branches of this step.

        Args:
            data (`dict`): By name a tensor for all branches, or a tuple (whole prompt, empty prompt, text alone).

        Returns:
            `list[BlockState]`: One for each branch, the whole prompt first.

        Raises:
            ValueError: If a tuple has no entry for a branch of this step.
        """
        return [self._prepare_batch(data, self._tuple_index(name, data), name) for name in self._current_predictions()]

    def prepare_inputs_from_block_state(
        self, data: "BlockState", input_fields: Mapping[str, str | tuple[str, ...]]
    ) -> list["BlockState"]:
        """As [`~VIMIGuidance.prepare_inputs`], with the names of attributes of `data` instead of tensors."""
        return [
            self._prepare_batch_from_block_state(input_fields, data, self._tuple_index(name, input_fields), name)
            for name in self._current_predictions()
        ]

    def _tuple_index(self, prediction: str, fields: Mapping[str, Any]) -> int:
        index = self._input_predictions.index(prediction)
        for name, value in fields.items():
            if isinstance(value, tuple) and len(value) <= index:
                raise ValueError(
                    f"Text scale {self.guidance_scale} and image scale {self.image_guidance_scale} need "
                    f"`{prediction}`, entry {index} of `{name}`, which has {len(value)}: add it, or set "
                    f"`{'image_guidance_scale=None' if prediction == 'pred_text' else 'guidance_scale=1'}`."
                )
        return index

    def forward(
        self,
        pred_cond: torch.Tensor,
        pred_uncond: torch.Tensor | None = None,
        pred_text: torch.Tensor | None = None,
    ) -> GuiderOutput:
        """
        Combines the branches of this step. F, D and the noise are linear in each other: the equation holds for each.

        Args:
            pred_cond (`torch.Tensor` of shape `(batch_size, ...)`): `e(T, I)`.
            pred_uncond (`torch.Tensor` of the same shape, *optional*): `e(0, 0)`.
            pred_text (`torch.Tensor` of the same shape, *optional*): `e(T, 0)`.

        Raises:
            ValueError: If a branch that this step needs is missing.
        """
        given = dict(zip(self._input_predictions, (pred_cond, pred_uncond, pred_text)))
        needed = self._current_predictions()
        missing = [name for name in needed if given[name] is None]
        if missing:
            raise ValueError(f"This step needs {', '.join(needed)}; missing: {', '.join(missing)}.")
        text_scale, image_scale = self.current_scales()
        pred = below = None
        for name, scale in (("pred_uncond", 1.0), ("pred_text", text_scale), ("pred_cond", image_scale)):
            if name in needed:  # a branch left out has weight 0: the neighbours' differences add up to the same
                pred = given[name] if below is None else pred + scale * (given[name] - below)
                below = given[name]
        if self.guidance_rescale > 0 and len(needed) > 1:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)


def predict_branches(
    guider: BaseGuidance,
    model: torch.nn.Module,
    branches: Sequence["BlockState"],
    cache_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor | None, ...]:
    """
    Evaluates the model for all branches of a step and puts each one's output, in fp32, into its `noise_pred`.

    The branches go through the model as one batch, the whole prompt last, unless the guider prepares the model for
    each (as `SkipLayerGuidance`, `PerturbedAttentionGuidance`, `SmoothedEnergyGuidance` and `AutoGuidance` do): then
    one after the other, as the protocol has it.

    Args:
        guider (`BaseGuidance`): Any guider of diffusers, after `set_state`.
        model (`torch.nn.Module`): The denoiser, called with `return_dict=False`.
        branches (`list[BlockState]`):
            What `guider.prepare_inputs` returned: the model's arguments by name, batch first and of one shape in all
            branches. A boolean mask may be `None` in some, which keeps everything.
        cache_info (`dict`, *optional*): Further arguments of `model.cache_context`, such as `step_index`.
        kwargs: Arguments of the model that are the same for all branches and have no batch dimension.

    Returns:
        `tuple`: What the model returned for the first branch, the whole prompt.

    Raises:
        ValueError: If an argument is missing in a branch, or has another shape there than in the others.
    """
    names = [getattr(branch, guider._identifier_key) for branch in branches]
    inputs = [{k: v for k, v in branch.as_dict().items() if k != guider._identifier_key} for branch in branches]
    cache_info = cache_info or {}
    if type(guider).prepare_models is BaseGuidance.prepare_models:
        names, inputs = names[::-1], inputs[::-1]  # in batches of diffusers, such as FasterCache takes, C comes last
        batch = {key: _join(key, [own.get(key) for own in inputs], names) for key in inputs[0]}
        batch = {key: value for key, value in batch.items() if value is not None}  # caches take these apart
        with model.cache_context("+".join(names), **cache_info):
            output = model(**batch, **kwargs, return_dict=False)
        samples = output[0].chunk(len(names))[::-1]
        # a cache that leaves branches out rebuilds their samples alone, so count from the end
        whole = tuple(None if part is None else part[-len(samples[0]) :] for part in output)
    else:
        outputs = []
        for name, own in zip(names, inputs):
            guider.prepare_models(model)
            try:
                with model.cache_context(name, **cache_info):
                    outputs.append(model(**own, **kwargs, return_dict=False))
            finally:
                guider.cleanup_models(model)
        samples, whole = [output[0] for output in outputs], outputs[0]
    for branch, sample in zip(branches, samples, strict=True):
        branch.noise_pred = sample.float()
    return whole


def guided_output(
    guider: BaseGuidance,
    model: torch.nn.Module,
    scheduler: Any,
    index: int,
    timestep: torch.Tensor,
    num_inference_steps: int,
    inputs: Mapping[str, torch.Tensor | tuple],
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    One model call of the sampling loop with all its branches, for the pipelines and their modular blocks.

    Args:
        guider (`BaseGuidance`): Combines the branches.
        model ([`VIMITransformer3DModel`]): The generator.
        scheduler ([`EDMVideoScheduler`]): At the step `index`.
        index (`int`): Index into `scheduler.timesteps`.
        timestep (`torch.Tensor`): That entry.
        num_inference_steps (`int`): Number of noise levels.
        inputs (`dict`): What `guider.prepare_inputs` takes.
        kwargs: Arguments of the model that are the same for all branches.

    Returns:
        `tuple`: the guided output, and the latents that self-conditioning carries on from here, if any.
    """
    step = index // scheduler.order  # the two calls of a Heun step are guided alike
    guider.set_state(step, num_inference_steps, scheduler.timesteps[step * scheduler.order])
    branches = guider.prepare_inputs(inputs)
    noise = scheduler.config.sigma_in * scheduler.current_sigma(timestep)
    cache_info = {
        "step_index": index,
        "sigma": noise / (1 + noise),  # of flow matching, where signal and noise sum to 1, as SeaCache wants it
        "num_inference_steps": len(scheduler.timesteps),
    }
    outputs = predict_branches(guider, model, branches, cache_info, **kwargs)
    carries = model.config.self_conditioning and index % scheduler.order == 0  # of Heun's two calls the first counts
    return guider(branches)[0], outputs[1] if carries else None


def _join(key: str, values: list[torch.Tensor | None], names: list[str]) -> torch.Tensor | None:
    """One argument of all branches along the batch."""
    present = [value for value in values if value is not None]
    if not present or len(values) == 1:
        return values[0]
    if len(present) < len(values):
        if present[0].dtype != torch.bool:
            raise ValueError(f"`{key}` is missing in {names[values.index(None)]}: pass it for every branch.")
        values = [torch.ones_like(present[0]) if value is None else value for value in values]
    if len({value.shape for value in values}) > 1:
        shapes = ", ".join(f"{tuple(value.shape)} in {name}" for name, value in zip(names, values))
        raise ValueError(f"`{key}` must have one shape in all branches, got {shapes}: pad it.")
    return torch.cat(values)
