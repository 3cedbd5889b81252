"""What a call can do beside the three plain tasks: named images, known frames, two guidance scales, LoRA."""

import numpy as np
import pytest
import torch
from diffusers import FasterCacheConfig
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image

from vimi_diffusers import EDMVideoScheduler, VIMIGuidance, VIMIPipeline, VIMITransformer3DModel
from vimi_diffusers.vimi.tiny import build_tiny_components


RED, BLUE = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (30, 20), (0, 0, 255))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a red ball", **arguments):
    arguments = {"num_inference_steps": 2, "generator": seeded(), "output_type": "pt", **arguments}
    return pipe(prompt, **arguments).frames


def with_transformer(**options):
    components = build_tiny_components()
    config = {k: v for k, v in components["transformer"].config.items() if not k.startswith("_")} | options
    torch.manual_seed(0)
    components["transformer"] = VIMITransformer3DModel(**config).eval()
    torch.nn.init.normal_(components["transformer"].proj_out.weight, std=0.1)
    pipe = VIMIPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(frames=2, size=16):
    return torch.rand(frames, 3, size, size, generator=seeded(7))


# ---------------------------------------------------------------- names
def test_named_images_are_numbered_images(tiny_pipeline):
    numbered = run(tiny_pipeline, "a <image_1> on <image_2>", images=[RED, BLUE])
    assert torch.equal(run(tiny_pipeline, "a <ball> on <sea>", images={"ball": RED, "sea": BLUE}), numbered)
    views = run(tiny_pipeline, "a <ball>", images={"ball": [RED, BLUE]})
    assert torch.equal(views, run(tiny_pipeline, "a <image_1><image_2>", images=[RED, BLUE]))
    with pytest.raises(ValueError, match="'sea' has no tag"):
        run(tiny_pipeline, "a <ball>", images={"ball": RED, "sea": BLUE})


# ---------------------------------------------------------------- known frames
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_a_video_begins_with_the_given_frames(tiny_pipeline, solver):
    tiny_pipeline.scheduler = EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0, solver=solver)
    frames = run(tiny_pipeline, "it goes on", video=clip())
    torch.testing.assert_close(frames[0, :2], clip())
    # With another first frame shown, or another second frame known, the rest differs.
    first = tiny_pipeline.video_processor.numpy_to_pil(clip()[:1].permute(0, 2, 3, 1).numpy())
    other = torch.stack([clip()[0], 1 - clip()[1]])
    for arguments in ({"task": "prediction", "images": first}, {"video": other}):
        assert (run(tiny_pipeline, "it goes on", **arguments)[0, 2:] - frames[0, 2:]).abs().max() > 1e-6


def test_known_frames_by_any_type_and_in_batches(tiny_pipeline):
    tensor = (clip() * 255).round() / 255
    expected = run(tiny_pipeline, video=tensor)
    array = (tensor.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    for video in (array, [Image.fromarray(frame) for frame in array], array.astype(np.float32) / 255, array[None]):
        torch.testing.assert_close(run(tiny_pipeline, video=video), expected)
    batch = run(
        tiny_pipeline, ["a red ball", "the cat"], video=torch.stack([tensor, 1 - tensor]),
        generator=[seeded(), seeded()],
    )  # fmt: skip
    torch.testing.assert_close(batch[1, :2], 1 - tensor)


def test_extend_joins_windows(tiny_pipeline):
    given = clip(3)
    frames = tiny_pipeline.extend(
        given, "the cat walks", num_new_frames=5, overlap=2, output_type="pt", num_inference_steps=1,
        generator=seeded(),
    ).frames  # fmt: skip
    assert frames.shape == (1, 8, 3, 16, 16)
    torch.testing.assert_close(frames[0, :3], given)
    prompts = ["the cat", "a blue cube", "a red ball"]
    again = tiny_pipeline.extend(
        given, prompts, num_new_frames=5, overlap=2, output_type="pil", num_inference_steps=1, generator=seeded()
    ).frames[0]
    assert len(again) == 8 and again[0].size == (16, 16)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_new_frames": 0}, "`num_new_frames` must be at least 1"),
        ({"num_new_frames": 2, "overlap": 4}, "`overlap` must be from 1 to 3 with 3 frames given and windows of 4"),
        ({"num_new_frames": 2, "overlap": 0}, "`overlap` must be from 1 to 3"),
        ({"num_new_frames": 5, "overlap": 2, "prompt": ["a", "b"]}, "take 3 windows, `prompt` has 2 texts"),
        ({"num_new_frames": 2, "overlap": 1, "output_type": "latent"}, "`output_type` must be 'np', 'pt' or 'pil'"),
        ({"num_new_frames": 2, "overlap": 1, "video": torch.rand(2, 3, 3, 16, 16)}, "continues one video, got 2"),
    ],
)
def test_windows_that_do_not_fit_are_refused(tiny_pipeline, arguments, message):
    tiny_pipeline.transformer.forward = None
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.extend(**{"video": clip(3), "prompt": "the cat", **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"video": torch.rand(4, 3, 16, 16)}, "`video` has 4 frames, the result 4 in all"),
        ({"video": torch.rand(3, 2, 3, 16, 16)}, "`video` holds 3 videos for 1 prompts"),
        ({"video": "clip.mp4"}, "incorrect format"),
        ({"sigmas": [1.0, 2.0]}, "`sigmas` must be positive and strictly decreasing"),
        ({"image_guidance_scale": -1.0}, "`image_guidance_scale` must be a finite number of at least 0"),
        (
            {"prompt": None, "prompt_embeds": torch.zeros(1, 3, 32), "image_guidance_scale": 2.0},
            "An image guidance scale needs `prompt`",
        ),
    ],
)
def test_bad_input_is_named_before_any_model_runs(tiny_pipeline, arguments, message):
    tiny_pipeline.transformer.forward = None
    with pytest.raises(ValueError, match=message):
        run(tiny_pipeline, **{"prompt": "a red ball", **arguments})


