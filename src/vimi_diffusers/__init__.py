# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""VIMI: a prompt of text and images becomes a short video that is grounded in those images.

Importing the package is light: names are loaded on first use, and diffusers learns about the `vimi` classes when it
is itself imported (see [`registration`]).
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .registration import register_on_import


__version__ = "0.1.0.dev0"

_MODULES = {
    "EDMVideoScheduler": ".vimi",
    "ImageTextMemory": ".retrieval",
    "ImageTextPair": ".retrieval",
    "MLLMConditioner": ".vimi",
    "MLLMConditionerConfig": ".vimi",
    "VIMIGuidance": ".vimi",
    "VIMIPipeline": ".vimi",
    "VIMIPipelineOutput": ".vimi",
    "VIMITransformer3DModel": ".vimi",
    "VIMIUpscalePipeline": ".vimi",
}

__all__ = [
    "EDMVideoScheduler",
    "ImageTextMemory",
    "ImageTextPair",
    "MLLMConditioner",
    "MLLMConditionerConfig",
    "VIMIGuidance",
    "VIMIPipeline",
    "VIMIPipelineOutput",
    "VIMITransformer3DModel",
    "VIMIUpscalePipeline",
    "default_checkpoint",
    "default_memory_path",
]

if TYPE_CHECKING:
    from .retrieval import ImageTextMemory, ImageTextPair
    from .vimi import (
        EDMVideoScheduler,
        MLLMConditioner,
        MLLMConditionerConfig,
        VIMIGuidance,
        VIMIPipeline,
        VIMIPipelineOutput,
        VIMITransformer3DModel,
        VIMIUpscalePipeline,
    )


def default_checkpoint() -> Path:
    """Folder of the embedded default pipeline, for [`VIMIPipeline.from_pretrained`]."""
    return Path(__file__).parent / "assets" / "emoji_world"


def default_memory_path() -> Path:
    """Folder of the embedded default memory, for [`ImageTextMemory.load`]."""
    return default_checkpoint() / "memory"


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_on_import()
