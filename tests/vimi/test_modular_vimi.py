"""VIMI's modular blocks against the standard pipeline, bit for bit."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import ComponentsManager, ModularPipeline
from diffusers.guiders import ClassifierFreeGuidance, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from PIL import Image

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline
from vimi_diffusers.vimi import VIMIBlocks, VIMIGuidance, VIMIModularPipeline
from vimi_diffusers.vimi.modular_vimi import VIMILoopAfterDenoiser
from vimi_diffusers.vimi.tiny import build_tiny_components


RED, BLUE = Image.new("RGB", (20, 16), "red"), Image.new("RGB", (16, 16), "blue")
TASKS = {
    "text-to-video": {"prompt": "a red ball"},
    "text-to-video with pairs": {"prompt": "a red ball", "context": [("a ball", RED)], "negative_prompt": "a cube"},
    "subject": {"prompt": "a <image_1> and a <image_2>", "images": [RED, BLUE]},
    "prediction": {"prompt": "a red ball", "images": [BLUE], "task": "prediction"},
    "batch": {
        "prompt": ["a <image>", "a red ball", "a <image> and a <image>"],
        "images": [[RED], [], [BLUE, RED]],
        "num_videos_per_prompt": 2,
        "negative_prompt": ["", "a cube", ""],
    },
}


@pytest.fixture
def modular(tiny_checkpoint):
    pipe = VIMIBlocks().init_pipeline(tiny_checkpoint)
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, seed=0, **arguments):
    arguments = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(seed), **arguments}
    if isinstance(pipe, ModularPipeline):
        return pipe(**arguments, output="videos")
    return pipe(**arguments).frames


@pytest.mark.parametrize("arguments", TASKS.values(), ids=TASKS.keys())
def test_videos_equal_the_standard_pipeline(modular, tiny_pipeline, arguments):
    assert type(modular) is VIMIModularPipeline
    expected = run(tiny_pipeline, **arguments)
    np.testing.assert_array_equal(run(modular, **arguments), expected)
    assert not np.array_equal(run(modular, seed=1, **arguments), expected)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "latent"])
def test_output_types(modular, tiny_pipeline, output_type):
    expected = run(tiny_pipeline, prompt="a red ball", output_type=output_type)
    videos = run(modular, prompt="a red ball", output_type=output_type)
    assert type(videos) is type(expected)
    if output_type == "pil":
        videos, expected = ([np.asarray(frame) for frame in each[0]] for each in (videos, expected))
    np.testing.assert_array_equal(videos, expected)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"solver": "euler"},
        {"solver": "heun"},
        {"solver": "dpmsolver++"},
        {"solver": "heun", "s_churn": 2.0, "s_noise": 1.01},
    ],
    ids=["euler", "heun", "dpmsolver++", "churn"],
)
def test_schedulers(modular, tiny_pipeline, scheduler):
    config = EDMVideoScheduler.from_config(tiny_pipeline.scheduler.config, **scheduler)
    assert {name: config.config[name] for name in scheduler} == scheduler
    tiny_pipeline.scheduler = config
    modular.update_components(scheduler=copy.deepcopy(config))
    for arguments in ({}, {"sigmas": [10.0, 2.0, 0.5], "height": 16, "width": 16, "num_frames": 4, "fps": 12.0}):
        expected = run(tiny_pipeline, prompt="a red ball", **arguments)
        np.testing.assert_array_equal(run(modular, prompt="a red ball", **arguments), expected)


def test_latents_and_embeddings(modular, tiny_pipeline):
    latents = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
    embeds = dict(zip(names, tiny_pipeline.encode_prompt("a red ball", negative_prompt="a cube")))
    expected = run(tiny_pipeline, **embeds, latents=latents)
    np.testing.assert_array_equal(run(modular, **embeds, latents=latents), expected)
    np.testing.assert_array_equal(
        run(modular, prompt="a red ball", negative_prompt="a cube", latents=latents), expected
    )


@pytest.mark.parametrize(
    "guider, scales",
    [
        (VIMIGuidance(guidance_scale=1.0), {"guidance_scale": 1.0}),
        (VIMIGuidance(guidance_scale=7.0), {"guidance_scale": 7.0}),
        (
            VIMIGuidance(guidance_scale=4.0, image_guidance_scale=2.0),
            {"guidance_scale": 4.0, "image_guidance_scale": 2.0},
        ),
        (ClassifierFreeGuidance(guidance_scale=7.0), {"guidance_scale": 7.0}),
        (ClassifierFreeGuidance(guidance_scale=1.0), {"guidance_scale": 1.0}),
    ],
    ids=["off", "VIMIGuidance", "two scales", "ClassifierFreeGuidance", "ClassifierFreeGuidance off"],
)
def test_guiders(modular, tiny_pipeline, guider, scales):
    modular.update_components(guider=guider)
    for _ in range(2):  # what is left of a run does not change the next
        expected = run(tiny_pipeline, **TASKS["subject"], **scales)
        np.testing.assert_allclose(run(modular, **TASKS["subject"]), expected, rtol=0, atol=5e-5)


def test_guidance_of_some_steps_and_guiders_that_change_the_model(modular):
    plain = run(modular, prompt="a red ball")
    seen = [plain]
    for guider in (
        VIMIGuidance(guidance_scale=3.0, stop=0.5),
        SkipLayerGuidance(
            guidance_scale=3.0, skip_layer_config=LayerSkipConfig(indices=[0], fqn="transformer_blocks")
        ),
    ):
        modular.update_components(guider=guider)
        first, second = run(modular, prompt="a red ball"), run(modular, prompt="a red ball")
        np.testing.assert_array_equal(first, second)
        assert not any(np.array_equal(first, other) for other in seen)
        seen.append(first)
    modular.guider.disable()
    assert not modular.requires_unconditional_embeds


def test_image_scale_needs_the_words(modular, tiny_pipeline):
    modular.update_components(guider=VIMIGuidance(guidance_scale=4.0, image_guidance_scale=2.0))
    embeds, negative, *_ = tiny_pipeline.encode_prompt("a red ball")
    with pytest.raises(ValueError, match="`image_guidance_scale` needs `prompt`"):
        modular(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": "a <image_1>"}, "Tag <image_1> has no image"),
        ({}, "`prompt`"),
        ({"prompt": "a", "height": 15}, "15"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "output_type": "mp4"}, "output_type"),
        ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, "1 generators for 2 videos"),
    ],
)
def test_bad_input_is_named_before_any_model_runs(modular, monkeypatch, arguments, message):
    def fail(*args, **kwargs):
        raise AssertionError("a model ran")

    monkeypatch.setattr(modular.text_encoder, "forward", fail)
    with pytest.raises(ValueError, match=message):
        modular(**arguments)


def test_saved_and_loaded_by_name_alone(modular, tmp_path):
    expected = run(modular, prompt="a red ball")
    modular.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    index = json.loads((tmp_path / "modular_model_index.json").read_text())
    assert index["_class_name"] == "VIMIModularPipeline" and index["_blocks_class_name"] == "VIMIBlocks"
    assert index["transformer"][:2] == ["vimi", "VIMITransformer3DModel"] and "guider" not in index
    loaded = ModularPipeline.from_pretrained(tmp_path)
    assert type(loaded) is VIMIModularPipeline and type(loaded.blocks) is VIMIBlocks
    loaded.load_components()
    assert loaded.null_component_names == ["vae"]
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(run(loaded, prompt="a red ball"), expected)


def test_modular_pipeline_from_a_standard_repository(tiny_checkpoint, caplog):
    pipe = ModularPipeline.from_pretrained(tiny_checkpoint)
    assert type(pipe) is VIMIModularPipeline
    caplog.clear()
    pipe.load_components()
    assert "Failed" not in caplog.text  # nothing is sought for `[null, null]`
    assert pipe.null_component_names == ["vae"] and type(pipe.guider) is VIMIGuidance
    pipe.unload_components("transformer")
    assert pipe.transformer is None
    pipe.load_components("transformer")
    pipe.set_progress_bar_config(disable=True)
    assert run(pipe, prompt="a red ball").shape == (1, 4, 16, 16, 3)


def test_a_saved_guider_is_loaded(tiny_pipeline, tmp_path):
    tiny_pipeline.register_modules(guider=VIMIGuidance(guidance_scale=5.0))
    tiny_pipeline.save_pretrained(tmp_path)
    pipe = VIMIBlocks().init_pipeline(tmp_path)
    assert pipe.guider is None
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    assert pipe.guider.guidance_scale == 5.0
    np.testing.assert_array_equal(run(pipe, prompt="a red ball"), run(tiny_pipeline, prompt="a red ball"))


def test_from_the_hub_with_a_components_manager(tiny_pipeline, tmp_path, monkeypatch):
    with FakeHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        tiny_pipeline.push_to_hub("user/tiny-vimi")
        manager = ComponentsManager()
        pipe = VIMIBlocks().init_pipeline("user/tiny-vimi", components_manager=manager)
        pipe.load_components(dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_array_equal(run(pipe, prompt="a red ball"), run(tiny_pipeline, prompt="a red ball"))
        assert len(manager.components) == 4
        pipe.unload_components("text_encoder")
        assert len(manager.components) == 3

        pipe.load_components("text_encoder")
        pipe.save_pretrained(
            str(tmp_path / "saved"), push_to_hub=True, repo_id="user/blocks", overwrite_modular_index=True
        )
        tags = ModelCard.load(hub.files("user/blocks")["README.md"]).data.tags
        assert "text-to-video" in tags and "text-to-image" not in tags and len(tags) == len(set(tags))
        assert type(ModularPipeline.from_pretrained("user/blocks")) is VIMIModularPipeline


def test_blocks_run_apart_and_can_be_replaced(tiny_checkpoint, modular):
    blocks = VIMIBlocks()
    encode = blocks.sub_blocks.pop("text_encoder").init_pipeline(tiny_checkpoint)
    encode.load_components()
    assert "transformer" not in encode.components
    state = encode(**TASKS["subject"])
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
    rest = blocks.init_pipeline(tiny_checkpoint)
    rest.load_components(["transformer", "scheduler"])
    rest.set_progress_bar_config(disable=True)
    expected = run(modular, **TASKS["subject"])
    np.testing.assert_array_equal(run(rest, **state.get(list(names))), expected)

    class Zero(VIMILoopAfterDenoiser):
        def __call__(self, components, block_state, i, t):
            components, block_state = super().__call__(components, block_state, i, t)
            block_state.latents = torch.zeros_like(block_state.latents)
            return components, block_state

    blocks = VIMIBlocks()
    blocks.sub_blocks["denoise"].sub_blocks["after_denoiser"] = Zero()
    pipe = blocks.init_pipeline(tiny_checkpoint)
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    assert not run(pipe, prompt="a red ball", output_type="latent").any()


def test_optional_inputs_of_the_generator():
    components = build_tiny_components()
    config = {**components["transformer"].config, "resolution_token": True, "self_conditioning": True}
    torch.manual_seed(0)
    components["transformer"] = type(components["transformer"]).from_config(config).eval()
    torch.nn.init.normal_(components["transformer"].proj_out.weight, std=0.1)
    standard = VIMIPipeline(**components)
    pipe = VIMIBlocks().init_pipeline()
    pipe.update_components(**{name: component for name, component in components.items() if component is not None})
    for each in (standard, pipe):
        each.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a red ball", "original_size": (32, 64)}
    np.testing.assert_array_equal(run(pipe, **arguments), run(standard, **arguments))


def test_every_block_is_described():
    def leaves(blocks):
        for block in blocks.sub_blocks.values():
            yield block
            yield from leaves(block)

    blocks = VIMIBlocks()
    for block in (blocks, *leaves(blocks)):
        assert isinstance(block, ModularPipelineBlocks) and block.description and block.model_name == "vimi"
        assert all(param.description for param in block.inputs if isinstance(param, InputParam))
    assert {"prompt", "images", "task", "context", "generator"} <= set(blocks.input_names)
    assert [param.name for param in blocks.outputs] == ["videos"] and "TODO" not in blocks.doc
