"""Offloading and casting of whole pipelines. On a CPU the hooks do all but the copying; copies are tested on a GPU."""

import pytest
import torch

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline
from vimi_diffusers.vimi.tiny import build_tiny_components


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def build(num_layers=2):
    pipe = VIMIPipeline(**build_tiny_components(num_layers))
    pipe.scheduler = EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0, solver="euler")  # amplifies no rounding
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **arguments):
    generator = torch.Generator().manual_seed(0)  # on the CPU, whatever the device
    arguments = {"num_inference_steps": 3, "generator": generator, "output_type": "pt", **arguments}
    return pipe("a red ball", **arguments).frames.cpu()


def models(pipe):
    return {"text_encoder": pipe.text_encoder, "transformer": pipe.transformer}


def devices(module):
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.gpu
def test_a_gpu_makes_the_video_of_the_cpu():
    expected = run(build())
    pipe = build().to("cuda")
    assert pipe.device.type == pipe._execution_device.type == "cuda"
    torch.testing.assert_close(run(pipe), expected, atol=1e-3, rtol=0)
    on_device = run(pipe, generator=torch.Generator("cuda").manual_seed(0))
    again = run(pipe, generator=torch.Generator("cuda").manual_seed(0))
    torch.testing.assert_close(on_device, again, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", ["cuda", "balanced"])
def test_device_map_over_gpus(tiny_checkpoint, device_map):
    expected = run(build(1))
    pipe = VIMIPipeline.from_pretrained(tiny_checkpoint, device_map=device_map)
    pipe.scheduler = build().scheduler
    assert devices(pipe.transformer) == devices(pipe.text_encoder) == {"cuda"}
    torch.testing.assert_close(run(pipe), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_model_offload_loads_one_model_at_a_time(device):
    expected, pipe, seen = run(build()), build(), []
    pipe.enable_model_cpu_offload(device=device)
    hooks = {name: model._hf_hook for name, model in models(pipe).items()}
    assert [hook.model for hook in pipe._all_hooks] == list(models(pipe).values())
    assert hooks["transformer"].prev_module_hook.model is pipe.text_encoder
    for name, model in models(pipe).items():
        model.register_forward_hook(
            lambda *_, name=name: seen.append((name, {other: devices(each) for other, each in models(pipe).items()}))
        )
    for _ in range(2):
        seen.clear()
        torch.testing.assert_close(run(pipe), expected, atol=1e-3 if device == "cuda" else 0, rtol=0)
        assert [name for name, _ in seen] == 2 * ["text_encoder"] + 3 * ["transformer"]
        assert all(where[name] == {device} for name, where in seen)
        assert seen[-1][1]["text_encoder"] == {"cpu"}
    assert devices(pipe.text_encoder) == devices(pipe.transformer) == {"cpu"}  # nothing stays behind


def offload_every_layer(pipe, device):
    if device == "cuda":
        return pipe.enable_sequential_cpu_offload(device=device)
    from accelerate import cpu_offload  # what it does; the method itself asks for a GPU

    for model in models(pipe).values():
        cpu_offload(model, torch.device(device), offload_buffers=len(model._parameters) > 0)


@pytest.mark.parametrize("device", DEVICES)
def test_sequential_offload_keeps_no_weights_on_the_device(device):
    expected, pipe = run(build()), build()
    offload_every_layer(pipe, device)
    for _ in range(2):
        torch.testing.assert_close(run(pipe), expected, atol=1e-3 if device == "cuda" else 0, rtol=0)
        for model in models(pipe).values():
            assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert pipe._execution_device.type == device


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "kind", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload_of_a_pipeline(device, kind):
    expected, pipe = run(build()), build()
    streams = {"use_stream": True, "record_stream": True} if device == "cuda" else {}
    pipe.enable_group_offload(torch.device(device), **kind, **streams)
    for _ in range(2):
        torch.testing.assert_close(run(pipe), expected, atol=1e-3 if device == "cuda" else 0, rtol=0)
    assert devices(pipe.transformer.transformer_blocks[0]) == {"cpu"}
    with pytest.raises(ValueError, match="components with group offloading enabled"):
        pipe.enable_model_cpu_offload(device=device)


def test_group_offload_of_some_models():
    expected, pipe = run(build()), build()
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", exclude_modules=["text_encoder"])
    assert any(hasattr(module, "_diffusers_hook") for module in pipe.transformer.modules())
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.text_encoder.modules())
    assert torch.equal(run(pipe), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_layerwise_casting_in_a_pipeline(device):
    expected, pipe = run(build()), build().to(device)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    kept = pipe.transformer.transformer_blocks[0].write.attn.to_q.weight
    frames = run(pipe)
    assert kept.dtype == torch.float8_e4m3fn and pipe.transformer.dtype == torch.float32
    assert 0 < (frames - expected).abs().mean() < 0.02


def test_hooks_can_be_removed():
    expected, pipe = run(build()), build()
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.remove_all_hooks()
    assert not hasattr(pipe.transformer, "_hf_hook") and torch.equal(run(pipe), expected)
