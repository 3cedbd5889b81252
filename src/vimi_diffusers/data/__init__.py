# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Data sets of videos and images for training: one schema, three layouts, nothing silently dropped.

Names are loaded on first use, so that what reads and writes data sets does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING


_MODULES = {
    "BadSample": ".schema",
    "BadSampleReport": ".report",
    "Bucket": ".buckets",
    "ContextPair": ".schema",
    "PromptSettings": ".prompts",
    "Reference": ".schema",
    "TooManyBadSamples": ".report",
    "VideoData": ".video_data",
    "VideoDataSettings": ".video_data",
    "VideoRecord": ".schema",
    "open_source": ".readers",
}

__all__ = [
    "BadSample",
    "BadSampleReport",
    "Bucket",
    "ContextPair",
    "PromptSettings",
    "Reference",
    "TooManyBadSamples",
    "VideoData",
    "VideoDataSettings",
    "VideoRecord",
    "open_source",
]

if TYPE_CHECKING:
    from .buckets import Bucket
    from .prompts import PromptSettings
    from .readers import open_source
    from .report import BadSampleReport, TooManyBadSamples
    from .schema import BadSample, ContextPair, Reference, VideoRecord
    from .video_data import VideoData, VideoDataSettings


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
