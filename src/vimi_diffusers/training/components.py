# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pipeline components that a run trains: loaded, or built from the `model` section of its configuration."""

from collections.abc import Iterable
from typing import Any

import torch

from ..vimi.scheduling_edm_video import EDMVideoScheduler
from ..vimi.tiny import build_conditioner, build_text_processor, build_tokenizer
from ..vimi.transformer_vimi import VIMITransformer3DModel
from .config import TrainingConfig


def build_components(config: TrainingConfig, texts: Iterable[str]) -> dict[str, Any]:
    """
    Builds or loads `text_encoder`, `text_processor`, `transformer` and `scheduler`, in fp32.

    Args:
        config ([`TrainingConfig`]): `pretrained_model_name_or_path`, or the `model` section.
        texts (`Iterable[str]`): Text to train a new tokenizer on; unused with a pretrained pipeline.
    """
    if config.pretrained_model_name_or_path:
        from ..vimi.pipeline_vimi import VIMIPipeline

        pipeline = VIMIPipeline.from_pretrained(config.pretrained_model_name_or_path, dtype=torch.float32)
        names = ("text_encoder", "text_processor", "transformer", "scheduler")
        components = {name: pipeline.components[name] for name in names}
        if unknown := set(config.model) - {"transformer"}:
            raise ValueError(
                f"With a pretrained pipeline `model` can only change `transformer`, not {sorted(unknown)}."
            )
        components["transformer"] = extend_transformer(components["transformer"], config.model.get("transformer", {}))
        return components
    model = dict(config.model)
    unknown = set(model) - {"vocab_size", "image_size", "image_patch_size", "conditioner", "transformer", "scheduler"}
    if unknown:
        raise ValueError(f"Unknown keys in `model`: {', '.join(sorted(unknown))}.")
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(texts, model.get("vocab_size", 2048))
    processor = build_text_processor(tokenizer, model.get("image_size", 64), model.get("image_patch_size", 8))
    transformer = VIMITransformer3DModel(**model.get("transformer", {}))
    torch.nn.init.zeros_(transformer.proj_out.weight)  # training starts at F = 0
    conditioner = build_conditioner(
        processor, output_dim=transformer.config.condition_dim, **model.get("conditioner", {})
    )
    return {
        "text_encoder": conditioner,
        "text_processor": processor,
        "transformer": transformer,
        "scheduler": EDMVideoScheduler(**model.get("scheduler", {})),
    }


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
