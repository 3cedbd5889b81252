# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The memory of image-text pairs: how it is built, stored, searched and shared."""

from .memory import ImageTextMemory
from .sources import open_rows


__all__ = ["ImageTextMemory", "open_rows"]
