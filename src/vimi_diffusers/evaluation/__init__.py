# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures of trained weights on what they were never trained on."""
