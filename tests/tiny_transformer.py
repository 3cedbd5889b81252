"""A generator of 4 frames of 16x16 pixels in 2x2 groups, and inputs for it."""

import torch
from torch import nn

from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


TINY = {
    "num_frames": 4,
    "height": 16,
    "width": 16,
    "patch_size": (1, 4, 4),
    "group_size": (2, 2),
    "patch_dim": 24,
    "latent_dim": 32,
    "num_latents": 16,
    "condition_dim": 16,
    "num_layers": 2,
    "num_latent_layers": 1,
    "cross_attention_heads": 2,
    "latent_heads": 2,
}


def make(seed=0, trained=True, **kwargs):
    """A small model; `trained` gives the parts that start at zero some weight."""
    torch.manual_seed(seed)
    model = VIMITransformer3DModel(**{**TINY, **kwargs}).eval()
    if trained:
        for module in (model.proj_out, model.skip_gain, *(model.modulation_proj or ())):
            if module is not None:
                nn.init.normal_(module.weight, std=0.2)
                nn.init.normal_(module.bias, std=0.2)
        if model.self_conditioner is not None:
            nn.init.normal_(model.self_conditioner.norm_out.weight)
    return model


def make_inputs(model, batch_size=2, tokens=5, seed=1, num_frames=None, height=None, width=None):
    config, generator = model.config, torch.Generator().manual_seed(seed)
    size = (num_frames or config.num_frames, height or config.height, width or config.width)
    return {
        "hidden_states": torch.randn(batch_size, config.in_channels, *size, generator=generator),
        "timestep": torch.linspace(-1.0, 0.8, batch_size),
        "encoder_hidden_states": torch.randn(batch_size, tokens, config.condition_dim, generator=generator),
        "encoder_attention_mask": torch.ones(batch_size, tokens, dtype=torch.bool),
        "fps": torch.full((batch_size,), 8.0),
    }


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs).sample
