# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""EDM with input scaling: preconditioning, forward process, training target, noise distribution and loss weight."""

import math
from typing import Any, TypeVar

import torch


Sigma = TypeVar("Sigma", float, torch.Tensor)


class EDMEquations:
    """
    The equations of Snap Video, section 3.2, as methods of [`EDMVideoScheduler`], on which the sampler and the
    training loss are built. They keep no state and work at any noise level, in fp32 and fp64.

    `config` gives `sigma_data`, `sigma_in`, `prediction_type`, `p_mean` and `p_std`. With a tensor for `sigma`, its
    shape must broadcast against the samples, except where a shape `(batch_size,)` is asked for.
    """

    config: Any

    def _sign(self) -> float:
        return 1.0 if self.config.prediction_type == "v_prediction" else -1.0

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
        return skip * sample + (self._sign() * out) * model_output

    def predict_noise(self, sample: torch.Tensor, model_output: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """`(x_sigma - D / sigma_in) / sigma`, the slope of the ODE, without its cancellation at small `sigma`."""
        data, scale = self.config.sigma_data, self.config.sigma_in
        velocity = model_output * (self._sign() * data * (sigma**2 + data**2) ** 0.5)
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
            timesteps (`torch.Tensor` of shape `(batch_size,)` or `(1,)`, *optional*):
                `c_noise` values, as in `timesteps`; on the grid or off it.
            sigmas (`torch.Tensor` of shape `(batch_size,)` or `(1,)`, *optional*):
                Noise levels in scaled coordinates, instead of `timesteps`.

        Raises:
            ValueError: If not exactly one of the two is given, or the shapes do not fit.
        """
        if (timesteps is None) == (sigmas is None):
            raise ValueError("Give exactly one of `timesteps` and `sigmas` to `add_noise`.")
        if noise.shape != original_samples.shape:
            shapes = f"{tuple(noise.shape)} and {tuple(original_samples.shape)}"
            raise ValueError(f"`noise` and `original_samples` must have one shape, got {shapes}.")
        sigma = torch.as_tensor(timesteps if sigmas is None else sigmas)
        if sigmas is None:
            sigma = torch.exp(4 * at_least_fp32(sigma))
        if sigma.numel() not in (1, len(original_samples)):
            raise ValueError(f"Need one noise level, or one for each of {len(original_samples)}, got {sigma.numel()}.")
        sigma = expand(sigma.to(original_samples.device, original_samples.dtype), original_samples)
        return original_samples / self.config.sigma_in + sigma * noise

    def get_target(self, original_samples: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        """What `F` should be: `(d**2 * noise - sigma * x) / (d * sqrt(sigma**2 + d**2))` with `d = sigma_data`."""
        data, sigma = self.config.sigma_data, expand(sigmas, original_samples)
        velocity = data**2 * noise - sigma * original_samples
        return velocity / (self._sign() * data * (sigma**2 + data**2) ** 0.5)

    def loss_weight(self, sigmas: Sigma) -> Sigma:
        """`w(sigma) = (sigma**2 + d**2)**2 / (sigma**2 + d**2 / sigma_in)**2`, the weight of `|F - target|**2`."""
        data, scale = self.config.sigma_data, self.config.sigma_in
        return ((sigmas**2 + data**2) / (sigmas**2 + data**2 / scale)) ** 2

    def sample_sigmas(
        self,
        batch_size: int,
        device: str | torch.device | None = None,
        generator: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> torch.Tensor:
        """
        Draws training noise levels, `ln(sigma) ~ N(p_mean, p_std**2)`, stratified: each of `batch_size * world_size`
        equally likely slices of the distribution gives one value, so that a step always covers the whole range. The
        slices are dealt out in turn, so that each process covers it too; they rise along the batch.

        Args:
            batch_size (`int`): Values to draw, the same number in every process.
            device (`str` or `torch.device`, *optional*): Where to draw.
            generator (`torch.Generator`, *optional*): Source of randomness, of each process its own.
            rank (`int`, *optional*, defaults to `0`): Index of this process.
            world_size (`int`, *optional*, defaults to `1`): Number of processes.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, fp32.

        Raises:
            ValueError: If `batch_size` is not positive or `rank` is not one of `world_size` processes.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"Need 0 <= `rank` < `world_size`, got {rank} and {world_size}.")
        jitter = torch.rand(batch_size, device=device, generator=generator)
        slices = torch.arange(batch_size, device=device) * world_size + rank
        quantile = (slices + jitter) / (batch_size * world_size)
        normal = torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6))
        return torch.exp(self.config.p_mean + self.config.p_std * normal)


def expand(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def at_least_fp32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
