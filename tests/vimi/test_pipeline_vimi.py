import inspect

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDXLCFGCutoffCallback
from diffusers.utils.source_code_parsing_utils import ReturnNameVisitor
from PIL import Image

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline, VIMITransformer3DModel
from vimi_diffusers.vimi.tiny import build_tiny_components


RED, BLUE = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGBA", (30, 20), (0, 0, 255, 128))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a red ball", seed=0, **arguments):
    arguments = {"num_inference_steps": 2, "generator": seeded(seed), "output_type": "pt", **arguments}
    return pipe(prompt, **arguments).frames


@pytest.fixture
def stable_pipeline(tiny_pipeline):
    """Two Heun steps from sigma 80 to 0.002 amplify rounding by 40; Euler steps do not, so they can be compared."""
    tiny_pipeline.scheduler = EDMVideoScheduler(sigma_in=2.0, solver="euler")
    return tiny_pipeline


# ---------------------------------------------------------------- tasks, batches, outputs
@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a red ball"},
        {"prompt": "a red ball", "context": [("A red ball", RED)]},
        {"prompt": "a <image_1> on a <image_2>", "images": [RED, BLUE]},
        {"prompt": "a red ball", "images": [RED], "task": "prediction"},
    ],
)
def test_every_task_makes_a_video(tiny_pipeline, arguments):
    frames = run(tiny_pipeline, **arguments, output_type="np")
    assert frames.shape == (1, 4, 16, 16, 3) and frames.dtype == np.float32
    assert np.isfinite(frames).all() and 0 <= frames.min() <= frames.max() <= 1 and frames.std() > 0
    np.testing.assert_array_equal(frames, run(tiny_pipeline, **arguments, output_type="np"))


def test_prompt_images_context_and_task_change_the_video(tiny_pipeline):
    outputs = [
        run(tiny_pipeline),
        run(tiny_pipeline, "a blue cube"),
        run(tiny_pipeline, context=[("A red ball", RED)]),
        run(tiny_pipeline, context=[("A red ball", BLUE)]),
        run(tiny_pipeline, images=[RED], task="prediction"),
        run(tiny_pipeline, images=[BLUE], task="prediction"),
        run(tiny_pipeline, "a <image_1>", images=[RED]),
        run(tiny_pipeline, seed=1),
    ]
    for index, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-4 for other in outputs[:index])


def test_a_ragged_batch_equals_its_singles(stable_pipeline):
    prompts = ["a <image_1> on a <image_2>", "a red ball", "a blue cube", "the cat"]
    images = [[RED, BLUE], None, [BLUE], []]
    task = [None, None, "prediction", None]
    context = [None, [("A red ball", RED)], None, []]
    arguments = {"num_inference_steps": 2}
    batch = run(
        stable_pipeline, prompts, images=images, task=task, context=context,
        **{**arguments, "generator": [seeded(seed) for seed in range(4)]},
    )  # fmt: skip
    for index, prompt in enumerate(prompts):
        single = run(
            stable_pipeline,
            prompt,
            images=images[index],
            task=task[index],
            context=context[index],
            seed=index,
            **arguments,
        )
        torch.testing.assert_close(batch[index], single[0], atol=1e-4, rtol=0)


