import pytest
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
        for module in (model.proj_out, model.skip_gain):
            if module is not None:
                nn.init.normal_(module.weight, std=0.2)
                nn.init.normal_(module.bias, std=0.2)
    return model


def make_inputs(model, batch_size=2, tokens=5, seed=1, num_frames=None):
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = (batch_size, config.in_channels, num_frames or config.num_frames, config.height, config.width)
    return {
        "hidden_states": torch.randn(shape, generator=generator),
        "timestep": torch.linspace(-1.0, 0.8, batch_size),
        "encoder_hidden_states": torch.randn(batch_size, tokens, config.condition_dim, generator=generator),
        "encoder_attention_mask": torch.ones(batch_size, tokens, dtype=torch.bool),
        "fps": torch.full((batch_size,), 8.0),
    }


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs).sample


# ---------------------------------------------------------------------------------------------- shapes and layout
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"patch_attention": True, "patch_condition": True, "input_skip": True},
        {"in_channels": 6, "out_channels": 3},
        {"height": 16, "width": 32},
        {"patch_size": (2, 4, 8), "group_size": (1, 2)},
        {"group_size": (4, 4)},
    ],
)
def test_output_has_the_shape_of_a_video(change):
    model = make(**change)
    inputs = make_inputs(model)
    shape = list(inputs["hidden_states"].shape)
    shape[1] = model.config.out_channels or model.config.in_channels
    output = run(model, **inputs)
    assert list(output.shape) == shape and output.isfinite().all() and output.std() > 0.1
    with torch.no_grad():
        assert torch.equal(model(**inputs, return_dict=False)[0], output)


@pytest.mark.parametrize(
    "grouping",
    [
        {"patch_size": (1, 4, 4), "group_size": (2, 2)},
        {"patch_size": (1, 2, 4), "group_size": (4, 1)},
        {"patch_size": (2, 4, 2), "group_size": (1, 8)},
        {"patch_size": (4, 8, 8), "group_size": (2, 2)},
    ],
)
def test_patches_are_cut_group_by_group_and_put_back(grouping):
    model = make(**grouping)
    video = torch.arange(2 * 3 * 4 * 16 * 16, dtype=torch.float32).view(2, 3, 4, 16, 16)
    tokens = model._patchify(video, model.grid)
    assert torch.equal(model._unpatchify(tokens, model.grid), video)

    # the definition, loop by loop: groups in rows and columns; in each the frames, then rows and columns of patches
    (pt, ph, pw), (gh, gw) = grouping["patch_size"], grouping["group_size"]
    expected = []
    for top in range(0, 16, ph * gh):
        for left in range(0, 16, pw * gw):
            for t in range(0, 4, pt):
                for y in range(top, top + ph * gh, ph):
                    for x in range(left, left + pw * gw, pw):
                        expected.append(video[:, :, t : t + pt, y : y + ph, x : x + pw].flatten(1))
    assert torch.equal(tokens, torch.stack(expected, dim=1))


def test_positions_follow_the_tokens():
    model = make(height=16, width=32)
    with torch.no_grad():
        index = torch.arange(4 * 4 * 8, dtype=torch.float32).view(4, 4, 8, 1)
        model.pos_embed.copy_(index.expand(-1, -1, -1, 24))
    pixels = index.permute(3, 0, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)  # each patch holds its number
    tokens = model._patchify(pixels.expand(3, -1, -1, -1)[None], model.grid)
    assert torch.equal(model._positions(model.grid)[:, 0], tokens[0, :, 0])


@pytest.mark.parametrize("extras", [{}, {"patch_attention": True, "patch_condition": True}])
def test_a_group_spans_all_frames_and_only_latents_join_groups(extras):
    """Groups of one row of patches: a change in the first frame's top left corner reaches the group, or all."""
    for num_latent_layers in (0, 1):
        model = make(group_size=(1, 4), num_latent_layers=num_latent_layers, **extras)
        inputs = make_inputs(model, batch_size=1)
        before = run(model, **inputs)
        inputs["hidden_states"][:, :, 0, :4, :4] += 1
        changed = (run(model, **inputs) - before).abs().amax(dim=(0, 1)) > 1e-7  # frames, rows, columns
        changed = changed.unflatten(2, (4, 4)).unflatten(1, (4, 4)).any(dim=4).any(dim=2)
        assert changed[:, 0].all()  # all frames and all of the width
        assert changed[:, 1:].all() if num_latent_layers else not changed[:, 1:].any()


def test_patches_of_another_frame_are_reached_without_patch_attention():
    model = make(patch_attention=False, num_layers=1)
    inputs = make_inputs(model, batch_size=1)
    before = run(model, **inputs)
    inputs["hidden_states"][:, :, 3] *= -1
    assert ((run(model, **inputs) - before)[:, :, 0].abs() > 1e-7).any()


