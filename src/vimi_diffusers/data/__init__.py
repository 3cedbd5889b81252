# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Data sets of videos and images for training: one schema, three layouts, nothing silently dropped."""

from .buckets import Bucket
from .prompts import PromptSettings
from .readers import open_source
from .report import BadSampleReport, TooManyBadSamples
from .schema import BadSample, ContextPair, Reference, VideoRecord
from .video_data import VideoData, VideoDataSettings


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
