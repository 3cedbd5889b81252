# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Emoji world: the embedded data set of drawings, moving subjects and places, and the samples made of them."""
