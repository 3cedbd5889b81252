"""Wrapping, naming, placing, quantising and adapting the multimodal model inside the conditioner."""

import copy

import peft
import pytest
import torch
from mllm_families import FAMILIES, Family, build, mllm_config
from PIL import Image
from transformers import AutoModelForImageTextToText, BertConfig, LlamaConfig, LlamaForCausalLM, LlavaModel

from vimi_diffusers.vimi.mllm_conditioner import MLLMConditioner


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return Family(request.param)


@pytest.fixture(scope="module")
def conditioner(family):
    return build(family.name)


@pytest.fixture(scope="module")
def batch(family):
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    return family.encode(["a IMG red IMG", "a blue cube", "IMG"], [[red, blue], [], [blue]])


@pytest.fixture(scope="module")
def folder(conditioner, tmp_path_factory):
    path = tmp_path_factory.mktemp("mllm")
    conditioner.mllm.save_pretrained(path)
    return path


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs)


def with_connector_of(model, conditioner):
    model.norm.load_state_dict(conditioner.norm.state_dict())
    model.proj.load_state_dict(conditioner.proj.state_dict())
    return model


def test_a_given_model_is_held_not_copied(family, conditioner):
    mllm = copy.deepcopy(conditioner.mllm)
    mllm.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pointers = {name: weight.data_ptr() for name, weight in mllm.named_parameters()}
    values = {name: weight.clone() for name, weight in mllm.state_dict().items()}
    wrapped = MLLMConditioner.from_mllm(mllm, output_dim=12, hidden_layer=-2, num_queries=3)
    assert wrapped.mllm is mllm and not wrapped.training
    assert {name: weight.data_ptr() for name, weight in mllm.named_parameters()} == pointers
    assert all(torch.equal(values[name], weight) for name, weight in mllm.state_dict().items())
    assert (wrapped.config.output_dim, wrapped.config.hidden_layer, wrapped.config.num_queries) == (12, -2, 3)
    assert torch.equal(wrapped.norm.weight, torch.ones(32)) and not wrapped.proj.bias.any()
    assert wrapped.proj.weight.std() > 0.1 and wrapped.resampler.queries.std() > 0.01


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_given_model_keeps_its_attention(family, conditioner, implementation):
    mllm = copy.deepcopy(conditioner.mllm)
    mllm.set_attn_implementation(implementation)
    wrapped = MLLMConditioner.from_mllm(mllm)
    assert {module.config._attn_implementation for module in wrapped.mllm.modules() if hasattr(module, "config")} == {
        implementation
    }


def test_the_connector_takes_the_models_dtype(conditioner):
    mllm = copy.deepcopy(conditioner.mllm).to(torch.bfloat16)
    wrapped = MLLMConditioner.from_mllm(mllm, num_queries=2)
    assert {parameter.dtype for parameter in wrapped.parameters()} == {torch.bfloat16}


def test_a_folder_is_loaded(conditioner, batch, folder, tmp_path):
    wrapped = with_connector_of(MLLMConditioner.from_mllm(folder, output_dim=24), conditioner)
    assert torch.equal(run(wrapped, **batch), run(conditioner, **batch))
    half = MLLMConditioner.from_mllm(str(folder), dtype=torch.bfloat16, attn_implementation="eager")
    assert half.dtype == torch.bfloat16 and half.mllm.config._attn_implementation == "eager"
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(run(MLLMConditioner.from_pretrained(tmp_path), **batch), run(wrapped, **batch))


def test_layers_on_disk_give_the_same(conditioner, batch, folder, tmp_path):
    parts = {f"model.{name}": "cpu" for name, _ in conditioner.mllm.model.named_children()}
    parts[next(name for name in parts if "language" in name or "text" in name)] = "disk"
    wrapped = MLLMConditioner.from_mllm(
        folder, output_dim=24, device_map={**parts, "lm_head": "disk"}, offload_folder=tmp_path
    )
    assert {parameter.device.type for parameter in wrapped.mllm.parameters()} == {"cpu", "meta"}
    assert set(wrapped.hf_device_map.values()) == {"cpu", "disk"}
    with_connector_of(wrapped, conditioner)
    assert torch.equal(run(wrapped, **batch), run(conditioner, **batch))


