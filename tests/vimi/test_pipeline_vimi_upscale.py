import numpy as np
import pytest
import torch
from PIL import Image

from vimi_diffusers import EDMVideoScheduler, VIMITransformer3DModel, VIMIUpscalePipeline
from vimi_diffusers.vimi.tiny import build_tiny_components
from vimi_diffusers.vimi.upscaling import corrupt, enlarge


RED = Image.new("RGB", (20, 20), (255, 0, 0))
UPSCALER = {
    "in_channels": 6,
    "out_channels": 3,
    "height": 32,
    "width": 32,
    "noise_level_token": True,
    "input_skip": False,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def upscaler():
    components = build_tiny_components()
    config = {k: v for k, v in components["transformer"].config.items() if not k.startswith("_")} | UPSCALER
    torch.manual_seed(0)
    components["transformer"] = VIMITransformer3DModel(**config).eval()
    torch.nn.init.normal_(components["transformer"].proj_out.weight, std=0.1)
    components["scheduler"] = EDMVideoScheduler(sigma_in=4.0, sigma_max=20.0, solver="euler")
    del components["vae"]
    pipe = VIMIUpscalePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small(number=1, seed=5):
    return torch.rand(number, 4, 3, 16, 16, generator=seeded(seed))


def run(pipe, video=None, prompt="a red ball", **arguments):
    arguments = {"num_inference_steps": 2, "generator": seeded(), "output_type": "pt", **arguments}
    return pipe(small() if video is None else video, prompt, **arguments).frames


def test_corruption_keeps_unit_variance_at_every_level():
    data, noise = torch.randn(4, 3, 8, 32, 32, generator=seeded(1)), torch.randn(4, 3, 8, 32, 32, generator=seeded(2))
    levels = torch.tensor([0.001, 0.1, 1.0, 10.0])
    result = corrupt(data, noise, levels)
    torch.testing.assert_close(result.std(dim=(1, 2, 3, 4)), torch.ones(4), atol=0.02, rtol=0)
    correlation = (result * data).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(correlation, 1 / (1 + levels**2).sqrt(), atol=0.03, rtol=0)


def test_enlarging_equals_pillows_bilinear_filter():
    frame = torch.rand(8, 8, generator=seeded(3))
    video = frame.expand(2, 3, 4, 8, 8)
    expected = np.asarray(Image.fromarray(frame.numpy()).resize((16, 32), Image.Resampling.BILINEAR))
    result = enlarge(video, 32, 16)
    assert result.shape == (2, 3, 4, 32, 16)
    torch.testing.assert_close(result[1, 2, 3], torch.from_numpy(expected.copy()), atol=1e-5, rtol=0)


def test_result_depends_on_video_prompt_images_and_noise(upscaler):
    plain = run(upscaler)
    assert plain.shape == (1, 4, 3, 32, 32)
    assert torch.equal(plain, run(upscaler))
    for arguments in (
        {"video": small(seed=6)},
        {"prompt": "the cat"},
        {"prompt": "a <ball>", "images": {"ball": RED}},
        {"noise_level": 1.0},
        {"generator": seeded(1)},
        {"guidance_scale": 4.0},
    ):
        assert (run(upscaler, **arguments) - plain).abs().max() > 1e-6, arguments


def test_the_generator_is_told_the_noise_level_and_sees_the_video(upscaler):
    seen = []
    upscaler.transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    run(upscaler, noise_level=0.001)
    assert seen[0]["hidden_states"].shape == (1, 6, 4, 32, 32)
    torch.testing.assert_close(seen[0]["noise_level"].exp() ** 4, torch.tensor(0.001))
    pixels = small()[0, 2].permute(1, 2, 0).numpy()
    expected = enlarge((small() * 2 - 1).transpose(1, 2), 32, 32)
    torch.testing.assert_close(seen[0]["hidden_states"][:, 3:], expected, atol=0.01, rtol=0)
    assert pixels.shape == (16, 16, 3)


def test_a_batch_equals_its_singles(upscaler):
    both = small(2)
    batch = run(upscaler, both, ["a red ball", "the cat sits"], generator=[seeded(1), seeded(2)])
    for row, prompt in enumerate(["a red ball", "the cat sits"]):
        single = run(upscaler, both[row : row + 1], [prompt], generator=[seeded(row + 1)])
        torch.testing.assert_close(batch[row], single[0], atol=1e-4, rtol=0)


def test_types_of_video_and_output(upscaler):
    array = (small() * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    frames = [Image.fromarray(frame) for frame in array[0]]
    by_array = run(upscaler, array)
    torch.testing.assert_close(run(upscaler, frames), by_array)
    assert run(upscaler, frames, output_type="pil")[0][0].size == (32, 32)
    assert run(upscaler, frames, output_type="latent").shape == (1, 3, 4, 32, 32)
    assert run(upscaler, frames, num_videos_per_prompt=2).shape == (2, 4, 3, 32, 32)


def test_embeddings_of_the_base_serve_the_upscaler(upscaler):
    with torch.no_grad():
        embeds, _, mask, _ = upscaler.encode_prompt("a red ball", do_classifier_free_guidance=False)
    result = run(upscaler, prompt=None, prompt_embeds=embeds, prompt_attention_mask=mask)
    torch.testing.assert_close(result, run(upscaler), atol=1e-5, rtol=0)


def test_saved_and_loaded(upscaler, tmp_path):
    upscaler.save_pretrained(tmp_path)
    again = VIMIUpscalePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(again), run(upscaler), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"noise_level": 0.0}, "`noise_level` must be above 0, got 0.0"),
        ({"height": 30}, "`height` 30 does not fit the model"),
        ({"video": torch.rand(1, 4, 3, 64, 64)}, "`video` has 64x64 pixels, more than the result's 32x32"),
        ({"video": torch.rand(3, 4, 3, 16, 16)}, "`video` holds 3 videos for 1 prompts"),
        ({"prompt": "a <image_1>"}, "<image_1> has no image"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be an integer of at least 1"),
    ],
)
def test_bad_input_is_named_before_any_model_runs(upscaler, arguments, message):
    upscaler.transformer.forward = upscaler.text_encoder.forward = None
    with pytest.raises(ValueError, match=message):
        run(upscaler, **arguments)


def test_a_base_generator_is_no_upscaler():
    components = build_tiny_components()
    del components["vae"]
    with pytest.raises(ValueError, match="no upscaler: it needs `noise_level_token=True`"):
        VIMIUpscalePipeline(**components)
