"""What the generator adds to Snap Video's FIT: each option alone, and added to trained weights."""

import pytest
import torch
from tiny_transformer import TINY

from vimi_diffusers.training.components import extend_transformer
from vimi_diffusers.vimi.transformer_blocks import VIMIAttentionLayer
from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


OPTIONS = TINY | {"num_frames": 2, "patch_dim": 16, "latent_dim": 24, "num_latents": 8, "condition_dim": 12}


def build(**options) -> VIMITransformer3DModel:
    torch.manual_seed(0)
    model = VIMITransformer3DModel(**OPTIONS, **options).eval()
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    for layer in model.modules():  # modulation starts at zero: give it something to do
        if isinstance(layer, VIMIAttentionLayer) and layer.scale_shift_table is not None:
            torch.nn.init.normal_(layer.scale_shift_table, std=0.3)
    for linear in model.modulation_proj or ():
        torch.nn.init.normal_(linear.weight, std=0.3)
    return model


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 3:] = False
    return {
        "hidden_states": torch.randn(3, 3, 2, 16, 16, generator=generator),
        "timestep": torch.tensor([-0.4, 0.1, 0.6]),
        "encoder_hidden_states": torch.randn(3, 7, 12, generator=generator),
        "encoder_attention_mask": mask,
    }


@pytest.mark.parametrize(
    "options", [{"patch_attention": True}, {"patch_condition": True}, {"modulation": True, "patch_attention": True}]
)
@torch.no_grad()
def test_padding_and_batching_change_nothing(options, inputs):
    model = build(**options)
    output = model(**inputs).sample

    padded = inputs["encoder_hidden_states"].clone()
    padded[1, 3:] = 100.0
    assert torch.equal(model(**{**inputs, "encoder_hidden_states": padded}).sample, output)

    alone = model(
        inputs["hidden_states"][1:2],
        inputs["timestep"][1:2],
        inputs["encoder_hidden_states"][1:2, :3],
    ).sample
    torch.testing.assert_close(alone, output[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["patch_condition", "modulation"])
@torch.no_grad()
def test_the_last_token_reaches_the_output(name, inputs):
    model = build(**{name: True})
    for block in model.transformer_blocks:  # close the ordinary way in, through the latents
        block.condition_read.attn.to_out[0].weight.zero_()
    before = model(**inputs).sample
    inputs["encoder_hidden_states"][0, -1] += 1.0
    after = model(**inputs).sample
    assert (after[0] - before[0]).abs().max() > 1e-4
    assert torch.equal(after[1:], before[1:])


@torch.no_grad()
def test_modulation_and_input_skip_start_as_if_they_were_not_there(inputs):
    plain = build(patch_attention=True)
    extended = extend_transformer(plain, {"modulation": True, "input_skip": True}).eval()
    torch.testing.assert_close(extended(**inputs).sample, plain(**inputs).sample)
    assert extended.config.modulation and extended.config.input_skip


def test_extending_keeps_weights_or_refuses():
    plain = build()
    assert extend_transformer(plain, {}) is plain
    extended = extend_transformer(plain, {"patch_condition": True})
    for name, weight in plain.state_dict().items():
        assert torch.equal(extended.state_dict()[name], weight)
    with pytest.raises(ValueError, match="do not fit the pretrained weights"):
        extend_transformer(plain, {"patch_dim": 32, "cross_attention_heads": 4})
    with pytest.raises(ValueError, match="has no place any more"):
        extend_transformer(plain, {"num_layers": 1})
