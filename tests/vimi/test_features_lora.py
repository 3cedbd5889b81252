"""LoRA of both pipelines beyond one adapter."""

import pytest
import torch

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline, VIMITransformer3DModel, VIMIUpscalePipeline
from vimi_diffusers.vimi.tiny import build_tiny_components


peft = pytest.importorskip("peft")


def base():
    pipe = VIMIPipeline(**build_tiny_components())
    pipe.scheduler = EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0, solver="euler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def upscaler():
    components = build_tiny_components()
    config = {k: v for k, v in components["transformer"].config.items() if not k.startswith("_")}
    config |= {"in_channels": 6, "out_channels": 3, "noise_level_token": True, "input_skip": False}
    torch.manual_seed(0)
    components["transformer"] = VIMITransformer3DModel(**config | {"height": 32, "width": 32}).eval()
    torch.nn.init.normal_(components["transformer"].proj_out.weight, std=0.1)
    components["scheduler"] = EDMVideoScheduler(sigma_in=4.0, sigma_max=20.0, solver="euler")
    del components["vae"]
    pipe = VIMIUpscalePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **arguments):
    generator = torch.Generator().manual_seed(0)
    if isinstance(pipe, VIMIUpscalePipeline):
        arguments["video"] = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    return pipe(prompt="a red ball", num_inference_steps=2, generator=generator, output_type="pt", **arguments).frames


def train(build, folder, seed, **options):
    """The video with an adapter, which is saved into `folder`."""
    pipe = build()
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False, **options)
    pipe.transformer.add_adapter(config)
    type(pipe).save_lora_weights(
        folder,
        transformer_lora_layers=peft.get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    return run(pipe)


def close(one, other):
    return torch.allclose(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", [base, upscaler])
def test_several_adapters_are_mixed_switched_and_deleted(build, tmp_path):
    plain, first, second = run(build()), train(build, tmp_path / "a", 1), train(build, tmp_path / "b", 2)
    assert not any(close(one, other) for one, other in ((plain, first), (plain, second), (first, second)))
    pipe = build()
    pipe.load_lora_weights(tmp_path / "a", adapter_name="a")
    pipe.load_lora_weights(tmp_path / "b", adapter_name="b")
    assert pipe.get_list_adapters() == {"transformer": ["a", "b"]}
    for names, weights, expected in (("a", None, first), ("b", None, second), (["a", "b"], [1.0, 0.0], first)):
        pipe.set_adapters(names, weights)
        assert close(run(pipe), expected)
    pipe.set_adapters(["a", "b"], [0.7, 0.7])
    mixed = run(pipe)
    assert not close(mixed, first) and not close(mixed, second)
    pipe.disable_lora()
    assert close(run(pipe), plain)
    pipe.enable_lora()
    assert close(run(pipe), mixed)
    pipe.delete_adapters("a")
    pipe.set_adapters("b")
    assert close(run(pipe), second)
    pipe.unload_lora_weights()
    assert close(run(pipe), plain) and pipe.get_list_adapters() == {}


def test_an_adapter_takes_the_place_of_another(tmp_path):
    train(base, tmp_path / "a", 1)
    expected, pipe = train(base, tmp_path / "b", 2), base()
    pipe.load_lora_weights(tmp_path / "a", adapter_name="it")
    pipe.load_lora_weights(tmp_path / "b", adapter_name="it", hotswap=True)
    assert pipe.get_list_adapters() == {"transformer": ["it"]} and close(run(pipe), expected)


def test_dora(tmp_path):
    expected, pipe = train(base, tmp_path, 1, use_dora=True), base()
    pipe.load_lora_weights(tmp_path)
    assert any("lora_magnitude_vector" in name for name, _ in pipe.transformer.named_parameters())
    assert close(run(pipe), expected)


@pytest.mark.gpu
def test_adapters_are_loaded_into_an_offloaded_pipeline(tmp_path):
    expected, pipe = train(base, tmp_path, 1), base()
    pipe.enable_model_cpu_offload()
    pipe.load_lora_weights(tmp_path)
    assert hasattr(pipe.transformer, "_hf_hook")
    torch.testing.assert_close(run(pipe).cpu(), expected, atol=1e-3, rtol=0)
