# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The averaged weights of a run: which kind its configuration asks for, behind one interface."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor

from .config import TrainingConfig
from .ema import PowerEMA


class DecayEMA:
    """
    diffusers' `EMAModel` over what trains, with the interface of [`PowerEMA`]. Of sharded parameters each process
    averages its own part.

    Args:
        modules (`Sequence[nn.Module]`): Whose parameters.
        decay (`float`): Decay, warmed up.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float):
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.parameters = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.decay = decay
        self.model = EMAModel(self._local(), decay=decay, foreach=True)

    @torch.enable_grad()  # else a sharded parameter's part would not count as one that trains
    def _local(self) -> list[torch.Tensor]:
        return [p.to_local() if isinstance(p, DTensor) else p for p in self.parameters]

    def update(self, step: int) -> None:
        """Takes in the weights after a step."""
        self.model.step(self._local())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the parameters have their averaged values."""
        with torch.no_grad():
            own = [parameter.detach().to("cpu", copy=True) for parameter in self._local()]
            torch._foreach_copy_([parameter.detach() for parameter in self._local()], self.model.shadow_params)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([parameter.detach() for parameter in self._local()], own)

    def state_dict(self) -> dict[str, Any]:
        """State of `EMAModel`."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what [`~DecayEMA.state_dict`] gave; the decay stays this run's."""
        self.model.load_state_dict({**state, "decay": self.decay})
        if self.parameters:
            self.model.to(self._local()[0].device)


def build_ema(components: Mapping[str, Any], config: TrainingConfig) -> DecayEMA | PowerEMA | None:
    """
    The averages of `ema_profiles` or `ema_decay`; `None` for a decay of 0.

    Args:
        components (`Mapping[str, Any]`): Those of the pipeline; after sharding.
        config ([`TrainingConfig`]): Says which.
    """
    if config.ema_profiles:
        return PowerEMA.from_components(components, config.ema_profiles)
    if not config.ema_decay:
        return None
    return DecayEMA([part for part in components.values() if isinstance(part, nn.Module)], config.ema_decay)


def applied(ema: DecayEMA | PowerEMA | None) -> Any:
    """Context in which the weights are the averaged ones, if there are any."""
    return ema.applied() if ema else nullcontext()
