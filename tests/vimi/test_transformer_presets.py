"""The sizes of Snap Video's networks, counted from their layers."""

import pytest
import torch
from tiny_transformer import make

from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


def linear(inputs, outputs):
    return inputs * outputs + outputs


def norm(dim):
    return 2 * dim


def feed_forward(dim):
    return norm(dim) + linear(dim, 4 * dim) + linear(4 * dim, dim)


def block_size(d, D, c, layers):
    """One FIT block of Snap Video: d patch channels, D latent channels, c condition channels."""
    m = min(d, D)
    read_condition = norm(D) + norm(c) + linear(D, c) + 2 * linear(c, c) + linear(c, D)
    read_patches = norm(D) + norm(d) + linear(D, m) + 2 * linear(d, m) + linear(m, D)
    process = norm(D) + 4 * linear(D, D) + feed_forward(D)
    write = norm(d) + norm(D) + linear(d, m) + 2 * linear(D, m) + linear(m, d)
    return read_condition + read_patches + 2 * feed_forward(D) + layers * process + write + feed_forward(d)


def outside_size(d, D, c, patch_volume, num_patches, num_latents):
    stem = linear(patch_volume, d) + norm(d) + num_patches * d + num_latents * D
    read_out = norm(d) + linear(d, patch_volume)
    scalars = 2 * (linear(256, c) + linear(c, c))  # noise level and frame rate
    return stem + read_out + scalars


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("change", [{}, {"patch_dim": 48, "latent_dim": 32}, {"num_latent_layers": 3}])
def test_number_of_parameters(change):
    model = make(**change)
    config = model.config
    d, D, c = config.patch_dim, config.latent_dim, config.condition_dim
    expected = 2 * block_size(d, D, c, config.num_latent_layers) + outside_size(d, D, c, 48, 64, 16)
    assert count(model) == expected


def build(name, **overrides):
    with torch.device("meta"):
        return VIMITransformer3DModel.from_preset(name, **overrides)


@pytest.mark.parametrize(
    "name, d, D, c, latents, block, published",
    [
        ("base-500m", 768, 1024, 768, 512, 80_178_432, 492_036_400),
        ("base-3.9b", 1024, 3072, 1024, 768, 637_785_088, 3_907_319_856),
    ],
)
def test_base_presets_have_the_published_size(name, d, D, c, latents, block, published):
    model = build(name)
    assert model.grid == (16, 10, 16) and model.num_groups == 8
    assert block_size(d, D, c, 4) == block == count(model.transformer_blocks[0])
    self_conditioning = feed_forward(D) + norm(D)
    scalars = 2 * (linear(256, c) + linear(c, c))
    assert 6 * block + outside_size(d, D, c, 48, 2560, latents) + self_conditioning - scalars == published
    assert count(model) == published


def test_upscaler_preset_shares_positions_between_groups():
    base, model = build("base-3.9b"), build("upscaler-3.9b")
    assert model.grid == (16, 72, 128) and model.num_groups == 32
    assert model.pos_embed.shape == (16, 18, 16, 1024)
    input_weights, positions = 48 * 1024, (16 * 18 * 16 - 2560) * 1024
    assert count(model) == count(base) + input_weights + positions == 3_909_466_160
    assert model.config.in_channels == 6 and model.out_channels == 3 and model.proj_out.out_features == 48
    # all but the first layer and the positions starts from the base model's weights
    other = {n for n, p in model.named_parameters() if p.shape != dict(base.named_parameters())[n].shape}
    assert other == {"patch_embed.weight", "pos_embed"}
    whole = build("upscaler-3.9b", shared_positions=False)
    assert count(whole) - count(model) == (147_456 - 4_608) * 1024


@pytest.mark.parametrize(
    "name, cross, latent", [("base-500m", 48, 64), ("base-3.9b", 64, 128), ("upscaler-3.9b", 64, 128)]
)
def test_heads_of_presets_have_the_published_width(name, cross, latent):
    model = build(name)
    assert len(model.transformer_blocks) == 6
    for block in model.transformer_blocks:
        for layer in (block.condition_read, block.patch_read, block.write):
            assert layer.attn.to_q.out_features == cross * layer.attn.heads and layer.ff is not None
        assert len(block.latent_layers) == 4
        for layer in block.latent_layers:
            assert layer.attn.to_q.out_features == latent * layer.attn.heads
            assert layer.ff.net[1].p == 0.1


def test_presets_can_be_changed():
    model = build("base-500m", num_layers=1, scalar_mlp=True, dropout=0.0)
    assert (
        model.config.num_layers == 1 and model.config.self_conditioning and model.sigma_embedder.linear_1 is not None
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["base-500m", "upscaler-3.9b"])
def test_a_narrow_preset_runs(name):
    narrow = {"patch_dim": 16, "latent_dim": 24, "num_latents": 32, "condition_dim": 16, "num_layers": 1,
              "num_latent_layers": 1, "cross_attention_heads": 2, "latent_heads": 2, "num_frames": 2}  # fmt: skip
    model = VIMITransformer3DModel.from_preset(name, **narrow).eval()
    config, kwargs = model.config, {}
    if config.noise_level_token:
        kwargs["noise_level"] = torch.tensor([-0.5])
    video = torch.randn(1, config.in_channels, 2, config.height, config.width)
    output = model(video, torch.zeros(1), torch.randn(1, 3, 16), resolution=torch.tensor([[720, 1280]]), **kwargs)
    assert output.sample.shape == (1, 3, 2, config.height, config.width)
    assert output.latents.shape == (1, 32, 24)


def test_unknown_presets_are_refused():
    with pytest.raises(
        ValueError, match="no preset 'base'. The presets are 'base-500m', 'base-3.9b', 'upscaler-3.9b'"
    ):
        VIMITransformer3DModel.from_preset("base")