def test_offloaded_by_accelerate_gives_the_same(family, conditioner, batch):
    from accelerate import cpu_offload

    offloaded = cpu_offload(copy.deepcopy(conditioner), torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    assert torch.equal(run(offloaded, **batch), run(conditioner, **batch))


@pytest.mark.gpu
@torch.no_grad()
def test_offloaded_from_a_gpu_gives_the_same(conditioner, batch):
    from accelerate import cpu_offload

    expected = copy.deepcopy(conditioner).to("cuda")(**{key: value.to("cuda") for key, value in batch.items()})
    offloaded = cpu_offload(copy.deepcopy(conditioner), torch.device("cuda"))
    output = offloaded(**{key: value.to("cuda") for key, value in batch.items()})
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["get_peft_model", "add_adapter", "inject", "whole"])
def test_lora_in_the_model(family, conditioner, batch, how):
    model = copy.deepcopy(conditioner)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    if how == "get_peft_model":
        model.mllm = peft.get_peft_model(model.mllm, config)
    elif how == "add_adapter":
        model.mllm.add_adapter(config)
    elif how == "inject":
        peft.inject_adapter_in_model(config, model.mllm)
    else:
        model = peft.get_peft_model(model, config)
    output = model(**batch)
    assert (output - run(conditioner, **batch)).abs().max() > 1e-3
    output.sum().backward()
    text = [p for name, p in model.named_parameters() if "lora_" in name and ("text" in name or "language" in name)]
    assert len(text) == 8 and all(parameter.grad.abs().max() > 0 for parameter in text)


def test_loading_options_reach_transformers(conditioner, folder, monkeypatch):
    seen, wanted = {}, {
        "dtype": torch.bfloat16,
        "quantization_config": object(),
        "device_map": "auto",
        "revision": "main",
        "token": False,
        "attn_implementation": "eager",
    }  # fmt: skip

    def load(name, **kwargs):
        seen.update(kwargs, name=name)
        return copy.deepcopy(conditioner.mllm)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)
    wrapped = MLLMConditioner.from_mllm(folder, output_dim=7, crop_start=1, **wanted)
    assert seen == {**wanted, "name": folder}
    assert wrapped.config.output_dim == 7 and wrapped.config.crop_start == 1


def torchao_config():
    pytest.importorskip("torchao", reason="quantises on the CPU")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def test_quantised_inside_saved_and_loaded(conditioner, batch, folder, tmp_path):
    quantised = MLLMConditioner.from_mllm(folder, output_dim=24, quantization_config=torchao_config())
    with_connector_of(quantised, conditioner)
    layer = quantised.mllm.get_decoder().layers[0].mlp.up_proj.weight
    assert type(layer).__name__ == "Int8Tensor" and type(quantised.proj.weight) is torch.nn.Parameter
    output, expected = run(quantised, **batch), run(conditioner, **batch)
    assert 0 < (output - expected)[batch["attention_mask"].bool()].abs().max() < 0.2
    quantised.save_pretrained(tmp_path)
    loaded = MLLMConditioner.from_pretrained(tmp_path)
    assert type(loaded.mllm.get_decoder().layers[0].mlp.up_proj.weight) is type(layer)
    assert type(loaded.proj.weight) is torch.nn.Parameter
    torch.testing.assert_close(run(loaded, **batch), output)


def test_quantised_while_loading_the_conditioner(conditioner, batch, tmp_path):
    conditioner.save_pretrained(tmp_path)
    quantised = MLLMConditioner.from_pretrained(tmp_path, quantization_config=torchao_config())
    assert type(quantised.mllm.get_decoder().layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    difference = (run(quantised, **batch) - run(conditioner, **batch))[batch["attention_mask"].bool()]
    assert 0 < difference.abs().max() < 0.2


def test_names_that_are_no_multimodal_model(tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("loads weights"))
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="llama' has the model_type 'llama', which reads no images with text"):
        MLLMConditioner.from_mllm(tmp_path / "llama")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="'bert', which reads no images"):
        MLLMConditioner.from_mllm(str(tmp_path / "bert"))
    build("llava").config.save_pretrained(tmp_path / "conditioner")
    with pytest.raises(ValueError, match="is a conditioner already: load it with `MLLMConditioner.from_pretrained`"):
        MLLMConditioner.from_mllm(tmp_path / "conditioner")
    mllm_config("idefics3").save_pretrained(tmp_path / "idefics3")
    with pytest.raises(ValueError, match="`hidden_layer` 9 is out of range"):
        MLLMConditioner.from_mllm(tmp_path / "idefics3", hidden_layer=9)
    with pytest.raises(ValueError, match="`from_mllm` does not take output_dims: choose from output_dim, .*dtype"):
        MLLMConditioner.from_mllm(tmp_path / "idefics3", output_dims=9)


def test_models_that_cannot_be_wrapped():
    llava = build("llava").mllm
    with pytest.raises(ValueError, match="`from_mllm` does not take dtype: choose from output_dim"):
        MLLMConditioner.from_mllm(llava, dtype=torch.bfloat16)
    assert isinstance(llava.model, LlavaModel)
    with pytest.raises(ValueError, match="LlavaModel is not the class that `AutoModelForImageTextToText` loads"):
        MLLMConditioner.from_mllm(llava.model)
    text = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="LlamaForCausalLM has the model_type 'llama', which reads no images"):
        MLLMConditioner.from_mllm(LlamaForCausalLM(text))