def test_cut_prompts_and_a_very_long_one_do_not_change_the_first(stable_pipeline):
    prompt = "a <image_1> and a blue cube on a <image_2>"
    prompts = [prompt, prompt[: len(prompt) // 2], 100 * "very long"]
    images = [[RED, BLUE]] * 3
    batch = run(stable_pipeline, prompts, images=images, generator=[seeded(seed) for seed in range(3)])
    single = run(stable_pipeline, prompt, images=images[0])
    assert len(batch) == 3
    torch.testing.assert_close(batch[0], single[0], atol=1e-4, rtol=0)


def test_several_videos_for_each_prompt(stable_pipeline):
    generators = [seeded(seed) for seed in (0, 1, 2, 3)]
    both = run(stable_pipeline, ["a red ball", "the cat"], num_videos_per_prompt=2, generator=generators)
    assert both.shape == (4, 4, 3, 16, 16)
    torch.testing.assert_close(both[1], run(stable_pipeline, seed=1)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(both[2], run(stable_pipeline, "the cat", seed=2)[0], atol=1e-4, rtol=0)


def test_output_types_agree(tiny_pipeline):
    tensor = run(tiny_pipeline)
    assert tensor.shape == (1, 4, 3, 16, 16)
    array = run(tiny_pipeline, output_type="np")
    np.testing.assert_array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    pictures = run(tiny_pipeline, output_type="pil")
    assert len(pictures) == 1 and len(pictures[0]) == 4
    np.testing.assert_array_equal(np.asarray(pictures[0][3]), (array[0, 3] * 255).round().astype("uint8"))
    latents = run(tiny_pipeline, output_type="latent")
    assert latents.shape == (1, 3, 4, 16, 16) and latents.dtype == torch.float32
    torch.testing.assert_close((latents / 2 + 0.5).clamp(0, 1).transpose(1, 2), tensor)
    as_tuple = tiny_pipeline(
        "a red ball", num_inference_steps=2, generator=seeded(), output_type="pt", return_dict=False
    )
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], tensor)


def test_latents_and_other_lengths(tiny_pipeline):
    noise = torch.randn(1, 3, 4, 16, 16, generator=seeded())
    torch.testing.assert_close(run(tiny_pipeline, latents=noise), run(tiny_pipeline))
    assert run(tiny_pipeline, num_frames=8).shape == (1, 8, 3, 16, 16)
    assert (run(tiny_pipeline, fps=24.0) - run(tiny_pipeline)).abs().max() > 1e-5


# ---------------------------------------------------------------- prompts to embeddings
def test_encode_prompt_returns_what_call_takes(tiny_pipeline):
    visitor = ReturnNameVisitor()
    visitor.visit(visitor.get_ast_tree(cls=VIMIPipeline))
    names = visitor.return_names
    assert names == [
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    ]
    assert set(names) <= set(inspect.signature(VIMIPipeline.__call__).parameters)

    components = build_tiny_components()
    text = {name: value if "text" in name else None for name, value in components.items()}
    rest = {name: None if "text" in name else value for name, value in components.items()}
    with torch.no_grad():
        encoded = VIMIPipeline(**text).encode_prompt("a <image_1>", images=[RED])
    assert encoded[0].shape == encoded[1].shape and encoded[2].dtype == encoded[3].dtype == torch.bool
    without_text = VIMIPipeline(**rest)
    without_text.set_progress_bar_config(disable=True)
    torch.testing.assert_close(
        run(without_text, None, **dict(zip(names, encoded))), run(tiny_pipeline, "a <image_1>", images=[RED])
    )


def test_embeddings_of_different_lengths_are_padded(stable_pipeline):
    with torch.no_grad():
        positive = stable_pipeline.encode_prompt("a red ball", do_classifier_free_guidance=False)
        negative = stable_pipeline.encode_prompt("", do_classifier_free_guidance=False)
    assert positive[1] is None and positive[3] is None
    assert negative[0].shape[1] != positive[0].shape[1]
    guided = run(stable_pipeline, None, prompt_embeds=positive[0], negative_prompt_embeds=negative[0])
    expected = run(
        stable_pipeline, None, prompt_embeds=positive[0], negative_prompt_embeds=negative[0],
        prompt_attention_mask=positive[2], negative_prompt_attention_mask=negative[2],
    )  # fmt: skip
    assert torch.equal(guided, expected)
    twice = run(
        stable_pipeline, None, prompt_embeds=positive[0], num_videos_per_prompt=2, generator=[seeded(), seeded(1)]
    )
    torch.testing.assert_close(twice[:1], run(stable_pipeline), atol=1e-4, rtol=0)


def test_masked_tokens_do_not_count(stable_pipeline):
    with torch.no_grad():
        embeds, _, mask, _ = stable_pipeline.encode_prompt("a red ball", do_classifier_free_guidance=False)
    padded = torch.cat([embeds, 100 * torch.ones(1, 5, embeds.shape[2])], dim=1)
    mask = torch.cat([mask, torch.zeros(1, 5, dtype=torch.bool)], dim=1)
    short = run(stable_pipeline, None, prompt_embeds=embeds, guidance_scale=1.0)
    long = run(stable_pipeline, None, prompt_embeds=padded, prompt_attention_mask=mask, guidance_scale=1.0)
    torch.testing.assert_close(short, long, atol=1e-4, rtol=0)


def test_prompt_and_conditioner_read_the_documented_layout(tiny_pipeline):
    seen = []
    processor = tiny_pipeline.text_processor
    process = tiny_pipeline._process

    def spy(texts, images):
        seen.append((texts, images))
        return process(texts, images)

    tiny_pipeline._process = spy
    run(tiny_pipeline, "a <image_2> on a <image_1>", images=[RED, BLUE])
    texts, images = next((texts, images) for texts, images in seen if images[0])
    assert processor.image_token == "<image>"
    assert texts == ["Generate a video with the text and image. a <image> on a <image>"]
    assert [image.getpixel((0, 0)) for image in images[0]] == [(127, 127, 255), (255, 0, 0)]
    assert seen[-1] == ([""], [[]])  # the unconditional prompt


def test_long_prompts_lose_words_but_no_image(tiny_pipeline, caplog):
    with torch.no_grad():
        whole = tiny_pipeline.encode_prompt("a <image_1> and a <image_2> and the cat sits", images=[RED, BLUE])[0]
        length = whole.shape[1] - 4
        for limit in (length, length - 12):
            cut = tiny_pipeline.encode_prompt(
                "a <image_1> and a <image_2> and the cat sits", images=[RED, BLUE], max_sequence_length=limit
            )[0]
            assert cut.shape[1] <= limit
    assert torch.allclose(cut[0, :5], whole[0, :5], atol=1e-5)
    with pytest.raises(ValueError, match="The images alone have more than `max_sequence_length` 4 tokens"):
        tiny_pipeline.encode_prompt("a <image_1>", images=[RED], max_sequence_length=4)


def test_images_by_path(tiny_pipeline, tmp_path):
    BLUE.save(tmp_path / "blue.png")
    by_path = run(tiny_pipeline, "a <image_1>", images=[str(tmp_path / "blue.png")])
    assert torch.equal(by_path, run(tiny_pipeline, "a <image_1>", images=[BLUE]))


# ---------------------------------------------------------------- guidance and the loop
def test_guidance_extrapolates_from_the_negative_prompt(stable_pipeline):
    plain = run(stable_pipeline, guidance_scale=1.0)
    assert torch.equal(plain, run(stable_pipeline, guidance_scale=0.0))
    itself = run(stable_pipeline, negative_prompt="a red ball", guidance_scale=3.0)
    torch.testing.assert_close(itself, plain, atol=1e-4, rtol=0)
    assert (run(stable_pipeline, guidance_scale=3.0) - plain).abs().max() > 1e-3
    negative = run(stable_pipeline, negative_prompt="the cat", guidance_scale=3.0)
    assert (negative - run(stable_pipeline, guidance_scale=3.0)).abs().max() > 1e-4
    both = run(
        stable_pipeline, ["a red ball"] * 2, negative_prompt=["the cat", ""], guidance_scale=3.0,
        generator=[seeded(), seeded()],
    )  # fmt: skip
    torch.testing.assert_close(both[0], negative[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1], run(stable_pipeline, guidance_scale=3.0)[0], atol=1e-4, rtol=0)


def test_guidance_is_one_model_call_for_each_timestep(tiny_pipeline):
    batches = []
    tiny_pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    run(tiny_pipeline, num_inference_steps=3)
    assert batches == [2] * 5 and tiny_pipeline.num_timesteps == 5  # Heun: 2N - 1
    batches.clear()
    run(tiny_pipeline, num_inference_steps=3, guidance_scale=1.0)
    assert batches == [1] * 5


def test_pipeline_integrates_the_edm_ode():
    # With F = 0 the estimate is D = c_skip * x_sigma, and the whole run a product of known factors.
    class Zero(VIMITransformer3DModel):
        def forward(self, hidden_states, **kwargs):
            return (torch.zeros_like(hidden_states),)

    components = build_tiny_components()
    components["transformer"] = Zero.from_config(components["transformer"].config)
    components["scheduler"] = EDMVideoScheduler(solver="euler", sigma_in=2.0)
    pipe = VIMIPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 3, 4, 16, 16, generator=seeded())
    output = run(pipe, latents=noise, num_inference_steps=3, output_type="latent")
    top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = [(top + i / 2 * (bottom - top)) ** 7 for i in range(3)] + [0.0]
    scale = sigmas[0]
    for sigma, target in zip(sigmas[:-1], sigmas[1:]):
        estimate = 2 / (1 + 2 * sigma**2) * scale  # D in data units
        scale = scale + (target - sigma) * (scale - estimate / 2) / sigma if target else estimate
    torch.testing.assert_close(output, noise * scale, atol=1e-4, rtol=1e-4)


