"""What the generator reads beside C: resolution, noise level, reference images, and the latents of the step before."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_transformer import make, make_inputs, run
from torch import nn

from vimi_diffusers.vimi.transformer_embeddings import VIMIReferenceEmbedding, VIMIScalarEmbedding


INF = float("inf")


# ---------------------------------------------------------------------------------------------- scalars
@pytest.mark.parametrize("num_scalars", [1, 2])
def test_scalars_without_an_mlp_are_sines_and_cosines(num_scalars):
    embedder = VIMIScalarEmbedding(16, scale=100.0, num_scalars=num_scalars, mlp=False)
    assert list(embedder.parameters()) == []
    values = torch.tensor([[0.25, -1.5], [3.0, 0.0]])[:, :num_scalars]
    half = 16 // num_scalars // 2
    expected = [
        [f(100 * v * 10000 ** (-i / (half - 1))) for v in row for f in (math.cos, math.sin) for i in range(half)]
        for row in values.tolist()
    ]
    torch.testing.assert_close(embedder(values, torch.float32), torch.tensor(expected), atol=2e-4, rtol=0)
    assert embedder(values, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("scalar_mlp", [True, False])
def test_resolution_counts_and_is_the_samples_own_by_default(scalar_mlp):
    model = make(resolution_token=True, scalar_mlp=scalar_mlp)
    inputs = make_inputs(model)
    own = run(model, **inputs)
    assert torch.equal(own, run(model, **inputs, resolution=torch.tensor([[16, 16], [16, 16]])))
    other = run(model, **inputs, resolution=torch.tensor([[16, 16], [16, 320]]))
    assert torch.equal(other[0], own[0]) and not torch.allclose(other[1], own[1])
    swapped = run(model, **inputs, resolution=torch.tensor([[16, 16], [320, 16]]))  # height and width differ
    assert not torch.allclose(swapped[1], other[1])


def test_noise_level_counts_and_is_needed():
    model = make(in_channels=6, out_channels=3, noise_level_token=True)
    inputs = make_inputs(model)
    low = run(model, **inputs, noise_level=torch.tensor([-0.5, -0.5]))
    high = run(model, **inputs, noise_level=torch.tensor([-0.5, 0.5]))
    assert low.shape == (2, 3, 4, 16, 16)
    assert torch.equal(low[0], high[0]) and not torch.allclose(low[1], high[1])
    with pytest.raises(ValueError, match="needs the `noise_level` of the base video"):
        run(model, **inputs)


def test_an_image_is_a_video_of_infinite_frame_rate():
    """Its frame period is zero: the limit of ever faster videos."""
    model = make()
    inputs = make_inputs(model)
    still = run(model, **{**inputs, "fps": torch.full((2,), INF)})
    fast = run(model, **{**inputs, "fps": torch.full((2,), 1e9)})
    torch.testing.assert_close(fast, still, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(run(model, **{**inputs, "fps": torch.full((2,), 24.0)}), still)


@pytest.mark.parametrize(
    "name, value, option",
    [
        ("resolution", torch.ones(2, 2), "resolution_token"),
        ("noise_level", torch.ones(2), "noise_level_token"),
        ("previous_latents", torch.ones(2, 16, 32), "self_conditioning"),
        ("reference_images", torch.ones(2, 1, 3, 8, 8), "reference_patch_size"),
    ],
)
def test_inputs_without_a_place_are_refused(name, value, option):
    model = make()
    with pytest.raises(ValueError, match=f"`{name}` was given, but this model was built without `{option}`"):
        run(model, **make_inputs(model), **{name: value})


def test_scalars_without_an_mlp_need_a_width_of_four():
    for width in (18, 4):
        with pytest.raises(ValueError, match=f"`condition_dim` must be a multiple of 4, at least 8, got {width}"):
            make(scalar_mlp=False, condition_dim=width)


# ---------------------------------------------------------------------------------------------- reference images
def test_reference_tokens_are_patches_in_reading_order():
    torch.manual_seed(0)
    embedder = VIMIReferenceEmbedding(16, patch_size=4)
    images = torch.randn(2, 3, 3, 8, 12)
    tokens = embedder(images)
    assert tokens.shape == (2, 3 * 2 * 3, 16)
    for number, row, column in ((0, 0, 0), (1, 1, 2), (2, 0, 1)):
        patch = images[1, number, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
        position = []  # sines and cosines of the number of the image, the row and the column, in 3 bands each
        for coordinate in (number, row, column):
            angles = [coordinate * 100 ** (-band / 3) for band in range(3)]
            position += [0.5 * math.sin(a) for a in angles] + [0.5 * math.cos(a) for a in angles]
        expected = embedder.norm(embedder.proj(patch)) + torch.tensor(position[:16])
        torch.testing.assert_close(tokens[1, (number * 2 + row) * 3 + column], expected)


@pytest.mark.parametrize("patch_condition", [False, True])
def test_masked_references_change_nothing(patch_condition):
    model = make(reference_patch_size=4, patch_condition=patch_condition)
    inputs, images = make_inputs(model), torch.randn(2, 2, 3, 8, 8)
    without = run(model, **inputs)
    mask = torch.tensor([[True, False], [False, False]])
    with_images = run(model, **inputs, reference_images=images, reference_mask=mask)
    assert not torch.allclose(with_images[0], without[0])
    torch.testing.assert_close(with_images[1], without[1], atol=1e-5, rtol=1e-5)
    images[0, 1] = images[1] = 100.0
    assert torch.equal(run(model, **inputs, reference_images=images, reference_mask=mask), with_images)
    alone = {**inputs, "reference_images": images[:, :1], "reference_mask": mask[:, :1]}  # ragged lists are padded
    torch.testing.assert_close(run(model, **alone), with_images, atol=1e-5, rtol=1e-5)


def test_references_need_no_mask():
    model = make(reference_patch_size=4)
    inputs, images = make_inputs(model), torch.randn(2, 2, 3, 8, 8)
    masked = run(model, **inputs, reference_images=images, reference_mask=torch.ones(2, 2))
    torch.testing.assert_close(run(model, **inputs, reference_images=images), masked)
    inputs["encoder_attention_mask"] = None
    torch.testing.assert_close(run(model, **inputs, reference_images=images), masked, atol=1e-5, rtol=1e-5)


def test_bad_references_are_refused():
    model = make(reference_patch_size=4)
    inputs = make_inputs(model)
    for shape in ((2, 1, 3, 8, 10), (2, 3, 8, 8), (2, 1, 4, 8, 8)):
        with pytest.raises(ValueError, match=r"`reference_images` of shape .* multiples of 4"):
            run(model, **inputs, reference_images=torch.zeros(shape))
    with pytest.raises(ValueError, match="`reference_mask` was given without `reference_images`"):
        run(model, **inputs, reference_mask=torch.ones(2, 1))


# ---------------------------------------------------------------------------------------------- self-conditioning
def first_latents(model, inputs, **kwargs):
    """What the first block is given."""
    seen = []
    hook = model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    run(model, **inputs, **kwargs)
    hook.remove()
    return seen[0]


def test_self_conditioning_is_that_of_rin():
    """Z0 = learned latents + LN0(Z + MLP(LN(Z))), by hand."""
    model = make(self_conditioning=True)
    inputs, previous = make_inputs(model), torch.randn(2, 16, 32)
    module = model.self_conditioner
    (first, _, second), (before, after) = module.ff.net, (module.norm, module.norm_out)
    hidden = F.layer_norm(previous, (32,), before.weight, before.bias)
    hidden = F.gelu(F.linear(hidden, first.proj.weight, first.proj.bias))
    hidden = previous + F.linear(hidden, second.weight, second.bias)
    expected = model.latents + F.layer_norm(hidden, (32,), after.weight, after.bias)
    torch.testing.assert_close(first_latents(model, inputs, previous_latents=previous), expected)
    assert hidden.shape[2] * 4 == first.proj.out_features


def test_self_conditioning_starts_as_if_it_were_not_there():
    model, plain = make(trained=False, self_conditioning=True), make(trained=False)
    missing = plain.load_state_dict({n: w for n, w in model.state_dict().items() if "self_cond" not in n})
    assert not missing.missing_keys
    inputs = make_inputs(model)
    previous = torch.randn(2, 16, 32)
    assert torch.equal(run(model, **inputs, previous_latents=previous), run(plain, **inputs))


def test_latents_are_carried():
    model = make(self_conditioning=True)
    inputs = make_inputs(model)
    with torch.no_grad():
        first = model(**inputs)
        sample, latents = model(**inputs, return_dict=False)
    assert torch.equal(first.sample, sample) and torch.equal(first.latents, latents)
    assert latents.shape == (2, 16, 32)
    zeros = run(model, **inputs, previous_latents=torch.zeros(2, 16, 32))
    assert torch.equal(zeros, first.sample)  # the first step starts from zeros
    second = run(model, **inputs, previous_latents=latents)
    assert not torch.allclose(second, first.sample)
    mixed = run(model, **inputs, previous_latents=torch.stack([latents[0], torch.zeros(16, 32)]))  # sample by sample
    torch.testing.assert_close(mixed, torch.stack([second[0], zeros[1]]))


def test_latents_are_given_without_self_conditioning_too():
    model = make()
    with torch.no_grad():
        output = model(**make_inputs(model))
    assert list(output.keys()) == ["sample", "latents"] and output.latents.shape == (2, 16, 32)
    nn.init.zeros_(model.transformer_blocks[1].write.attn.to_out[0].weight)  # they are those after the last block
    with torch.no_grad():
        assert torch.equal(model(**make_inputs(model)).latents, output.latents)


def test_latents_of_another_shape_are_refused():
    model = make(self_conditioning=True)
    with pytest.raises(ValueError, match=r"`previous_latents` of shape \(2, 8, 32\) do not fit .* \(2, 16, 32\)"):
        run(model, **make_inputs(model), previous_latents=torch.zeros(2, 8, 32))
