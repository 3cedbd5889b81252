"""LoRA training: what trains, what is saved, and that pipelines load exactly what was trained."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline
from vimi_diffusers.training.lora import add_lora, check_lora, default_targets, save_lora
from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.training.optimizers import build_optimizer, update
from vimi_diffusers.vimi.tiny import build_tiny_components


pytest.importorskip("peft")
GENERATOR, MLLM = {"transformer": {"rank": 4, "alpha": 8}}, {"text_encoder": {"rank": 2}}
SETTINGS = SimpleNamespace(
    optimizer="adamw", cuda_graph=False, learning_rate=0.02, adam_beta1=0.9, adam_beta2=0.99, adam_weight_decay=0.01,
    adam_epsilon=1e-8,
)  # fmt: skip


def train(components, steps=6, autocast=False):
    """A few steps on one batch; the losses."""
    model = VIMITrainingModel(*(components[name] for name in ("text_encoder", "transformer", "scheduler")), "snap")
    model.train()
    optimizer = build_optimizer(model, SETTINGS, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    video, noise = (torch.rand(2, 3, 4, 16, 16, generator=generator) for _ in range(2))
    ids = torch.randint(10, 200, (2, 6), generator=generator)
    sigmas, fps = torch.tensor([0.3, 3.0]), torch.full((2,), 8.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, _ = model(video, noise, sigmas, fps, input_ids=ids, attention_mask=torch.ones_like(ids))
        loss.backward()
        update(optimizer, torch.tensor(0.0))
        losses.append(loss.item())
    model.eval()
    return losses


def pipeline(components):
    pipe = VIMIPipeline(**{**components, "scheduler": EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0, solver="euler")})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt="a red ball", num_inference_steps=2, generator=generator, output_type="pt").frames


@pytest.mark.parametrize("lora", [GENERATOR, MLLM, {**GENERATOR, **MLLM}], ids=["generator", "MLLM", "both"])
def test_a_pipeline_loads_exactly_what_was_trained(lora, tmp_path):
    components = build_tiny_components()
    plain = run(pipeline(components))
    add_lora(components, lora)
    assert torch.equal(run(pipeline(components)), plain)  # starts as if it were not there
    losses = train(components, steps=12)
    assert losses[-1] < losses[0]
    trained = run(pipeline(components))
    assert (trained - plain).abs().max() > 1e-3
    file = save_lora(components, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] == ["pytorch_lora_weights.safetensors"]

    pipe = pipeline(build_tiny_components())
    pipe.load_lora_weights(tmp_path, adapter_name="it")
    assert torch.equal(run(pipe), trained)
    assert pipe.get_list_adapters() == {part: ["it"] for part in lora}
    for part, options in lora.items():
        config = getattr(pipe, part).peft_config["it"]
        assert (config.r, config.lora_alpha) == (options["rank"], options.get("alpha", options["rank"]))
    pipe.disable_lora()
    assert torch.equal(run(pipe), plain)
    pipe.enable_lora()
    assert torch.equal(run(pipe), trained)
    pipe.set_adapters("it", 0.5)
    assert not torch.equal(run(pipe), trained)
    pipe.set_adapters("it", 1.0)
    pipe.fuse_lora()
    torch.testing.assert_close(run(pipe), trained, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), plain, atol=1e-4, rtol=0)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize("lora", [GENERATOR, MLLM, {**GENERATOR, **MLLM}], ids=["generator", "MLLM", "both"])
def test_only_the_layers_train(lora):
    components = build_tiny_components()
    before = {part: copy.deepcopy(components[part].state_dict()) for part in ("transformer", "text_encoder")}
    add_lora(components, lora)
    train(components, steps=2)
    for part, weights in before.items():
        for name, parameter in components[part].named_parameters():
            assert parameter.requires_grad == ("lora_" in name), name
            if "lora_" not in name:
                assert torch.equal(parameter, weights[name.replace(".base_layer", "")]), name
        layers = [name for name, _ in components[part].named_parameters() if "lora_" in name]
        assert bool(layers) == (part in lora)


def test_default_layers():
    components = build_tiny_components()
    add_lora(components, {"transformer": None, "text_encoder": None})
    names = {part: {n for n, _ in components[part].named_parameters() if "lora_A" in n} for part in components if
             isinstance(components[part], torch.nn.Module)}  # fmt: skip
    attentions = [name for name, _ in build_tiny_components()["transformer"].named_modules() if name.endswith("attn")]
    assert len(names["transformer"]) == 4 * len(attentions) > 0
    assert len(names["text_encoder"]) == 4 and all(".language_model.layers." in name for name in names["text_encoder"])
    assert components["transformer"].peft_config["default"].r == 16


@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl", "qwen3_vl"])
def test_other_mllms(family, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "vimi")
    from mllm_families import Family, build

    conditioner = build(family)
    image = Image.new("RGB", (16, 16), "red")
    batch = Family(family).encode(["a red ball IMG", "a blue cube"], [[image], []])
    plain = copy.deepcopy(conditioner)
    components = {**build_tiny_components(), "text_encoder": conditioner}
    add_lora(components, MLLM)
    layers = [name for name, _ in conditioner.named_parameters() if "lora_B" in name]
    assert len(layers) == 8 and not any("vis" in name for name in layers)
    with torch.no_grad():
        for name, parameter in conditioner.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        expected = conditioner(**batch)
        assert not torch.equal(expected, plain(**batch))
        save_lora(components, tmp_path)
        pipe = VIMIPipeline(**{**build_tiny_components(), "text_encoder": plain})
        pipe.load_lora_weights(tmp_path)
        assert torch.equal(plain(**batch), expected)


def test_frozen_weights_in_bf16():
    components = build_tiny_components()
    add_lora(components, {**GENERATOR, **MLLM}, dtype=torch.bfloat16)
    for part in ("transformer", "text_encoder"):
        for name, parameter in components[part].named_parameters():
            assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    losses = train(components, steps=12, autocast=True)
    assert losses[-1] < losses[0]


def test_own_layers_and_dropout():
    components = build_tiny_components()
    add_lora(components, {"transformer": {"target_modules": ["ff.net.2"], "dropout": 0.5}})
    names = [name for name, _ in components["transformer"].named_parameters() if "lora_A" in name]
    assert names and all(".ff.net.2." in name for name in names)
    assert components["transformer"].peft_config["default"].lora_dropout == 0.5


def test_files_are_written_whole(tmp_path, monkeypatch):
    components = build_tiny_components()
    with pytest.raises(ValueError, match="No component has LoRA layers: call `add_lora` first"):
        save_lora(components, tmp_path)
    add_lora(components, GENERATOR)
    file = save_lora(components, tmp_path)
    before = file.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    train(components, steps=1)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_lora(components, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_bytes() == before
    monkeypatch.undo()
    save_lora(components, tmp_path)
    assert file.read_bytes() != before
    with safe_open(file, "pt") as opened:
        assert '"transformer.r": 4' in opened.metadata()["lora_adapter_metadata"]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({}, "must have a section for some of transformer, text_encoder"),
        ({"unet": {}}, "must have a section for some of transformer, text_encoder, got \\['unet'\\]"),
        ({"transformer": {"r": 4}}, "`lora.transformer` takes rank, alpha, dropout, target_modules, got {'r': 4}"),
        ({"transformer": {"rank": 0}}, "`lora.transformer.rank` must be an integer of at least 1, got 0"),
        ({"transformer": {"rank": 2.5}}, "`lora.transformer.rank` must be an integer"),
        ({"text_encoder": {"alpha": 0}}, "`lora.text_encoder.alpha` must be a number over 0, got 0"),
        ({"text_encoder": {"dropout": 1}}, "`lora.text_encoder.dropout` must be at least 0 and below 1"),
        ({"transformer": {"target_modules": []}}, "`lora.transformer.target_modules` must be a list of names"),
    ],
)
def test_bad_sections(lora, message):
    with pytest.raises(ValueError, match=message):
        check_lora(lora)


def test_layers_that_no_model_has():
    with pytest.raises(
        ValueError, match="`lora.transformer` cannot be added: .*Set its `target_modules` to layers of"
    ):
        add_lora(build_tiny_components(), {"transformer": {"target_modules": ["q_proj"]}})
    assert isinstance(default_targets(build_tiny_components()["transformer"]), list)
