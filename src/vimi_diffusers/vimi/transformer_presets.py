# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The published configurations of Snap Video's FIT (2402.14797, table 8) by name."""

from typing import Any


# Self-conditioning belongs to the published totals, the embedders of noise level, frame rate and resolution do not:
# here these are sines and cosines alone, without weights.
_PUBLISHED = {
    "num_frames": 16,
    "patch_size": (1, 4, 4),
    "num_layers": 6,
    "num_latent_layers": 4,
    "cross_attention_heads": 16,
    "self_conditioning": True,
    "resolution_token": True,
    "scalar_mlp": False,
    "dropout": 0.1,
}
_BASE = {**_PUBLISHED, "height": 40, "width": 64, "group_size": (5, 4)}  # 36 rows of the video and 2 + 2 of padding
_LARGE = {"patch_dim": 1024, "latent_dim": 3072, "num_latents": 768, "condition_dim": 1024, "latent_heads": 24}

PRESETS: dict[str, dict[str, Any]] = {
    "base-500m": {
        **_BASE,
        "patch_dim": 768,
        "latent_dim": 1024,
        "num_latents": 512,
        "condition_dim": 768,
        "latent_heads": 16,
    },
    "base-3.9b": {**_BASE, **_LARGE},
    "upscaler-3.9b": {
        **_PUBLISHED,
        **_LARGE,
        "in_channels": 6,
        "out_channels": 3,
        "height": 288,
        "width": 512,
        "group_size": (18, 16),
        "shared_positions": True,
        "noise_level_token": True,
    },
}