def test_callbacks_see_and_change_the_tensors(tiny_pipeline):
    names, steps = tiny_pipeline._callback_tensor_inputs, []

    def callback(pipe, step, timestep, tensors):
        assert set(tensors) == set(names)
        assert tensors["prompt_embeds"].shape == tensors["negative_prompt_embeds"].shape
        assert pipe.current_timestep == timestep
        steps.append(step)
        pipe._guidance_scale += 1.0
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    output = run(
        tiny_pipeline, guidance_scale=2.0, output_type="latent",
        callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    assert steps == [0, 1, 2] and not output.any()
    assert tiny_pipeline.guidance_scale == 2.0 + tiny_pipeline.num_timesteps
    assert tiny_pipeline.current_timestep is None


def test_callback_may_switch_guidance_on_or_off(tiny_pipeline):
    def switch(value):
        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale = value
            return tensors

        return callback

    assert run(tiny_pipeline, guidance_scale=1.0, callback_on_step_end=switch(5.0)).isfinite().all()
    off = run(tiny_pipeline, guidance_scale=3.0, callback_on_step_end=switch(1.0))
    assert (off - run(tiny_pipeline, guidance_scale=3.0)).abs().max() > 1e-4


def test_callback_objects_bring_their_own_tensor_names(tiny_pipeline):
    callback = SDXLCFGCutoffCallback(cutoff_step_ratio=0.0)
    with pytest.raises(ValueError, match=r"must be among .*'latents'.*'add_text_embeds'"):
        run(tiny_pipeline, callback_on_step_end=callback)


def test_interrupt_stops_the_loop(tiny_pipeline):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return tensors

    run(tiny_pipeline, callback_on_step_end=callback)
    assert steps == [0] and tiny_pipeline.interrupt
    run(tiny_pipeline)
    assert not tiny_pipeline.interrupt


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_progress_bar_counts_inference_steps(tiny_pipeline, solver, monkeypatch):
    class Bar:
        count = 0

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def update(self):
            self.count += 1

    bar = Bar()
    tiny_pipeline.scheduler = EDMVideoScheduler(solver=solver)
    monkeypatch.setattr(tiny_pipeline, "progress_bar", lambda total: bar)
    run(tiny_pipeline, num_inference_steps=4)
    assert bar.count == 4


def test_half_precision_weights_keep_the_state_in_fp32(tiny_pipeline):
    tiny_pipeline.to(dtype=torch.bfloat16)
    dtypes = []

    def callback(pipe, step, timestep, tensors):
        dtypes.append((tensors["latents"].dtype, tensors["prompt_embeds"].dtype))
        return tensors

    frames = run(
        tiny_pipeline, "a <image_1>", images=[RED], callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )  # fmt: skip
    assert dtypes == [(torch.float32, torch.bfloat16)] * 3 and frames.isfinite().all()


# ---------------------------------------------------------------- components
def test_components_are_those_of_the_constructor(tiny_pipeline):
    constructor = set(inspect.signature(VIMIPipeline.__init__).parameters) - {"self", "checkpoint_version"}
    assert set(tiny_pipeline.components) == constructor
    assert set(build_tiny_components()) == constructor
    again = VIMIPipeline.from_pipe(tiny_pipeline)
    assert again.transformer is tiny_pipeline.transformer
    assert again.config.checkpoint_version == 1


def test_offload_order_names_every_model(tiny_pipeline):
    models = {name for name, value in tiny_pipeline.components.items() if isinstance(value, torch.nn.Module)}
    assert models <= set(VIMIPipeline.model_cpu_offload_seq.split("->")) == {"text_encoder", "transformer", "vae"}


def test_latent_mode_with_a_video_autoencoder(tmp_path):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=3,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.1, 0.2, 0.3],
        latents_std=[1.0, 2.0, 0.5],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    ).eval()
    pipe = VIMIPipeline(**build_tiny_components() | {"vae": vae})
    pipe.set_progress_bar_config(disable=True)
    frames = run(pipe, guidance_scale=1.0)
    assert frames.shape == (1, 7, 3, 32, 32)  # 4 latent frames of 16x16
    latents = run(pipe, guidance_scale=1.0, output_type="latent")
    assert latents.shape == (1, 3, 4, 16, 16)
    std, mean = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.1, 0.2, 0.3])
    with torch.no_grad():
        decoded = vae.decode(latents * std.view(1, 3, 1, 1, 1) + mean.view(1, 3, 1, 1, 1)).sample
    torch.testing.assert_close(frames, (decoded / 2 + 0.5).clamp(0, 1).transpose(1, 2))
    for arguments, message in (({"num_frames": 6}, "multiple of 2, plus one"), ({"height": 33}, "multiples of 2")):
        with pytest.raises(ValueError, match=message):
            run(pipe, **arguments)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": None}, "`prompt` must be a string"),
        ({"prompt": "a <image_2>", "images": [RED]}, "Tag <image_2> has no image"),
        ({"prompt": "a <image_1>", "images": [RED, BLUE]}, "Image 2 of 2 has no tag"),
        ({"prompt": "a ball", "images": [RED]}, "no tag in the prompt"),
        ({"task": "movie"}, "Unknown task 'movie'"),
        ({"task": "prediction"}, "exactly one image"),
        ({"images": [RED], "task": "text-to-video"}, "takes no images"),
        ({"prompt": "a <image_1>", "images": ["missing.png"]}, "Cannot read image 'missing.png': no such file"),
        ({"height": 20}, "`height` 20 does not fit the model"),
        ({"width": 24, "height": 20}, "`height` 20 does not fit"),
        ({"num_frames": 0}, "`num_frames` 0 does not fit"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be an integer of at least 1, got 0"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` must be an integer of at least 1"),
        ({"fps": 0}, "`fps` must be positive, got 0"),
        ({"fps": float("nan")}, "`fps` must be positive, got nan"),
        ({"output_type": "mp4"}, "Unknown `output_type` 'mp4'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"must be among .*got \['noise'\]"),
        ({"prompt_embeds": torch.zeros(1, 2, 32)}, "pass one or the other"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 32), "images": [RED]}, "pass one or the other"),
        ({"negative_prompt": ["a", "b"]}, "`negative_prompt` holds 2 texts for 1 prompts"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 2, 32)}, "pass one or the other"),
        ({"negative_prompt_embeds": torch.zeros(2, 2, 32)}, "holds 2 rows for 1 prompts"),
        ({"prompt_attention_mask": torch.ones(1, 3)}, r"`prompt_attention_mask` has shape \(1, 3\)"),
        ({"latents": torch.zeros(1, 3, 4, 16, 8)}, r"16, 8\), this call needs \(1, 3, 4, 16, 16\)"),
        ({"generator": [seeded(), seeded()]}, "holds 2 generators for 1 videos"),
        ({"max_sequence_length": 1, "prompt": "a <image_1>", "images": [RED]}, "The images alone"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_any_model_runs(tiny_pipeline, arguments, message):
    def fail(*args, **kwargs):
        raise AssertionError("a model ran")

    tiny_pipeline.transformer.forward = fail
    tiny_pipeline.text_encoder.forward = fail
    with pytest.raises(ValueError, match=message) as error:
        run(tiny_pipeline, **arguments)
    assert "\n" not in str(error.value)


def test_guidance_without_text_encoder_needs_negative_embeddings():
    components = build_tiny_components()
    pipe = VIMIPipeline(**{name: None if "text" in name else value for name, value in components.items()})
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.zeros(1, 2, 32)
    with pytest.raises(ValueError, match="needs `negative_prompt_embeds`.*guidance_scale=1"):
        run(pipe, None, prompt_embeds=embeds)
    with pytest.raises(ValueError, match="needs `text_encoder` and `text_processor`"):
        run(pipe)
    assert run(pipe, None, prompt_embeds=embeds, guidance_scale=1.0).isfinite().all()
