"""The shipped stage configurations: valid, each line explained, and the models that they say they are."""

from pathlib import Path

import pytest
import torch
import yaml

from vimi_diffusers.training.components import build_components, check_model, freeze_conditioner
from vimi_diffusers.training.config import TrainingConfig
from vimi_diffusers.training.upscale import upscaler_from_base, upscaling_options
from vimi_diffusers.vimi.mllm_conditioner import MLLMConditioner
from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler
from vimi_diffusers.vimi.tiny import build_tiny_components
from vimi_diffusers.vimi.transformer_presets import PRESETS
from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


FOLDER = Path(__file__).parents[2] / "training_scripts/configs"
NAMES = [f"base_{size}_{stage}" for size in ("500m", "3.9b") for stage in ("pretrain", "instruct")]
UPSCALERS = ["upscaler_3.9b", "emoji_world_upscaler"]


def read(name, **changes):
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    if "pretrain" not in name:
        changes["pretrained_model_name_or_path"] = "base"
    return TrainingConfig(**{"output_dir": "out", "train_data_dir": "data", **values, **changes})


@pytest.mark.parametrize("name", NAMES + UPSCALERS)
def test_configurations_are_valid_and_each_field_is_explained(name):
    config = read(name)
    assert config.freeze_conditioner and config.max_bad_share == 0.05
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    for before, line in zip(lines, lines[1:]):
        key, _, value = line.partition(":")
        if value and key.strip() not in (
            "height",
            "width",
            "pretrained_model_name_or_path",
        ):  # these speak for themselves
            assert "#" in line or before.strip().startswith("#"), line
    if name in UPSCALERS:
        assert upscaling_options(config).keys() == {"base_size", "noise_levels"}
    else:
        check_model(config)


@pytest.mark.parametrize("size", ["500m", "3.9b"])
def test_the_bases_are_the_published_ones(size):
    config, preset = read(f"base_{size}_pretrain"), PRESETS[f"base-{size}"]
    written = {key: tuple(value) if isinstance(value, list) else value for key, value in
               config.model["transformer"].items()}  # fmt: skip
    assert written == preset
    assert EDMVideoScheduler(**config.model["scheduler"]).config.sigma_in == 4.0
    batch = config.train_batch_size * config.gradient_accumulation_steps * 4
    assert batch == 4096 and 0.5 == pytest.approx(config.ema_decay**6000, rel=0.01)
    for stage in ("pretrain", "instruct"):
        images = 576 * read(f"base_{size}_{stage}").num_images
        assert images + 256 <= read(f"base_{size}_{stage}").max_sequence_length <= 4096  # LLaVA-1.5's positions


def test_the_upscaler_is_the_published_one():
    config = read("upscaler_3.9b")
    with torch.device("meta"):
        base = VIMITransformer3DModel.from_preset("base-3.9b", num_layers=1)
        upscaler = upscaler_from_base(base, config.model["transformer"])
    expected = {**PRESETS["upscaler-3.9b"], "num_layers": 1}
    found = {key: upscaler.config[key] for key in expected}
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()} == expected
    assert config.train_batch_size * config.gradient_accumulation_steps * 4 == 320


def test_a_loaded_multimodal_model(tmp_path):
    """`model.conditioner.pretrained_model_name_or_path` takes any model that the conditioner can wrap."""
    tiny = build_tiny_components()
    tiny["text_encoder"].mllm.save_pretrained(tmp_path)
    tiny["text_processor"].save_pretrained(tmp_path)
    section = {"pretrained_model_name_or_path": str(tmp_path), "dtype": "bfloat16", "hidden_layer": 0}
    model = {"conditioner": section, "transformer": {"condition_dim": 48, "num_layers": 1}}
    components = build_components(read("base_500m_pretrain", model=model), iter(()))
    encoder = components["text_encoder"]
    assert isinstance(encoder, MLLMConditioner) and encoder.dtype == torch.bfloat16
    assert (encoder.config.output_dim, encoder.config.hidden_layer) == (48, 0)
    table = tiny["text_encoder"].get_input_embeddings().weight.bfloat16()
    assert torch.equal(encoder.get_input_embeddings().weight, table)
    assert components["text_processor"].tokenizer.get_vocab() == tiny["text_processor"].tokenizer.get_vocab()
    freeze_conditioner(encoder, read("base_500m_pretrain", model=model))  # all but what is new
    trained = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert set(trained) == {"norm.weight", "norm.bias", "proj.weight", "proj.bias"}
    assert {weight.dtype for weight in trained.values()} == {torch.float32} and encoder.mllm.dtype == torch.bfloat16
    assert encoder(torch.arange(3, 9)[None]).dtype == torch.float32
    later = read("base_500m_pretrain", model={}, pretrained_model_name_or_path="base")
    freeze_conditioner(encoder, later)
    assert not any(weight.requires_grad for weight in encoder.parameters())
    with pytest.raises(ValueError, match="the layers from the MLLM to C are new"):
        check_model(read("base_500m_pretrain", model=model, condition_cache_dir="cache"))
    with pytest.raises(ValueError, match="Unknown keys in `model.conditioner`: text_layers"):
        check_model(read("base_500m_pretrain", model={"conditioner": {**section, "text_layers": 2}}))