# ---------------------------------------------------------------- guidance
def test_two_scales_take_three_branches(tiny_pipeline):
    batches = []
    tiny_pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    arguments = {"prompt": "a <image_1> ball", "images": [RED]}
    apart = run(tiny_pipeline, **arguments, guidance_scale=3.0, image_guidance_scale=1.5)
    assert batches == [3] * 3
    batches.clear()
    together = run(tiny_pipeline, **arguments, guidance_scale=3.0, image_guidance_scale=3.0)
    assert batches == [2] * 3
    torch.testing.assert_close(together, run(tiny_pipeline, **arguments, guidance_scale=3.0), atol=1e-5, rtol=0)
    assert (apart - together).abs().max() > 1e-3
    tiny_pipeline.guider = VIMIGuidance(guidance_scale=3.0, image_guidance_scale=1.5)
    torch.testing.assert_close(run(tiny_pipeline, **arguments), apart, atol=1e-5, rtol=0)


def test_a_guider_component_decides_and_is_saved(tiny_pipeline, tmp_path):
    plain = run(tiny_pipeline, guidance_scale=3.0)
    for guider in (ClassifierFreeGuidance(guidance_scale=3.0), VIMIGuidance(guidance_scale=3.0)):
        tiny_pipeline.guider = guider
        torch.testing.assert_close(run(tiny_pipeline, guidance_scale=1.0), plain, atol=1e-5, rtol=0)
    tiny_pipeline.register_modules(guider=VIMIGuidance(guidance_scale=5.0, stop=0.5))
    tiny_pipeline.save_pretrained(tmp_path)
    again = VIMIPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.guider.guidance_scale == 5.0 and again.guider.config.stop == 0.5
    assert torch.equal(run(again), run(tiny_pipeline))
    with pytest.raises(ValueError, match="cannot change the component `guider`"):
        run(again, image_guidance_scale=2.0)


# ---------------------------------------------------------------- the sampler's options
def test_sigmas_replace_the_grid(tiny_pipeline):
    grid = [20.0, 3.0, 0.1]
    frames = run(tiny_pipeline, sigmas=grid)
    assert tiny_pipeline.num_timesteps == 5  # Heun
    assert (frames - run(tiny_pipeline, num_inference_steps=3)).abs().max() > 1e-4


def test_churn_draws_from_the_generator(tiny_pipeline):
    tiny_pipeline.scheduler = EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0, s_churn=4.0)
    first, again = run(tiny_pipeline, num_inference_steps=4), run(tiny_pipeline, num_inference_steps=4)
    assert torch.equal(first, again) and first.isfinite().all()
    tiny_pipeline.scheduler = EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0)
    assert (first - run(tiny_pipeline, num_inference_steps=4)).abs().max() > 1e-3


