import pytest
import torch
from tiny_transformer import make, make_inputs, run
from torch import nn


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
    assert torch.equal(model._positions(model.grid)[:, :, 0].flatten(), tokens[0, :, 0])


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
EVERYTHING = {
    "patch_attention": True,
    "patch_condition": True,
    "modulation": True,
    "input_skip": True,
    "self_conditioning": True,
    "resolution_token": True,
    "noise_level_token": True,
    "reference_patch_size": 4,
}


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_a_fresh_model_answers_to_its_input_and_every_weight_learns(options):
    model = make(trained=False, **options)
    inputs = make_inputs(model)
    if options:
        inputs["noise_level"] = torch.tensor([-0.5, 0.1])
        inputs["reference_images"] = torch.randn(2, 2, 3, 8, 8)
        inputs["previous_latents"] = torch.randn(2, 16, 32)
    output = model(**inputs).sample
    assert 0.01 < output.std() < 1  # of the size of the target at most
    output.square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    # keys shift all of a query's scores alike; what lies before a gain of zero learns from the second step on
    waiting = ("to_k.bias", "self_conditioner.norm.", "self_conditioner.ff")
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0 or any(part in name for part in waiting), name


def test_input_skip_is_a_gain_for_each_channel():
    model = make(input_skip=True)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    inputs = make_inputs(model)
    gain = model._patchify(run(model, **inputs) / inputs["hidden_states"], model.grid)
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gain[0], gain[1])  # another noise level, another gain
