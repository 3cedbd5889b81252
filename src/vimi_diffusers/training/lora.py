# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA training of the generator and of the MLLM: layers added through peft, saved as pipelines read them."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from torch import nn

from ..vimi.mllm_conditioner import MLLMConditioner


PARTS = ("transformer", "text_encoder")
OPTIONS = ("rank", "alpha", "dropout", "target_modules")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MLLM_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def check_lora(lora: Mapping[str, Any]) -> None:
    """
    Checks the `lora` section of a configuration.

    Args:
        lora (`Mapping`): See [`add_lora`].

    Raises:
        ValueError: For an unknown part or option, or a number out of range.
    """
    if not lora or set(lora) - set(PARTS):
        raise ValueError(f"`lora` must have a section for some of {', '.join(PARTS)}, got {sorted(lora)}.")
    for part, options in lora.items():
        options = options or {}
        if not isinstance(options, Mapping) or set(options) - set(OPTIONS):
            raise ValueError(f"`lora.{part}` takes {', '.join(OPTIONS)}, got {options!r}.")
        rank, alpha, dropout = options.get("rank", 16), options.get("alpha", 1), options.get("dropout", 0.0)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"`lora.{part}.rank` must be an integer of at least 1, got {rank!r}.")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha > 0:
            raise ValueError(f"`lora.{part}.alpha` must be a number over 0, got {alpha!r}.")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"`lora.{part}.dropout` must be at least 0 and below 1, got {dropout!r}.")
        targets = options.get("target_modules", "all")
        if not targets or not (isinstance(targets, str) or all(isinstance(name, str) for name in targets)):
            raise ValueError(f"`lora.{part}.target_modules` must be a list of names or a pattern, got {targets!r}.")


def add_lora(components: Mapping[str, Any], lora: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """
    Adds LoRA layers, named `"default"`, and freezes everything else. The layers train in fp32 and start as if they
    were not there.

    Args:
        components (`Mapping[str, Any]`): Of a pipeline: `transformer` and `text_encoder`.
        lora (`Mapping`):
            A section for `transformer`, `text_encoder` (the MLLM) or both, each with `rank` (16 by default), `alpha`
            (the rank), `dropout` (0) and `target_modules`: names of layers or a pattern, as of peft. By default the
            projections of all attention; of the MLLM in its language model alone.
        dtype (`torch.dtype`, *optional*):
            Dtype of the frozen weights, such as bf16 to save memory under mixed precision.

    Raises:
        ValueError: For a wrong section, or names that no layer has.
    """
    from peft import LoraConfig

    check_lora(lora)
    for part in PARTS:
        components[part].requires_grad_(False)
        if dtype is not None:
            components[part].to(dtype=dtype)
    for part, options in lora.items():
        options, model = options or {}, components[part]
        rank = options.get("rank", 16)
        targets = options.get("target_modules") or default_targets(model)
        config = LoraConfig(
            r=rank,
            lora_alpha=options.get("alpha", rank),
            lora_dropout=options.get("dropout", 0.0),
            target_modules=targets if isinstance(targets, str) else list(targets),
            init_lora_weights=True,
        )
        try:
            model.add_adapter(config, adapter_name="default")
        except ValueError as error:
            raise ValueError(
                f"`lora.{part}` cannot be added: {error} Set its `target_modules` to layers of {type(model).__name__}."
            ) from error
    cast_training_params([components[part] for part in PARTS], dtype=torch.float32)


def default_targets(model: nn.Module) -> list[str] | str:
    """
    The attention projections that LoRA changes by default: all of the generator's; of a conditioner those of its
    language model, as a pattern, so that its vision tower of like names stays out.
    """
    if not isinstance(model, MLLMConditioner):
        return list(ATTENTION)
    decoder = model.mllm.get_decoder()
    name = next(name for name, module in model.named_modules() if module is decoder)
    return rf"{re.escape(name)}\..*\.({'|'.join(MLLM_ATTENTION)})"


def save_lora(components: Mapping[str, Any], folder: str | Path) -> Path:
    """
    Writes the LoRA layers of [`add_lora`] for `pipe.load_lora_weights(folder)`, with their settings; whole or not at
    all. An older file is replaced.

    Args:
        components (`Mapping[str, Any]`): Those that [`add_lora`] changed.
        folder (`str` or `Path`): Where `pytorch_lora_weights.safetensors` goes.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If no component has LoRA layers.
    """
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
    from peft import get_peft_model_state_dict

    from ..vimi.lora import VIMILoraLoaderMixin

    models = {part: components[part] for part in PARTS if "default" in getattr(components[part], "peft_config", ())}
    if not models:
        raise ValueError("No component has LoRA layers: call `add_lora` first.")
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(model) for part, model in models.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=".lora.", dir=folder)
    try:
        VIMILoraLoaderMixin.save_lora_weights(partial, **layers, **_collate_lora_metadata(models))
        os.replace(Path(partial) / LORA_WEIGHT_NAME_SAFE, folder / LORA_WEIGHT_NAME_SAFE)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / LORA_WEIGHT_NAME_SAFE