# ---------------------------------------------------------------- the generator's options
def test_self_conditioning_is_carried_between_steps():
    pipe, seen = with_transformer(self_conditioning=True), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("previous_latents")), with_kwargs=True
    )
    run(pipe, num_inference_steps=3)
    assert seen[0] is None and all(latents is not None for latents in seen[1:])
    assert len(seen[1]) == 2 and torch.equal(*seen[1].chunk(2))  # both branches read those of the whole prompt
    assert torch.equal(seen[2], seen[1]) and not torch.equal(seen[3], seen[2])  # Heun's second call carries nothing


def test_resolution_token_says_the_original_size():
    pipe, seen = with_transformer(resolution_token=True), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["resolution"].tolist()), with_kwargs=True
    )
    run(pipe)
    run(pipe, original_size=(360, 640))
    assert seen[0] == [16, 16] and seen[-1] == [360, 640]


def test_a_generator_with_a_pixel_path_sees_the_references():
    pipe, seen = with_transformer(reference_patch_size=4), []
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    run(pipe, ["a <image_1> on <image_2>", "a <image_1>"], images=[[RED, BLUE], [BLUE]], generator=None)
    images, mask = seen[0]["reference_images"], seen[0]["reference_mask"]
    assert images.shape == (4, 2, 3, 16, 16)
    assert sorted(mask.tolist()) == [[False, False], [False, False], [True, False], [True, True]]
    row = mask.tolist().index([True, False])
    torch.testing.assert_close(images[row, 0, :, 3, 3], torch.tensor([-1.0, -1.0, 1.0]))
    assert run(pipe).isfinite().all()


# ---------------------------------------------------------------- LoRA
def test_lora_layers_load_scale_fuse_and_unload(tiny_pipeline, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    plain = run(tiny_pipeline)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    tiny_pipeline.transformer.add_adapter(config)
    for name, weight in tiny_pipeline.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=seeded(3))
    trained = run(tiny_pipeline)
    assert (trained - plain).abs().max() > 1e-3
    VIMIPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(tiny_pipeline.transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )

    pipe = VIMIPipeline(**build_tiny_components())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path, adapter_name="dog")
    torch.testing.assert_close(run(pipe), trained, atol=1e-5, rtol=0)
    assert pipe.get_active_adapters() == ["dog"]
    half = run(pipe, attention_kwargs={"scale": 0.5})
    assert (half - trained).abs().max() > 1e-4
    torch.testing.assert_close(run(pipe, attention_kwargs={"scale": 0.0}), plain, atol=1e-5, rtol=0)
    pipe.set_adapters("dog", 0.5)
    torch.testing.assert_close(run(pipe), half, atol=1e-5, rtol=0)
    pipe.set_adapters("dog", 1.0)
    pipe.fuse_lora()
    torch.testing.assert_close(run(pipe), trained, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), plain, atol=1e-3, rtol=0)  # fusing and back has rounded


def test_pickled_lora_layers_are_read_only_when_named(tiny_pipeline, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    tiny_pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    layers = get_peft_model_state_dict(tiny_pipeline.transformer)
    VIMIPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, safe_serialization=False)
    assert VIMIPipeline.lora_state_dict(tmp_path / "pytorch_lora_weights.bin").keys()
    with pytest.raises(OSError):
        VIMIPipeline.lora_state_dict(tmp_path)


# ---------------------------------------------------------------- step caches
@pytest.mark.parametrize("negative_prompt", [None, "a red ball"], ids=["padded", "of one length"])
@pytest.mark.parametrize("self_conditioning", [False, True])
def test_faster_cache_leaves_out_unconditional_branches(self_conditioning, negative_prompt):
    pipe, sizes = with_transformer(self_conditioning=self_conditioning), []
    pipe.transformer.patch_embed.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    arguments = {"num_inference_steps": 4, "negative_prompt": negative_prompt}
    exact = run(pipe, **arguments)
    config = FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-2, 2),
        unconditional_batch_timestep_skip_range=(-2, 2),
        unconditional_batch_skip_range=2,
        current_timestep_callback=lambda: pipe.current_timestep,
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCFHW",
    )
    names = config._unconditional_conditional_input_kwargs_identifiers
    config._unconditional_conditional_input_kwargs_identifiers = [*names, "previous_latents"]
    pipe.transformer.enable_cache(config)
    cached = run(pipe, **arguments)
    assert sizes == [2] * 7 + [2, 1, 2, 1, 2, 1, 2]
    assert cached.isfinite().all() and not torch.equal(cached, exact)
    pipe.transformer.disable_cache()
    assert torch.equal(run(pipe, **arguments), exact)
