"""The closed-form count against torch's own counter, which sees every product that runs."""

import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_transformer import make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vimi_diffusers.training.flops import peak_flops, training_flops
from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler
from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


sys.path.append(str(Path(__file__).parents[1] / "vimi"))  # the tiny models that the conditioner is tested with
from mllm_families import FAMILIES, Family, build  # noqa: E402


class Embeds(torch.nn.Module):
    """A conditioner whose C is given."""


def batch_of(transformer, batch_size=2, tokens=5, device="cpu", **sizes):
    config = transformer.config
    shape = [sizes.get(name, config[name]) for name in ("num_frames", "height", "width")]
    return {
        "video": torch.zeros(batch_size, 3, *shape, device=device),
        "prompt_embeds": torch.zeros(batch_size, tokens, config.condition_dim, device=device),
    }


def counted(transformer, batch, recomputed=False, **conditions):
    """FLOPs that torch sees in the loss of [`VIMITrainingModel`], with attention as plain products."""
    model = VIMITrainingModel(Embeds(), transformer, EDMVideoScheduler(), "snap").train()
    video, embeds = batch["video"], batch["prompt_embeds"]
    options = {"device": video.device}
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, **options)
    batch_size = len(video)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = model.diffusion_loss(
            video, torch.zeros_like(video), torch.ones(batch_size, **options), embeds, mask,
            torch.ones(batch_size, **options), **conditions,
        )  # fmt: skip
        loss.backward()
    return counter.get_total_flops()


OPTIONS = {
    "plain": {},
    "patch_attention": {"patch_attention": True},
    "patch_condition": {"patch_condition": True},
    "modulation": {"modulation": True, "patch_attention": True},
    "tokens": {"resolution_token": True, "input_skip": True},
    "sines": {"scalar_mlp": False, "modulation": True, "input_skip": True, "patch_condition": True},
    "self_conditioning": {"self_conditioning": True, "shared_positions": True, "dropout": 0.1},
    "all": {
        "patch_attention": True, "patch_condition": True, "modulation": True, "input_skip": True,
        "self_conditioning": True, "resolution_token": True, "num_latent_layers": 2, "patch_dim": 48,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_the_generator_is_counted_exactly(name):
    transformer = make(**OPTIONS[name])
    batch = batch_of(transformer)
    plain = counted(transformer, batch)
    assert training_flops(transformer, None, batch) == plain
    transformer.enable_gradient_checkpointing()
    again = counted(transformer, batch)
    assert again > 1.1 * plain
    assert training_flops(transformer, None, batch, recomputed=True) == again
    assert training_flops(transformer, None, batch) == plain  # MFU leaves the repetition out


@pytest.mark.parametrize("sizes", [{"num_frames": 1}, {"height": 32, "width": 24}])
def test_other_sizes_than_the_trained_one(sizes):
    transformer = make(patch_attention=True)
    batch = batch_of(transformer, **sizes)
    assert training_flops(transformer, None, batch) == counted(transformer, batch)


def test_references_and_an_upscalers_channels():
    transformer = make(reference_patch_size=4)
    batch = batch_of(transformer)
    images = torch.zeros(2, 3, 3, 8, 8)
    expected = counted(transformer, batch, reference_images=images)
    assert training_flops(transformer, None, {**batch, "reference_images": images}) == expected


def test_lora_costs_what_it_costs():
    transformer = make(patch_attention=True, num_layers=4)
    batch = batch_of(transformer)
    full = training_flops(transformer, None, batch)
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "net.2"]))
    count = training_flops(transformer, None, batch)
    assert count == pytest.approx(counted(transformer, batch), rel=0.01)
    assert count < 0.85 * full


@pytest.mark.parametrize(
    "name, checkpointing", [("base-500m", False), ("base-500m", True), ("base-3.9b", True), ("upscaler-3.9b", False)]
)
def test_presets_on_the_meta_device(name, checkpointing):
    with torch.device("meta"):
        transformer = VIMITransformer3DModel.from_preset(name, num_layers=1)
        batch = batch_of(transformer, batch_size=1, tokens=128, device="meta")
        level = {"noise_level": torch.zeros(1)} if transformer.config.noise_level_token else {}
        if level:  # the upscaler's loss feeds six channels
            transformer.register_forward_pre_hook(
                lambda m, args, kwargs: (
                    args,
                    {**kwargs, "hidden_states": kwargs["hidden_states"].repeat(1, 2, 1, 1, 1)},
                ),
                with_kwargs=True,
            )
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        assert training_flops(transformer, None, batch, recomputed=checkpointing) == counted(
            transformer, batch, **level
        )


