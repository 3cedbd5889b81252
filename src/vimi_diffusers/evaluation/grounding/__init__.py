# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Grounding of generated videos in words and images, measured without a network connection."""

from .camera import CAMERAS, estimate_pan
from .evaluate import evaluate_grounding, flicker
from .motion import Motions, estimate_motions
from .recognition import ColourFeatures, default_extractor
from .samples import GroundingSample, held_out_references, place_views
from .subject import crop_on_white, subject_crops


__all__ = [
    "CAMERAS",
    "ColourFeatures",
    "GroundingSample",
    "Motions",
    "crop_on_white",
    "default_extractor",
    "estimate_motions",
    "estimate_pan",
    "evaluate_grounding",
    "flicker",
    "held_out_references",
    "place_views",
    "subject_crops",
]
