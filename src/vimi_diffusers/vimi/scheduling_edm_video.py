# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""EDM with input scaling: preconditioning, noise distribution, loss weight and samplers in one place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput


Sigma = TypeVar("Sigma", float, torch.Tensor)

SOLVERS = ("euler", "heun")


@dataclass
class EDMVideoSchedulerOutput(BaseOutput):
    """
    Output of [`EDMVideoScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `(batch_size, channels, num_frames, height, width)`):
            The next state of the sampler; after the last step the data estimate itself, in data units. Always fp32.
        pred_original_sample (`torch.Tensor` of the same shape):
            The denoiser's estimate `D` of the clean video, in data units.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class EDMVideoScheduler(SchedulerMixin, ConfigMixin):
    """
    EDM (Karras et al., 2206.00364) with the input scaling `sigma_in` of Snap Video (2402.14797, sections 3.1-3.3).

    Videos hold many redundant pixels, so a given noise level destroys less of them. The forward process therefore
    shrinks the signal: `x_sigma = x / sigma_in + sigma * noise`. `sigma_in=1` is plain EDM with the sign of the
    network output flipped. The network predicts `F`, a unit-variance version of
    `v = sigma_data**2 * noise - sigma * x`.

    The sampler's state lives in the scaled coordinates (`x / sigma_in`) and stays in fp32; the last step returns the
    video in data units. With `solver="heun"` every step but the last has two model calls, so `timesteps` has
    `2 * num_inference_steps - 1` entries and `order` is 2.

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
            `"heun"` (EDM Algorithm 1) or `"euler"`.
        p_mean (`float`, *optional*, defaults to `-1.2`):
            Mean of `ln(sigma)` in training.
        p_std (`float`, *optional*, defaults to `1.2`):
            Standard deviation of `ln(sigma)` in training.
        num_train_timesteps (`int`, *optional*, defaults to `1000`):
            Only there because pipelines and tools of diffusers read it; noise levels are continuous.

    Raises:
        ValueError: If a noise level or scale is not positive, or `solver` is unknown.
    """

    _compatibles = []

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
    ):
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"Need 0 < `sigma_min` < `sigma_max`, got {sigma_min} and {sigma_max}.")
        for name, value in (("sigma_data", sigma_data), ("sigma_in", sigma_in), ("rho", rho), ("p_std", p_std)):
            if value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if solver not in SOLVERS:
            raise ValueError(f"Unknown `solver` {solver!r}; choose one of {', '.join(SOLVERS)}.")
        self.num_inference_steps: int | None = None
        self.timesteps = self.precondition_noise(torch.linspace(sigma_max, sigma_min, num_train_timesteps))
        self.sigmas: list[float] = []
        self._reset(begin_index=None)

    # ------------------------------------------------------------------ equations (Snap Video section 3.2)
    def precondition_inputs(self, sample: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """`c_in * x_sigma`, of unit variance."""
        data, scale = self.config.sigma_data, self.config.sigma_in
        return sample / (data**2 / scale**2 + sigma**2) ** 0.5

    def precondition_noise(self, sigma: Sigma) -> Sigma:
        """`c_noise = ln(sigma) / 4`: what the network is told, and what `timesteps` holds."""
        return torch.log(sigma) / 4 if isinstance(sigma, torch.Tensor) else math.log(sigma) / 4

    def precondition_outputs(self, sample: torch.Tensor, model_output: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """`D = c_skip * x_sigma + c_out * F`: the estimate of the clean video in data units."""
        data, scale = self.config.sigma_data, self.config.sigma_in
        denominator = data**2 + scale * sigma**2
        skip = scale * data**2 / denominator
        out = -scale * sigma * data * (sigma**2 + data**2) ** 0.5 / denominator
        return skip * sample + out * model_output

    def predict_noise(self, sample: torch.Tensor, model_output: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """`(x_sigma - D / sigma_in) / sigma`, the slope of the ODE, without its cancellation at small `sigma`."""
        data, scale = self.config.sigma_data, self.config.sigma_in
        velocity = model_output * (data * (sigma**2 + data**2) ** 0.5)
        return (sigma * sample + velocity / scale) / (sigma**2 + data**2 / scale)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        sigmas: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The forward process `x / sigma_in + sigma * noise`, at any noise level.

        Args:
            original_samples (`torch.Tensor` of shape `(batch_size, ...)`): Clean data.
            noise (`torch.Tensor` of the same shape): Standard normal noise.
            timesteps (`torch.Tensor` of shape `(batch_size,)`, *optional*): `c_noise` values, as in `timesteps`.
            sigmas (`torch.Tensor` of shape `(batch_size,)`, *optional*): Noise levels, instead of `timesteps`.
        """
        if (timesteps is None) == (sigmas is None):
            raise ValueError("Give exactly one of `timesteps` and `sigmas` to `add_noise`.")
        sigma = torch.exp(4 * timesteps) if sigmas is None else sigmas
        sigma = _expand(sigma.to(original_samples.device, original_samples.dtype), original_samples)
        return original_samples / self.config.sigma_in + sigma * noise

    def get_target(self, original_samples: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """What `F` should be: `(d**2 * noise - sigma * x) / (d * sqrt(sigma**2 + d**2))` with `d = sigma_data`."""
        data, sigma = self.config.sigma_data, _expand(sigmas, original_samples)
        velocity = data**2 * noise - sigma * original_samples
        return velocity / (data * (sigma**2 + data**2) ** 0.5)

    def loss_weight(self, sigmas: Sigma) -> Sigma:
        """`w(sigma) = (sigma**2 + d**2)**2 / (sigma**2 + d**2 / sigma_in)**2`, the weight of `|F - target|**2`."""
        data, scale = self.config.sigma_data, self.config.sigma_in
        return ((sigmas**2 + data**2) / (sigmas**2 + data**2 / scale)) ** 2

    def sample_sigmas(
        self,
        batch_size: int,
        device: str | torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """
        Draws training noise levels, `ln(sigma) ~ N(p_mean, p_std**2)`, stratified: each of `batch_size` equally likely
        slices of the distribution gives one value, so that a batch always covers the whole range.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, fp32.
        """
        jitter = torch.rand(batch_size, device=device, generator=generator)
        quantile = (torch.arange(batch_size, device=device) + jitter) / batch_size
        normal = torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6))
        return torch.exp(self.config.p_mean + self.config.p_std * normal)

    # ------------------------------------------------------------------ sampling (Snap Video section 3.3)
    @property
    def order(self) -> int:
        """`int`: Model calls for each inner step."""
        return 2 if self.config.solver == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """`float`: Standard deviation of the initial state, in scaled coordinates."""
        return self.sigmas[0] if self.sigmas else self.config.sigma_max

    @property
    def step_index(self) -> int | None:
        """`int`: Index into `timesteps` of the next call of [`~EDMVideoScheduler.step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """`int`: First index, set by pipelines with [`~EDMVideoScheduler.set_begin_index`]."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Tells the scheduler where the loop starts, which saves it from looking the first timestep up."""
        self._begin_index = begin_index

    def _reset(self, begin_index: int | None) -> None:
        self._step_index = None
        self._begin_index = begin_index
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None  # (sample, slope) between Heun's two calls

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
                Number of noise levels `N`; the Karras grid between `sigma_max` and `sigma_min` is used.
            device (`str` or `torch.device`, *optional*):
                Where `timesteps` lives.
            sigmas (`list[float]`, *optional*):
                Decreasing positive noise levels to use instead of the grid, without the final zero.

        Raises:
            ValueError: If not exactly one of the two is given, or the levels are not positive and decreasing.
        """
        if (num_inference_steps is None) == (sigmas is None):
            raise ValueError("Give exactly one of `num_inference_steps` and `sigmas` to `set_timesteps`.")
        levels = self._karras_sigmas(num_inference_steps) if sigmas is None else [float(sigma) for sigma in sigmas]
        if not levels or min(levels) <= 0 or any(low >= high for high, low in zip(levels, levels[1:])):
            raise ValueError(f"`sigmas` must be positive and strictly decreasing, got {levels}.")
        self.num_inference_steps = len(levels)
        if self.config.solver == "heun":  # each level but the first is visited as a target and then as a start
            levels = levels[:1] + [level for level in levels[1:] for _ in range(2)]
        self.sigmas = levels + [0.0]
        self.timesteps = torch.tensor([self.precondition_noise(level) for level in levels], device=device)
        self._reset(begin_index=None)

    def _karras_sigmas(self, num_inference_steps: int) -> list[float]:
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps}.")
        rho, last = self.config.rho, max(num_inference_steps - 1, 1)
        top, bottom = self.config.sigma_max ** (1 / rho), self.config.sigma_min ** (1 / rho)
        return [(top + i / last * (bottom - top)) ** rho for i in range(num_inference_steps)]

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index of the grid point nearest to `timestep`; of a level that Heun visits twice, the visit that starts."""
        distance = (self.timesteps - timestep).abs()
        return int((distance == distance.min()).nonzero()[-1])

    def _sigma(self, timestep: float | torch.Tensor) -> float:
        if not self.sigmas:
            raise ValueError("Call `set_timesteps` before sampling.")
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        return self.sigmas[min(self._step_index, len(self.timesteps) - 1)]

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """`c_in * sample` at the current step, in the dtype of `sample`."""
        return self.precondition_inputs(sample, self._sigma(timestep))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EDMVideoSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        One model evaluation's worth of the ODE (EDM Algorithm 1 in scaled coordinates).

        Args:
            model_output (`torch.Tensor`): The network output `F` at `timestep`.
            timestep (`float` or `torch.Tensor`): The current entry of `timesteps`.
            sample (`torch.Tensor`): The current state.
            generator (`torch.Generator`, *optional*): Unused, the sampler is deterministic; part of diffusers' API.
            return_dict (`bool`, *optional*, defaults to `True`): Return [`EDMVideoSchedulerOutput`] or a tuple.
        """
        sigma = self._sigma(timestep)
        target = self.sigmas[self._step_index + 1]
        sample, model_output = sample.float(), model_output.float()
        denoised = self.precondition_outputs(sample, model_output, sigma)
        slope = self.predict_noise(sample, model_output, sigma)
        if self._state is not None:  # Heun's second call: `sigma` is the level that the first call stepped to
            sample, first_slope = self._state
            sigma = self.sigmas[self._step_index - 1]
            target = self.sigmas[self._step_index]
            slope = (first_slope + slope) / 2
            self._state = None
        elif self.config.solver == "heun" and target > 0:
            self._state = (sample, slope)
        if target > 0:
            prev_sample = sample + (target - sigma) * slope
        else:  # a Euler step to zero lands on the denoiser's estimate, in data units
            prev_sample = denoised
        self._step_index += 1
        if not return_dict:
            return prev_sample, denoised
        return EDMVideoSchedulerOutput(prev_sample=prev_sample, pred_original_sample=denoised)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _expand(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
