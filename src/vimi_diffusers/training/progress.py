# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How fast a run is and how long it still takes: one bar, and the same numbers for the tracker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


class Progress:
    """
    Progress bar of a run over its steps. What a step holds may be set anew before each call of
    [`~Progress.rates`], where batches differ in shape.

    Args:
        total (`int`): Steps of the run.
        initial (`int`, *optional*, defaults to `0`): Steps done before, in a resumed run.
        clips_per_step (`float`, *optional*, defaults to `1`): Samples of a step over all processes.
        flops_per_step (`float`, *optional*):
            FLOPs of a step in one process, see [`~training.flops.training_flops`]; for MFU.
        peak_flops (`float`, *optional*):
            What the device of a process can do in a second, see [`~training.flops.peak_flops`]; for MFU.
        enabled (`bool`, *optional*, defaults to `True`): Show the bar; the numbers are there without it.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        clips_per_step: float = 1,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        enabled: bool = True,
    ):
        self.total, self.done = total, initial
        self.clips_per_step, self.flops_per_step, self.peak_flops = clips_per_step, flops_per_step, peak_flops
        self.bar = tqdm(total=total, initial=initial, disable=not enabled, mininterval=5.0, unit="step")
        self._begin()

    def _begin(self) -> None:
        self._since, self._start, self._paused = self.done, time.perf_counter(), 0.0

    def step(self) -> None:
        """One more step is done."""
        self.done += 1
        self.bar.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside counts for no rate: validation, sampling and writing are not training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def rates(self, **shown: float) -> dict[str, float]:
        """
        The rates since the last call, which the bar then shows. The device's queue must be empty, as it is after
        reading a loss.

        Args:
            shown (`float`): Further numbers that the bar shows.

        Returns:
            `dict`: `steps_per_s`, `clips_per_s` and `eta_s`, the seconds that are left at this rate; `mfu`, the share
            of the device's peak that the step's FLOPs take, where both are known. Empty if no step was done since.
        """
        steps, seconds = self.done - self._since, time.perf_counter() - self._start - self._paused
        rates = {}
        if steps and seconds > 0:
            rates["steps_per_s"] = steps / seconds
            rates["clips_per_s"] = self.clips_per_step * steps / seconds
            rates["eta_s"] = max(self.total - self.done, 0) * seconds / steps
            if self.flops_per_step and self.peak_flops:
                rates["mfu"] = self.flops_per_step * steps / seconds / self.peak_flops
            self._show(rates, shown)
        self._begin()
        return rates

    def _show(self, rates: dict[str, float], shown: dict[str, float]) -> None:
        texts = {name: f"{value:.4f}" for name, value in shown.items()}
        texts["clips/s"] = f"{rates['clips_per_s']:.4g}"
        if "mfu" in rates:
            texts["MFU"] = f"{rates['mfu']:.1%}"
        texts["ETA"] = tqdm.format_interval(rates["eta_s"])
        self.bar.set_postfix(texts, refresh=False)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
