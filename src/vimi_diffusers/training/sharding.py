# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Weights and optimizers spread over processes by accelerate's plugins: FSDP2, and DeepSpeed ZeRO-2 and 3."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn


if TYPE_CHECKING:
    from .config import TrainingConfig


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate spreads weights or optimizer over processes."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def check_sharding(config: "TrainingConfig", accelerator: Any) -> None:
    """
    Args:
        config ([`TrainingConfig`]): The run.
        accelerator (`Accelerator`): As the launcher configured it.

    Raises:
        ValueError: If the run wants what cannot be done with sharded weights.
    """
    if not is_sharded(accelerator):
        return
    kind = "FSDP" if accelerator.distributed_type == DistributedType.FSDP else "DeepSpeed"
    plain = "use the plain or DDP configuration of accelerate"
    if config.cuda_graph:
        raise ValueError(
            f"`cuda_graph` cannot capture a step over weights sharded by {kind}: set it to false, or {plain}."
        )
    if config.lora:
        raise ValueError(f"`lora` adapters are not sharded by {kind}: {plain}.")
    if config.optimizer != "adamw":
        raise ValueError(
            f"The optimizer {config.optimizer!r} needs whole weights, {kind} shards them: use 'adamw', or {plain}."
        )
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise ValueError("Only FSDP2 is supported: set `fsdp_version: 2` in accelerate's configuration.")
    if kind == "DeepSpeed" and config.condition_cache_dir:
        raise ValueError(
            "A condition cache needs the conditioner whole in each process, DeepSpeed takes it apart: use the FSDP2 "
            "configuration of accelerate, or no `condition_cache_dir`."
        )
    if kind == "DeepSpeed" and accelerator.deepspeed_plugin.zero3_init_flag:
        raise ValueError("`zero3_init_flag: true` cannot build a conditioner around an MLLM: set it to false.")
    averages = bool(config.ema_profiles or config.ema_decay)
    if kind == "DeepSpeed" and averages and accelerator.deepspeed_plugin.zero_stage == 3:
        raise ValueError(
            "Weights sharded by DeepSpeed ZeRO-3 cannot be averaged: set `ema_decay: 0` and no `ema_profiles`, or use "
            "the FSDP2 or ZeRO-2 configuration of accelerate."
        )


def build_whole_weights(accelerator: Accelerator) -> None:
    """
    Has each process build and load models whole, for DeepSpeed to take apart later. Under ZeRO-3 transformers would
    cut them up while they are built, whatever `zero3_init_flag` says, and a model within a model twice.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def set_up_sharding(model: nn.Module, config: "TrainingConfig", accelerator: Accelerator) -> None:
    """Tells accelerate's plugin what it cannot read off the model: which blocks to shard, and the step's sizes."""
    if accelerator.distributed_type == DistributedType.FSDP:
        sharded = model
        if config.condition_cache_dir:  # each process computes what it lacks for itself, with the whole conditioner
            sharded, accelerator.state.fsdp_plugin.ignored_modules = model.transformer, [model.text_encoder]
        present = {type(module).__name__ for module in sharded.modules()}
        named = {name for module in sharded.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        model._no_split_modules = sorted(named & present)
        return
    settings = accelerator.deepspeed_plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = config.train_batch_size
    settings["gradient_accumulation_steps"] = config.gradient_accumulation_steps
    settings["gradient_clipping"] = config.max_grad_norm


@torch.no_grad()
def fill_adamw_state(optimizer: Any) -> None:
    """
    Gives parameters that never had a gradient, such as a norm before an unused output, the state that AdamW would
    begin with: torch's sharded checkpoints load no optimizer that lacks some.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
