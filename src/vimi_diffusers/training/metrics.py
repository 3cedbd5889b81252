# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the loop tells of its steps: errors by noise level, left-out steps, rates and MFU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import logging

from .flops import peak_flops, training_flops
from .progress import Progress


logger = logging.get_logger(__name__)

NUM_QUANTILES = 4
MAX_SKIPPED = 0.1  # share of steps without finite gradients at which a run is given up


class StepMeter:
    """
    Sums over the steps between two log entries, kept on the device: a step never waits for them.

    Args:
        components (`Mapping[str, Any]`): The pipeline's, for the count of FLOPs.
        device (`torch.device`): Where losses are.
        progress ([`Progress`]): Shows the steps and knows their rates.
        num_processes (`int`, *optional*, defaults to `1`): Processes with as many samples each.
    """

    def __init__(
        self, components: Mapping[str, Any], device: torch.device, progress: Progress, num_processes: int = 1
    ):
        self.components, self.progress, self.num_processes = components, progress, num_processes
        self.progress.peak_flops = peak_flops(device)
        self.flops_by_shape: dict[Any, int | None] = {}
        self.errors = torch.zeros(NUM_QUANTILES + 1, device=device)  # and how many steps were left out
        self._begin()

    def _begin(self) -> None:
        self.steps, self.samples, self.flops = 0, 0, 0
        self.errors.zero_()

    def add(self, output: Mapping[str, torch.Tensor], batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Takes in what a [`TrainStep`] gave for its batches."""
        # the errors are in the order of their noise levels
        quantiles = F.adaptive_avg_pool1d(output["error"][None], NUM_QUANTILES)[0]
        skipped = output["skipped"]
        self.errors += torch.cat([torch.where(skipped > 0, 0.0, quantiles), skipped[None]])
        self.steps += 1
        self.samples += len(output["error"])
        flops = [self.flops, *map(self._flops_of, batches)]
        self.flops = None if None in flops else sum(flops)
        self.progress.step()

    def _flops_of(self, batch: dict[str, torch.Tensor]) -> int | None:
        if not self.progress.peak_flops:
            return None
        key = tuple((name, tensor.shape) for name, tensor in batch.items())
        if key not in self.flops_by_shape:
            try:
                parts = (self.components[name] for name in ("transformer", "text_encoder"))
                self.flops_by_shape[key] = training_flops(*parts, batch)
            except ValueError as error:  # only the MFU needs it
                logger.warning(f"There will be no MFU: {error}")
                self.flops_by_shape[key] = None
        return self.flops_by_shape[key]

    def logs(self, output: Mapping[str, torch.Tensor], step: int) -> dict[str, float]:
        """
        The log entry since the last one, which starts anew.

        Args:
            output (`dict`): Of the last step.
            step (`int`): Its number.

        Raises:
            FloatingPointError: If too many steps were left out.
        """
        *sums, skipped = self.errors.tolist()
        if skipped > MAX_SKIPPED * self.steps:
            raise FloatingPointError(
                f"Training diverged: {skipped:.0f} of the {self.steps} steps before step {step} had gradients "
                "that are not finite. Go on from an earlier checkpoint, with a lower `learning_rate`."
            )
        values = [value / (self.steps - skipped) for value in sums]
        logs = {f"error_sigma_q{number}": value for number, value in enumerate(values, 1)}
        logs["error"] = sum(values) / len(values)
        logs["loss"] = output["loss"].item()
        logs["grad_norm"] = output["grad_norm"].item()
        logs["skipped_steps"] = skipped
        self.progress.clips_per_step = self.samples * self.num_processes / self.steps
        self.progress.flops_per_step = None if self.flops is None else self.flops / self.steps
        logs |= self.progress.rates(error=logs["error"])
        self._begin()
        return logs
