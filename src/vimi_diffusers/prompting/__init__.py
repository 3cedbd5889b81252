# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Multimodal prompts: task instructions, image tags and the text layout shared by training and inference."""

from .batches import MultimodalPrompt, lay_out_prompts
from .instructions import DEFAULT_INSTRUCTIONS, TASKS, TRAINING_INSTRUCTIONS, check_task, instruction_key
from .prompts import (
    bind_names,
    check_prompt,
    check_unused_images,
    format_prompt,
    has_tags,
    infer_task,
    resolve_tags,
    tagged_indices,
    without_tags,
)


__all__ = [
    "DEFAULT_INSTRUCTIONS",
    "MultimodalPrompt",
    "TASKS",
    "TRAINING_INSTRUCTIONS",
    "bind_names",
    "check_prompt",
    "check_task",
    "check_unused_images",
    "format_prompt",
    "has_tags",
    "infer_task",
    "instruction_key",
    "lay_out_prompts",
    "resolve_tags",
    "tagged_indices",
    "without_tags",
]
