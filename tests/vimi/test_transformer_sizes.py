"""Videos of another size than the trained one: resampled positions, and latents for other numbers of groups."""

import pytest
import torch
from tiny_transformer import make, make_inputs, run


SIZES = [(2, 16, 16), (7, 16, 16), (4, 8, 16), (4, 32, 16), (4, 24, 40), (8, 32, 32), (1, 8, 8)]


@pytest.mark.parametrize("shared_positions", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_that_patches_and_groups_fill_works(size, shared_positions):
    model = make(patch_attention=True, shared_positions=shared_positions, self_conditioning=True)
    frames, height, width = size
    inputs = make_inputs(model, num_frames=frames, height=height, width=width)
    model.check_sample_size(*size)
    with torch.no_grad():
        output = model(**inputs)
        again = model(**inputs, previous_latents=output.latents)
    assert output.sample.shape == (2, 3, *size) == again.sample.shape and again.sample.isfinite().all()
    groups = (height // 8) * (width // 8)
    assert output.latents.shape == (2, 4 * groups, 32)  # 4 latents in each group, however many groups
    batch = run(model, **{**inputs, "timestep": torch.tensor([0.1, 0.1])})
    single = run(model, **{name: value[1:] for name, value in inputs.items() if name != "timestep"},
                 timestep=torch.tensor([0.1]))  # fmt: skip
    torch.testing.assert_close(batch[1:], single, atol=1e-5, rtol=1e-5)


def coordinates(model):
    """Puts each position's frame, row and column, at the middle of its patch, into the table."""
    frames, rows, columns = model.pos_embed.shape[:3]
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[..., 0] = (torch.arange(frames)[:, None, None] + 0.5) / frames
        model.pos_embed[..., 1] = (torch.arange(rows)[:, None] + 0.5) / rows
        model.pos_embed[..., 2] = (torch.arange(columns) + 0.5) / columns


@pytest.mark.parametrize("size", [(4, 16, 16), (8, 16, 16), (4, 32, 64), (12, 24, 16)])
def test_positions_are_stretched_over_the_video(size):
    """Each patch has the position of its relative place; beyond the outermost middles the table's edge."""
    model = make()
    coordinates(model)
    grid = (size[0], size[1] // 4, size[2] // 4)
    positions = model._positions(grid).flatten(0, 1)
    place = torch.stack(
        torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
    )  # 3, frames, rows, columns
    low, high = 0.5 / 4, 3.5 / 4
    pixels = place.clamp(low, high).repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = model._patchify(pixels[None], grid)[0].unflatten(1, (3, 16))[..., 0]
    torch.testing.assert_close(positions[:, :3], expected)


def test_the_trained_size_uses_the_table_itself():
    model = make(shared_positions=True)
    assert model.pos_embed.shape == (4, 2, 2, 24)
    assert torch.equal(model._positions(model.grid)[0], model.pos_embed.flatten(0, 2))
    # any number of groups shares it: only other lengths are resampled
    assert torch.equal(model._positions((4, 8, 6)), model._positions(model.grid))


def latents_of(model, height, width):
    seen = []
    hook = model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[1][0]))
    run(model, **make_inputs(model, batch_size=1, height=height, width=width))
    hook.remove()
    return seen[0]


def test_groups_take_the_latents_of_the_nearest_trained_group():
    model = make()
    table = model.latents.detach().view(2, 2, 4, 32)  # rows and columns of groups, latents of a group
    assert torch.equal(latents_of(model, 16, 16), model.latents)
    doubled = table.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(latents_of(model, 32, 32), doubled.flatten(0, 2))
    three = table[[0, 1, 1]][:, [1]]  # one column of groups: its middle lies between both trained ones
    assert torch.equal(latents_of(model, 24, 8), three.flatten(0, 2))


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
        ((4, 36, 16), r"`height` 36 does not fit .* \(patches of \(1, 4, 4\), groups of \(2, 2\) patches\)"),
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


def test_latents_of_another_size_are_refused():
    model = make(self_conditioning=True)
    inputs = make_inputs(model, height=32)
    with pytest.raises(
        ValueError, match=r"`previous_latents` of shape \(2, 16, 32\) do not fit this video: .* \(2, 32, 32\)"
    ):
        run(model, **inputs, previous_latents=torch.zeros(2, 16, 32))