# ---------------------------------------------------------------------------------------------- conditions
@pytest.mark.parametrize("patch_condition", [False, True])
def test_masked_tokens_change_nothing(patch_condition):
    model = make(patch_attention=True, patch_condition=patch_condition)
    inputs = make_inputs(model)
    inputs["encoder_attention_mask"][0, 3:] = False
    inputs["encoder_attention_mask"][1] = False  # an unconditional sample: only the scalar tokens are left
    before = run(model, **inputs)
    inputs["encoder_hidden_states"][0, 3:] = 100.0
    inputs["encoder_hidden_states"][1] = -100.0
    assert torch.equal(run(model, **inputs), before)
    inputs["encoder_hidden_states"][0, 2] += 1.0
    after = run(model, **inputs)
    assert not torch.allclose(after[0], before[0]) and torch.equal(after[1], before[1])


def test_a_mask_of_ones_is_no_mask():
    model = make()
    inputs = make_inputs(model)
    expected = run(model, **inputs)
    torch.testing.assert_close(run(model, **{**inputs, "encoder_attention_mask": None}), expected)
    ones = inputs["encoder_attention_mask"].long()  # as tokenizers give it
    torch.testing.assert_close(run(model, **{**inputs, "encoder_attention_mask": ones}), expected)


def test_padding_the_condition_changes_nothing():
    model = make(patch_condition=True)
    inputs = make_inputs(model)
    expected = run(model, **inputs)
    inputs["encoder_hidden_states"] = nn.functional.pad(inputs["encoder_hidden_states"], (0, 0, 0, 3), value=7.0)
    inputs["encoder_attention_mask"] = nn.functional.pad(inputs["encoder_attention_mask"], (0, 3))
    torch.testing.assert_close(run(model, **inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_batch_equals_its_samples():
    model = make(patch_attention=True, patch_condition=True, input_skip=True)
    inputs = make_inputs(model, batch_size=3)
    inputs["encoder_attention_mask"][1, 2:] = False
    inputs["fps"] = torch.tensor([4.0, 8.0, float("inf")])
    batch = run(model, **inputs)
    for i in range(3):
        single = run(model, **{name: value[i : i + 1] for name, value in inputs.items()})
        torch.testing.assert_close(single, batch[i : i + 1], rtol=1e-5, atol=1e-5)


def test_noise_level_and_frame_rate_count():
    model = make()
    inputs = make_inputs(model)
    base = run(model, **inputs)
    assert not torch.allclose(run(model, **{**inputs, "timestep": inputs["timestep"] + 0.5}), base)
    assert not torch.allclose(run(model, **{**inputs, "fps": 2 * inputs["fps"]}), base)
    still = run(model, **{**inputs, "fps": torch.full((2,), float("inf"))})
    assert torch.equal(still, run(model, **{**inputs, "fps": None})) and not torch.allclose(still, base)


def test_one_timestep_serves_a_batch():
    model = make()
    inputs = {**make_inputs(model), "timestep": torch.full((2,), 0.3)}
    assert torch.equal(run(model, **{**inputs, "timestep": torch.tensor(0.3)}), run(model, **inputs))


def test_patches_may_read_the_condition_themselves():
    """Without latents between: the write sees C, each group of a batch its own sample's."""
    model = make(patch_condition=True, num_layers=1)
    block = model.transformer_blocks[0]
    with torch.no_grad():  # cut the way through the latents
        block.condition_read.attn.to_out[0].weight.zero_()
    inputs = make_inputs(model)
    before = run(model, **inputs)
    inputs["encoder_hidden_states"][1] += 1.0
    after = run(model, **inputs)
    assert torch.equal(after[0], before[0])
    changed = (after[1] - before[1]).abs().amax(dim=(0, 1)) > 1e-7
    assert changed.unflatten(1, (4, 4)).unflatten(0, (4, 4)).any(dim=3).any(dim=1).all()


# ---------------------------------------------------------------------------------------------- start of training
@pytest.mark.parametrize("input_skip", [False, True])
def test_training_starts_at_zero_and_can_leave_it(input_skip):
    model = make(trained=False, input_skip=input_skip, patch_attention=True)
    inputs = make_inputs(model)
    output = model(**inputs).sample
    assert torch.equal(output, torch.zeros_like(output))
    torch.nn.functional.mse_loss(output, torch.ones_like(output)).backward()
    assert model.proj_out.weight.grad.abs().max() > 0
    assert not input_skip or model.skip_gain.weight.grad.abs().max() > 0


def test_every_parameter_is_used():
    model = make(patch_attention=True, patch_condition=True, input_skip=True)
    model(**make_inputs(model)).sample.square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_input_skip_is_a_gain_for_each_channel():
    model = make(input_skip=True)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    inputs = make_inputs(model)
    gain = model._patchify(run(model, **inputs) / inputs["hidden_states"], model.grid)
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gain[0], gain[1])  # another noise level, another gain


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = make(patch_attention=True).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**make_inputs(model)).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_the_model_is_traced_as_one_graph():
    model = make(patch_attention=True, patch_condition=True, input_skip=True)
    inputs = make_inputs(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(run(compiled, **inputs), run(model, **inputs))


# ---------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize("num_frames", [2, 7, 8])
def test_another_number_of_frames_works(num_frames):
    model = make(patch_attention=True)
    inputs = make_inputs(model, num_frames=num_frames)
    assert run(model, **inputs).shape == inputs["hidden_states"].shape
    model.check_sample_size(num_frames, 16, 16)
    # resampled in time alone: every frame's table is a mix of the model's frames at the same place
    table, grid = model.pos_embed, (num_frames, 4, 4)
    constant = make()
    with torch.no_grad():
        constant.pos_embed.copy_(table[:1].expand_as(table))
    tokens = constant._positions(grid).view(2, 2, num_frames, 2, 2, -1)
    torch.testing.assert_close(tokens, tokens[:, :, :1].expand_as(tokens))
    torch.testing.assert_close(tokens[:, :, 0], constant._positions(model.grid).view(2, 2, 4, 2, 2, -1)[:, :, 0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"height": 20}, "`height` 20 does not fit the model: it must be a positive multiple of 8"),
        ({"width": 4}, "`width` 4 does not fit"),
        ({"num_frames": 3, "patch_size": (2, 4, 4)}, "`num_frames` 3 does not fit"),
        ({"num_latents": 18}, "`num_latents` 18 is no multiple of the 4 groups"),
        ({"input_skip": True, "out_channels": 4}, "`input_skip` needs equal input and output channels, got 3, 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize(
    "size, message",
    [
        ((4, 16, 20), "`width` 20 does not fit the model: it must be a positive multiple of 8"),
        ((4, 32, 16), r"videos of 16x16 pixels \(height x width\), not 32x16"),
        ((0, 16, 16), "`num_frames` 0 does not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model.check_sample_size(*size)
    inputs = make_inputs(model)
    with pytest.raises(ValueError, match=message):
        run(model, **{**inputs, "hidden_states": torch.zeros(2, 3, *size)})


# ---------------------------------------------------------------------------------------------- saving, LoRA
def test_save_and_load(tmp_path):
    model = make(patch_attention=True, patch_condition=True, input_skip=True)
    model.save_pretrained(tmp_path)
    loaded = VIMITransformer3DModel.from_pretrained(tmp_path)
    inputs = make_inputs(model)
    assert torch.equal(run(loaded, **inputs), run(model, **inputs))
    assert loaded.config.group_size in ((2, 2), [2, 2]) and not loaded.training


def test_lora_scale():
    peft = pytest.importorskip("peft")
    model = make()
    inputs = make_inputs(model)
    base = run(model, **inputs)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    assert not torch.allclose(run(model, **inputs), base)
    torch.testing.assert_close(run(model, **inputs, attention_kwargs={"scale": 0.0}), base)


# ---------------------------------------------------------------------------------------------- size of the network
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


@pytest.mark.parametrize(
    "d, D, c, latents, latent_heads, block, published",
    [
        (768, 1024, 768, 512, 16, 80_178_432, 492_036_400),
        (1024, 3072, 1024, 768, 24, 637_785_088, 3_907_319_856),
    ],
)
def test_snap_videos_configurations_have_the_published_size(d, D, c, latents, latent_heads, block, published):
    """500M and 3.9B; the totals include latent self-conditioning, and leave the scalar embedders out."""
    with torch.device("meta"):
        model = VIMITransformer3DModel(
            num_frames=16, height=40, width=64, patch_size=(1, 4, 4), group_size=(5, 4), patch_dim=d, latent_dim=D,
            num_latents=latents, condition_dim=c, num_layers=6, num_latent_layers=4, cross_attention_heads=16,
            latent_heads=latent_heads, dropout=0.1,
        )  # fmt: skip
    assert model.num_groups == 8
    assert block_size(d, D, c, 4) == block == count(model.transformer_blocks[0])
    self_conditioning = feed_forward(D) + norm(D)
    scalars = 2 * (linear(256, c) + linear(c, c))
    assert count(model) + self_conditioning - scalars == published
