# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pipeline components that a run trains: loaded, or built from the `model` section of its configuration."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoProcessor

from ..vimi.mllm_conditioner import CONFIG_KEYS, LOADING_KEYS, MLLMConditioner
from ..vimi.scheduling_edm_video import EDMVideoScheduler
from ..vimi.tiny import build_conditioner, build_text_processor, build_tokenizer
from ..vimi.transformer_vimi import VIMITransformer3DModel
from .config import TrainingConfig


# in `model.conditioner`: an image-text-to-text model, instead of a small new one
MLLM = "pretrained_model_name_or_path"


def build_components(config: TrainingConfig, texts: Iterable[str]) -> dict[str, Any]:
    """
    Builds or loads `text_encoder`, `text_processor`, `transformer` and `scheduler`, in fp32.

    Args:
        config ([`TrainingConfig`]): `pretrained_model_name_or_path`, or the `model` section.
        texts (`Iterable[str]`): Text to train a new tokenizer on; unused with a pretrained pipeline.

    Raises:
        ValueError: If the `model` section has a key that nothing takes.
    """
    check_model(config)
    if config.pretrained_model_name_or_path:
        from ..vimi.pipeline_vimi import VIMIPipeline

        pipeline = VIMIPipeline.from_pretrained(config.pretrained_model_name_or_path, dtype=torch.float32)
        names = ("text_encoder", "text_processor", "transformer", "scheduler")
        components = {name: pipeline.components[name] for name in names}
        components["transformer"] = extend_transformer(components["transformer"], config.model.get("transformer", {}))
        return components
    model = dict(config.model)
    torch.manual_seed(config.seed)
    transformer = VIMITransformer3DModel(**model.get("transformer", {}))
    torch.nn.init.zeros_(transformer.proj_out.weight)  # training starts at F = 0
    options = {"output_dim": transformer.config.condition_dim, **model.get("conditioner", {})}
    if MLLM in options:
        name, revision = options.pop(MLLM), options.get("revision")
        processor = AutoProcessor.from_pretrained(name, revision=revision)
        conditioner = MLLMConditioner.from_mllm(name, **{"dtype": torch.float32, **options})
    else:
        tokenizer = build_tokenizer(texts, model.get("vocab_size", 2048))
        processor = build_text_processor(tokenizer, model.get("image_size", 64), model.get("image_patch_size", 8))
        conditioner = build_conditioner(processor, **options)
    return {
        "text_encoder": conditioner,
        "text_processor": processor,
        "transformer": transformer,
        "scheduler": EDMVideoScheduler(**model.get("scheduler", {})),
    }


def has_new_connector(config: TrainingConfig) -> bool:
    """Whether the run puts new layers behind a pretrained MLLM, to project its hidden states to C."""
    return not config.pretrained_model_name_or_path and MLLM in config.model.get("conditioner", {})


def freeze_conditioner(text_encoder: MLLMConditioner, config: TrainingConfig) -> None:
    """
    Freezes the conditioner, but for the layers between MLLM and C where they are new: these train with the generator,
    in fp32.
    """
    text_encoder.requires_grad_(False)
    if has_new_connector(config):
        for name, module in text_encoder.named_children():
            if name != "mllm":
                module.requires_grad_(True).float()


def check_model(config: TrainingConfig) -> None:
    """
    Raises:
        ValueError: If the `model` section, or one in it, has a key that nothing takes; names it.
    """
    if config.pretrained_model_name_or_path and (unknown := set(config.model) - {"transformer"}):
        raise ValueError(f"With a pretrained pipeline `model` can only change `transformer`, not {sorted(unknown)}.")
    sections = {
        "transformer": VIMITransformer3DModel,
        "scheduler": EDMVideoScheduler,
        "conditioner": build_conditioner,
    }
    if unknown := set(config.model) - {"vocab_size", "image_size", "image_patch_size", *sections}:
        raise ValueError(f"Unknown keys in `model`: {', '.join(sorted(unknown))}.")
    for name, builder in sections.items():
        options = config.model.get(name, {})
        if not isinstance(options, dict):
            raise ValueError(f"`model.{name}` must be a mapping of arguments, got {options!r}.")
        # of the conditioner, those that are taken from the other parts
        known = set(inspect.signature(builder).parameters) - {"processor", "output_dim", "kwargs"}
        if name == "conditioner" and MLLM in options:
            known = {MLLM, *CONFIG_KEYS, *LOADING_KEYS} - {"output_dim"}
        if unknown := set(options) - known:
            raise ValueError(
                f"Unknown keys in `model.{name}`: {', '.join(sorted(unknown))}; known are {sorted(known)}."
            )
    if config.condition_cache_dir and has_new_connector(config):
        raise ValueError(
            "`condition_cache_dir` holds C, but the layers from the MLLM to C are new and train in this run: leave it "
            "out, and cache in runs that start from its pipeline."
        )


def plain_components(components: dict[str, Any], state: dict[str, torch.Tensor]) -> dict[str, Any] | None:
    """
    Components with whole weights, of sharded ones.

    Args:
        components (`dict`): Those of the pipeline, as they train.
        state (`dict[str, torch.Tensor]`):
            Weights of the training model as `accelerator.get_state_dict` gathers them; empty where they were not
            wanted, in all processes but the main one.

    Returns:
        New components, or `None` without weights.
    """
    if not state:
        return None
    text_encoder, transformer = components["text_encoder"], components["transformer"]
    whole = {
        **components,
        "text_encoder": type(text_encoder)(text_encoder.config),
        "transformer": type(transformer).from_config(transformer.config),
    }
    for name in ("text_encoder", "transformer"):
        prefix = f"{name}."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        whole[name].load_state_dict(weights)
    return whole


def extend_transformer(transformer: VIMITransformer3DModel, changes: dict[str, Any]) -> VIMITransformer3DModel:
    """
    The same generator with changed options, such as `{"patch_condition": True}`: old weights are kept, what is new
    starts fresh.

    Raises:
        ValueError: If a change takes weights away or gives them another shape.
    """
    if not changes:
        return transformer
    options = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    extended = VIMITransformer3DModel(**{**options, **changes})
    old, new = transformer.state_dict(), extended.state_dict()
    lost = [name for name, weight in old.items() if name not in new or new[name].shape != weight.shape]
    if lost:
        raise ValueError(f"The changes {changes} do not fit the pretrained weights: {lost[0]} has no place any more.")
    extended.load_state_dict({**new, **old})
    return extended
