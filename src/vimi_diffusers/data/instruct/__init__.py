# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Stage-2 samples from captioned videos (paper section 7.1): what `vimi instruct-data` does."""

from .plugins import (
    Detections,
    Detector,
    Entity,
    EntityExtractor,
    Extraction,
    PluginSettings,
    Segmenter,
    load_plugin,
)
from .samples import InstructionSettings
from .subjects import ClipFrames, ClipSubjects, SubjectFinder, SubjectSettings
from .writing import write_instruction_data


__all__ = [
    "ClipFrames",
    "ClipSubjects",
    "Detections",
    "Detector",
    "Entity",
    "EntityExtractor",
    "Extraction",
    "InstructionSettings",
    "PluginSettings",
    "Segmenter",
    "SubjectFinder",
    "SubjectSettings",
    "load_plugin",
    "write_instruction_data",
]
