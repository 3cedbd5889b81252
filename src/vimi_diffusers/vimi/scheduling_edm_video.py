# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""EDM with input scaling: the sampler. Its equations, which training shares, are in `scheduling_edm_equations.py`."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from .scheduling_edm_equations import EDMEquations, at_least_fp32, expand


CHOICES = {
    "solver": ("euler", "heun", "dpmsolver++"),
    "sigma_schedule": ("karras", "exponential"),
    "prediction_type": ("v_prediction", "epsilon"),
}


@dataclass
class EDMVideoSchedulerOutput(BaseOutput):
    """
    Output of [`EDMVideoScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(batch_size, channels, num_frames, height, width)`):
            The next state of the sampler; after the last step the data estimate itself, in data units. fp32, whatever
            the dtype of the model output (fp64 if the state was fp64).
        pred_original_sample (`torch.Tensor` of the same shape):
            The denoiser's estimate `D` of the clean video, in data units, after dynamic thresholding where that is on.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class EDMVideoScheduler(EDMEquations, SchedulerMixin, ConfigMixin):
    """
    EDM (Karras et al., 2206.00364) with the input scaling `sigma_in` of Snap Video (2402.14797, sections 3.1-3.3).

    Videos hold many redundant pixels, so a given noise level destroys less of them. The forward process therefore
    shrinks the signal: `x_sigma = x / sigma_in + sigma * noise`. The network predicts `F`, a unit-variance version of
    `v = sigma_data**2 * noise - sigma * x`.

    The sampler's state lives in the scaled coordinates (`x / sigma_in`), as all noise levels do, and stays in fp32;
    the last step returns the video in data units. With `solver="heun"` every step but the last has two model calls, so
    `timesteps` has `2 * num_inference_steps - 1` entries and `order` is 2.

    `sigma_in=1` is plain EDM. Its checkpoints predict `-F`, which diffusers calls `prediction_type="epsilon"`;
    [`~EDMVideoScheduler.from_config`] takes that over, so that `EDMVideoScheduler.from_config(scheduler.config)` of an
    `EDMEulerScheduler` or `EDMDPMSolverMultistepScheduler` describes the same denoiser, and so does the way back.

    Args:
        sigma_min (`float`, *optional*, defaults to `0.002`):
            Smallest noise level of the sampling grid, in scaled coordinates.
        sigma_max (`float`, *optional*, defaults to `80.0`):
            Largest noise level of the sampling grid, in scaled coordinates; the initial noise has this std.
        sigma_data (`float`, *optional*, defaults to `1.0`):
            Assumed standard deviation of the data.
        sigma_in (`float`, *optional*, defaults to `1.0`):
            Input scaling; Snap Video uses `s * sqrt(num_frames)` with `s` the linear resolution relative to 64 px.
        rho (`float`, *optional*, defaults to `7.0`):
            Curvature of the Karras grid (EDM eq. 5).
        solver (`str`, *optional*, defaults to `"heun"`):
            `"heun"` (EDM Algorithm 1), `"euler"`, or `"dpmsolver++"`, the second-order multistep solver
            DPM-Solver++(2M) (2211.01095, Algorithm 2): one model call for each step, good with few steps.
        p_mean (`float`, *optional*, defaults to `-1.2`):
            Mean of `ln(sigma)` in training.
        p_std (`float`, *optional*, defaults to `1.2`):
            Standard deviation of `ln(sigma)` in training.
        num_train_timesteps (`int`, *optional*, defaults to `1000`):
            Length of the grid before the first [`~EDMVideoScheduler.set_timesteps`]; noise levels are continuous.
        sigma_schedule (`str`, *optional*, defaults to `"karras"`):
            `"karras"` (EDM eq. 5) or `"exponential"`, evenly spaced in `ln(sigma)`.
        prediction_type (`str`, *optional*, defaults to `"v_prediction"`):
            Sign of the network output: `"v_prediction"` for `F` as above, `"epsilon"` for `-F`, as plain EDM has it.
        s_churn (`float`, *optional*, defaults to `0.0`):
            Fresh noise in a run (EDM Algorithm 2); 0 samples the ODE. The loop must then call
            [`~EDMVideoScheduler.add_churn_noise`]. Not for `solver="dpmsolver++"`.
        s_tmin (`float`, *optional*, defaults to `0.0`):
            Smallest noise level with churn, in scaled coordinates (plain EDM's value divided by `sigma_in`).
        s_tmax (`float`, *optional*):
            Largest noise level with churn, in scaled coordinates; no limit if not given.
        s_noise (`float`, *optional*, defaults to `1.0`):
            Factor on the standard deviation of the fresh noise.
        thresholding (`bool`, *optional*, defaults to `False`):
            Dynamic thresholding of `D` in data units (Imagen, 2205.11487, section 2.3). Not for latent data.
        dynamic_thresholding_ratio (`float`, *optional*, defaults to `0.995`):
            The quantile of `|D|`, of each video for itself, that becomes the threshold.
        sample_max_value (`float`, *optional*, defaults to `1.0`):
            Upper limit of the threshold. As in diffusers, the default only clips to `[-1, 1]`; give a large value,
            such as 100, for thresholds that follow the quantile.

    Raises:
        ValueError: If a value is out of range or no number, a choice is unknown, or `s_churn` is combined with
            `solver="dpmsolver++"`.
    """

    # They know no `sigma_in`, see the property `compatibles`.
    _compatibles = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"]

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 1.0,
        sigma_in: float = 1.0,
        rho: float = 7.0,
        solver: str = "heun",
        p_mean: float = -1.2,
        p_std: float = 1.2,
        num_train_timesteps: int = 1000,
        sigma_schedule: str = "karras",
        prediction_type: str = "v_prediction",
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float | None = None,
        s_noise: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
    ):
        if s_tmax == math.inf:  # as users of k-diffusion write it; JSON has no infinity
            self.register_to_config(s_tmax=None)
        _check_config(self.config)
        # With its class named, diffusers' classes know which of its keys to pass over in silence.
        self.register_to_config(_class_name=type(self).__name__)
        if "_use_default_values" in self.config:
            self._keep_defaults()
        self.num_inference_steps: int | None = None
        self._set_levels(self._schedule(num_train_timesteps), device=None)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> "EDMVideoScheduler | tuple[EDMVideoScheduler, dict[str, Any]]":
        """
        Builds the scheduler from the configuration of another one.

        Configurations of `EDMEulerScheduler` and `EDMDPMSolverMultistepScheduler` are read by the meaning that they
        have there: what they leave at a default (`sigma_data` 0.5, `prediction_type` `"epsilon"`) keeps that value, so
        that the denoiser is the same. What only chooses a sampler (`algorithm_type`, `solver_order`, `solver_type`,
        `final_sigmas_type`, ...) has no effect here; choose with `solver=...`.

        Args:
            config (`dict`): `scheduler.config` or a dictionary read from a `scheduler_config.json`.
            return_unused_kwargs (`bool`, *optional*, defaults to `False`): Return unknown entries too.
            kwargs (*optional*): Values that replace those of `config`, such as `solver="euler"`.
        """
        marks_defaults = isinstance(config, Mapping) and "_use_default_values" in config
        if isinstance(config, Mapping):
            if config.get("_class_name") in cls._compatibles:
                parameters = inspect.signature(getattr(diffusers, config["_class_name"]).__init__).parameters
                config = {name: p.default for name, p in parameters.items() if p.default is not p.empty} | dict(config)
            config = {name: value for name, value in config.items() if name != "_use_default_values"}
        scheduler, unused = super().from_config(config, return_unused_kwargs=True, **kwargs)
        if marks_defaults:
            scheduler._keep_defaults()
        return (scheduler, unused) if return_unused_kwargs else scheduler

    def _keep_defaults(self) -> None:
        # `from_config` of another class drops what is marked as a default and takes its own (`sigma_data` 0.5)
        self.register_to_config(_use_default_values=[])

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """`list[type]`: Classes that can sample the same model; diffusers' own can if `sigma_in` is 1."""
        return [type(self)] if self.config.sigma_in != 1 else super().compatibles

    # ------------------------------------------------------------------ grid
    @property
    def order(self) -> int:
        """`int`: Model calls for each inner step."""
        return 2 if self.config.solver == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """`float`: Standard deviation of the initial state, in scaled coordinates: the first noise level."""
        return self.sigmas[0]

    @property
    def step_index(self) -> int | None:
        """`int`: Index into `timesteps` of the next call of [`~EDMVideoScheduler.step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """`int`: First index, set by pipelines with [`~EDMVideoScheduler.set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """
        Tells the scheduler where the loop starts, which saves it from looking the first timestep up.

        Raises:
            ValueError: If there is no such timestep, or it is the second one of a Heun step.
        """
        if not 0 <= begin_index < len(self.timesteps) or begin_index % self.order:
            starts = f"a multiple of {self.order} from 0 to {len(self.timesteps) - 1}"
            raise ValueError(f"`begin_index` must be {starts}, got {begin_index}.")
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """
        Prepares a sampling run.

        Args:
            num_inference_steps (`int`, *optional*):
                Number of noise levels `N`; the grid of `sigma_schedule` between `sigma_max` and `sigma_min` is used.
            device (`str` or `torch.device`, *optional*):
                Where `timesteps` lives.
            sigmas (`list[float]`, *optional*):
                Decreasing positive noise levels to use instead of the grid, without the final zero, in scaled
                coordinates.

        Raises:
            ValueError: If not exactly one of the two is given, or the levels are not positive and decreasing.
        """
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Give exactly one of `num_inference_steps` and `sigmas` to `set_timesteps`.")
        if sigmas is None:
            if not isinstance(num_inference_steps, Integral) or num_inference_steps < 1:
                raise ValueError(f"`num_inference_steps` must be an integer, at least 1, got {num_inference_steps!r}.")
            levels = self._schedule(num_inference_steps)
        else:
            levels = [float(sigma) for sigma in sigmas]
            in_order = all(high > low for high, low in zip(levels, levels[1:]))
            if not levels or not in_order or not all(0 < level < math.inf for level in levels):
                raise ValueError(
                    f"`sigmas` must be positive and strictly decreasing, got {levels}. "
                    "Leave the final 0 out, it is added."
                )
        self.num_inference_steps = len(levels)
        if self.config.solver == "heun":  # each level but the first is visited as a target and then as a start
            levels = levels[:1] + [level for level in levels[1:] for _ in range(2)]
        self._set_levels(levels, device)

    def _schedule(self, num_levels: int) -> list[float]:
        top, bottom, last = self.config.sigma_max, self.config.sigma_min, max(num_levels - 1, 1)
        if self.config.sigma_schedule == "exponential":
            return [top * (bottom / top) ** (i / last) for i in range(num_levels)]
        rho = self.config.rho
        top, bottom = top ** (1 / rho), bottom ** (1 / rho)
        return [(top + i / last * (bottom - top)) ** rho for i in range(num_levels)]

    def _set_levels(self, levels: list[float], device: str | torch.device | None) -> None:
        self.sigmas = levels + [0.0]
        self.timesteps = torch.tensor([self.precondition_noise(level) for level in levels], device=device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._raised_sigma: float | None = None  # by churn, in the current step
        # sample, slope and level of Heun's first call; D and level of the last step, for the multistep solver
        self._heun_start: tuple[torch.Tensor, torch.Tensor, float] | None = None
        self._previous: tuple[torch.Tensor, float] | None = None

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index of the grid point nearest to `timestep`; of a level that Heun visits twice, the visit that starts."""
        timestep = float(torch.as_tensor(timestep).flatten()[0])
        distances = [abs(level - timestep) for level in self.timesteps.tolist()]
        return len(distances) - 1 - distances[::-1].index(min(distances))

    def _grid_sigma(self, timestep: float | torch.Tensor) -> float:
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if self._step_index == len(self.timesteps):
            raise ValueError(f"All {len(self.timesteps)} timesteps are used up. Call `set_timesteps` for a new run.")
        return self.sigmas[self._step_index]

    # ------------------------------------------------------------------ sampling (Snap Video section 3.3)
    def _churn(self, sigma: float) -> float:
        """`gamma` of EDM Algorithm 2; 0 in the second call of a Heun step."""
        config = self.config
        upper = math.inf if config.s_tmax is None else config.s_tmax
        if self._heun_start is not None or self.num_inference_steps is None or not config.s_tmin <= sigma <= upper:
            return 0.0
        return min(config.s_churn / self.num_inference_steps, 2**0.5 - 1)

    def add_churn_noise(
        self,
        sample: torch.Tensor,
        timestep: float | torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """
        Raises the noise level of the state by fresh noise (EDM Algorithm 2, lines 4-6, in scaled coordinates). To be
        called once in each step, before [`~EDMVideoScheduler.scale_model_input`]; the state that it returns goes there
        and to [`~EDMVideoScheduler.step`]. Where churn is off, `sample` itself comes back.

        Args:
            sample (`torch.Tensor`): The current state.
            timestep (`float` or `torch.Tensor`): The current entry of `timesteps`.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Source of the noise.

        Raises:
            ValueError: If it is called twice in a step.
        """
        sigma = self._grid_sigma(timestep)
        gamma = self._churn(sigma)
        if gamma == 0:
            return sample
        if self._raised_sigma is not None:
            raise ValueError("`add_churn_noise` was already called in this step; call it once, before the model.")
        self._raised_sigma = sigma * (1 + gamma)
        sample = at_least_fp32(sample)
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        return sample + (self._raised_sigma**2 - sigma**2) ** 0.5 * self.config.s_noise * noise

    def current_sigma(self, timestep: float | torch.Tensor) -> float:
        """
        The noise level of the current model call: that of the grid, or what churn has raised it to.

        Raises:
            ValueError: If churn is on and [`~EDMVideoScheduler.add_churn_noise`] was not called in this step.
        """
        sigma = self._grid_sigma(timestep)
        if self._raised_sigma is not None:
            return self._raised_sigma
        if self._churn(sigma) > 0:
            raise ValueError(
                f"`s_churn={self.config.s_churn}` needs noise before the model call: call `add_churn_noise(sample, "
                "timestep, generator)` before `scale_model_input` in each step, or use a scheduler with `s_churn=0`."
            )
        return sigma

    def current_timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        """
        What the model must be told now: `timestep`, or the `c_noise` of the level that churn has raised it to, with
        the shape, dtype and device of `timestep`.
        """
        sigma = self.current_sigma(timestep)
        return timestep if self._raised_sigma is None else torch.full_like(timestep, self.precondition_noise(sigma))

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """`c_in * sample` at the current noise level, in the dtype of `sample`."""
        return self.precondition_inputs(sample, self.current_sigma(timestep))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EDMVideoSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        One model evaluation's worth of the ODE (EDM Algorithm 1 or DPM-Solver++(2M), in scaled coordinates).

        Args:
            model_output (`torch.Tensor`): The network output `F` at `timestep`.
            timestep (`float` or `torch.Tensor`): The current entry of `timesteps`.
            sample (`torch.Tensor` of the same shape): The current state.
            generator (`torch.Generator`, *optional*):
                Unused, only [`~EDMVideoScheduler.add_churn_noise`] draws noise; part of diffusers' API.
            return_dict (`bool`, *optional*, defaults to `True`): Return [`EDMVideoSchedulerOutput`] or a tuple.

        Raises:
            ValueError: If the shapes differ, all steps are done, or [`~EDMVideoScheduler.set_timesteps`] or a needed
                [`~EDMVideoScheduler.add_churn_noise`] was not called.
        """
        if self.num_inference_steps is None:
            raise ValueError("Call `set_timesteps` before sampling.")
        if model_output.shape != sample.shape:
            shapes = f"{tuple(model_output.shape)} and {tuple(sample.shape)}"
            raise ValueError(f"`model_output` and `sample` must have one shape, got {shapes}.")
        sigma, sample = self.current_sigma(timestep), at_least_fp32(sample)
        model_output = model_output.to(sample.dtype)
        denoised = self.precondition_outputs(sample, model_output, sigma)
        slope = self.predict_noise(sample, model_output, sigma)
        if self.config.thresholding:
            clipped = self._threshold(denoised)
            slope = slope + (denoised - clipped) / (self.config.sigma_in * sigma)
            denoised = clipped
        prev_sample = self._advance(sample, denoised, slope, sigma)
        self._step_index += 1
        self._raised_sigma = None
        if not return_dict:
            return prev_sample, denoised
        return EDMVideoSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised)

    def _advance(
        self, sample: torch.Tensor, denoised: torch.Tensor, slope: torch.Tensor, sigma: float
    ) -> torch.Tensor:
        if self._heun_start is not None:  # the second call: `sigma` is the level that the first one stepped to
            (sample, first_slope, start), self._heun_start = self._heun_start, None
            return sample + (sigma - start) * (first_slope + slope) / 2
        previous, self._previous = self._previous, None
        target = self.sigmas[self._step_index + 1]
        if target == 0:  # a Euler step to zero lands on the denoiser's estimate, in data units
            return denoised
        prev_sample = sample + (target - sigma) * slope
        if self.config.solver == "heun":
            self._heun_start = (sample, slope, sigma)
        elif self.config.solver == "dpmsolver++":
            self._previous = (denoised, sigma)
            if previous is not None:  # the change of D since the last step makes the Euler step second-order
                ratio = math.log(previous[1] / sigma) / math.log(sigma / target)
                weight = (1 - target / sigma) / (2 * ratio * self.config.sigma_in)
                prev_sample = prev_sample + weight * (denoised - previous[0])
        return prev_sample

    def _threshold(self, denoised: torch.Tensor) -> torch.Tensor:
        """Imagen's dynamic thresholding, with diffusers' upper limit `sample_max_value`."""
        values = denoised.abs().flatten(1)
        # The quantile with linear interpolation, from the few largest values: torch.quantile stops at 2**24 values.
        position = self.config.dynamic_thresholding_ratio * (values.shape[1] - 1)
        largest = values.topk(values.shape[1] - math.floor(position)).values
        threshold = torch.lerp(largest[:, -1], largest[:, -2:][:, 0], position % 1)
        threshold = expand(threshold.clamp(1, self.config.sample_max_value), denoised)
        return denoised.clamp(-threshold, threshold) / threshold

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _check_config(config: Mapping[str, Any]) -> None:
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"Unknown `{name}` {config[name]!r}; choose one of {', '.join(choices)}.")
    positive = ("sigma_min", "sigma_max", "sigma_data", "sigma_in", "rho", "p_std")
    ratio, limit = "dynamic_thresholding_ratio", "sample_max_value"
    for name in (*positive, "p_mean", "s_churn", "s_tmin", "s_tmax", "s_noise", ratio, limit):
        value = config[name]
        if name == "s_tmax" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
    if not isinstance(config["thresholding"], bool):
        raise ValueError(f"`thresholding` must be True or False, got {config['thresholding']!r}.")
    if not 0 < config["sigma_min"] < config["sigma_max"]:
        raise ValueError(f"Need 0 < `sigma_min` < `sigma_max`, got {config['sigma_min']} and {config['sigma_max']}.")
    for name in positive:
        if config[name] <= 0:
            raise ValueError(f"`{name}` must be positive, got {config[name]}.")
    for name in ("s_churn", "s_tmin", "s_noise"):
        if config[name] < 0:
            raise ValueError(f"`{name}` must not be negative, got {config[name]}.")
    if config["s_tmax"] is not None and config["s_tmax"] < config["s_tmin"]:
        raise ValueError(f"Need `s_tmin` <= `s_tmax`, got {config['s_tmin']} and {config['s_tmax']}.")
    if config["s_churn"] > 0 and config["solver"] == "dpmsolver++":
        raise ValueError(
            f"`s_churn={config['s_churn']}` breaks the history of `solver='dpmsolver++'`; use 'heun' or 'euler'."
        )
    if not 0 < config[ratio] <= 1:
        raise ValueError(f"`{ratio}` must lie in (0, 1], got {config[ratio]}.")
    if config[limit] < 1:
        raise ValueError(f"`{limit}` must be at least 1, got {config[limit]}.")
    steps = config["num_train_timesteps"]
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"`num_train_timesteps` must be an integer, at least 1, got {steps!r}.")