def test_the_published_forward_pass():
    """2 x MAC of one forward pass with 128 condition tokens: .70, 6.43 and 28.5 TFLOP (three forward passes' worth a
    step without self-conditioning's)."""
    for name, tflop in (("base-500m", 0.70), ("base-3.9b", 6.43), ("upscaler-3.9b", 28.5)):
        with torch.device("meta"):
            transformer = VIMITransformer3DModel.from_preset(name)
        batch = {name: value.shape for name, value in batch_of(transformer, 1, 128, "meta").items()}
        assert training_flops(transformer, None, batch) / 4e12 == pytest.approx(tflop, rel=0.015)


# ------------------------------------------------------------------ the conditioner
def conditioner_batch(name, transformer):
    pixels = [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16))]
    inputs = Family(name).encode(["a IMG ball on a IMG", "IMG or IMG"], [pixels, pixels])
    return {"video": torch.zeros(2, 3, 4, 16, 16), **inputs}


def counted_with_conditioner(transformer, encoder, batch):
    model = VIMITrainingModel(encoder, transformer, EDMVideoScheduler(), "snap").train()
    video = batch["video"]
    inputs = {name: value for name, value in batch.items() if name != "video"}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        embeds = encoder(**inputs)
        mask = encoder.condition_mask(batch["attention_mask"])
        loss, _ = model.diffusion_loss(video, video, torch.ones(2), embeds, mask, torch.ones(2))
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["trained", "frozen", "queries"])
def test_the_families_of_conditioners(name, kind):
    # a small generator, so that its count cannot hide the conditioner's
    transformer = make(condition_dim=24, num_layers=1, patch_dim=16, latent_dim=16, num_latents=4)
    encoder = build(name, **({"num_queries": 3, "num_query_layers": 1} if kind == "queries" else {}))
    encoder.requires_grad_(kind != "frozen")
    batch = conditioner_batch(name, transformer)
    alone = training_flops(transformer, None, {
        "video": batch["video"], "prompt_embeds": (2, 3 if kind == "queries" else batch["input_ids"].shape[1], 24)
    })  # fmt: skip
    found, expected = (
        training_flops(transformer, encoder, batch),
        counted_with_conditioner(transformer, encoder, batch),
    )
    assert found - alone == pytest.approx(expected - alone, rel=0.01)
    assert found > 1.3 * alone


def test_a_conditioner_with_gradient_checkpointing():
    transformer = make(condition_dim=24, num_layers=1, patch_dim=16, latent_dim=16, num_latents=4)
    encoder = build("llava")
    batch = conditioner_batch("llava", transformer)
    plain = training_flops(transformer, encoder, batch)
    encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    encoder.train()
    expected = counted_with_conditioner(transformer, encoder, batch)
    assert training_flops(transformer, encoder, batch) == plain < expected
    assert training_flops(transformer, encoder, batch, recomputed=True) == pytest.approx(expected, rel=0.01)


def test_lora_on_the_conditioner():
    transformer = make(condition_dim=24, num_layers=1)
    encoder = build("llava").requires_grad_(False)
    batch = conditioner_batch("llava", transformer)
    encoder.mllm = get_peft_model(encoder.mllm, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    expected = counted_with_conditioner(transformer, encoder, batch)
    assert training_flops(transformer, encoder, batch) == pytest.approx(expected, rel=0.02)


def test_an_unknown_kind_is_refused():
    encoder = build("llava")
    layer = encoder.mllm.base_model.get_decoder().layers[0]
    layer.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
    transformer = make(condition_dim=24)
    with pytest.raises(ValueError, match="experts is no matrix, as in a mixture of experts"):
        training_flops(transformer, encoder, conditioner_batch("llava", transformer))
    with pytest.raises(ValueError, match="Without `text_encoder` the batch needs `prompt_embeds`"):
        training_flops(transformer, None, {"video": (1, 3, 4, 16, 16)})


@pytest.mark.parametrize(
    "device, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H200", 989.5), ("NVIDIA L4", 121.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A100-PCIE-40GB", 312.0), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40S", 362.0), ("NVIDIA GH200 480GB", 989.5), ("NVIDIA H100 NVL", 835.5), ("NVIDIA A10", 125.0),
    ],
)  # fmt: skip
def test_peaks_by_name(device, peak):
    assert peak_flops(device) == 1e12 * peak


@pytest.mark.parametrize(
    "device", ["cpu", torch.device("cpu"), "Tesla T4", "NVIDIA GeForce RTX 4090 D", "NVIDIA A10G", "meta"]
)
def test_unknown_peaks(device):
    assert peak_flops(device) is None
