"""What diffusers does to any model: adapters, caches, back ends, compilation, offload, casts."""

import copy

import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HookRegistry,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    apply_layer_skip,
)
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from tiny_transformer import TINY, make, make_inputs, run

from vimi_diffusers.vimi.transformer_blocks import VIMIAttention
from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


SHIPPED = {"patch_attention": True, "patch_condition": True, "modulation": True, "input_skip": True}
EVERYTHING = {**SHIPPED, "self_conditioning": True, "resolution_token": True, "num_latent_layers": 2}


# ---------------------------------------------------------------------------------------------- saving
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_save_and_load(tmp_path, options):
    model = make(**options)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded, info = VIMITransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not loaded.training
    inputs = make_inputs(model)
    assert torch.equal(run(loaded, **inputs), run(model, **inputs))
    assert loaded.config.group_size in ((2, 2), [2, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, dtype):
    model = make(**EVERYTHING)
    inputs = make_inputs(model)
    expected = run(model, **inputs)
    model.save_pretrained(tmp_path)
    loaded = VIMITransformer3DModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    output = run(loaded, **half)
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


def test_device_map_on_one_device(tmp_path):
    model = make(**SHIPPED)
    model.save_pretrained(tmp_path)
    loaded = VIMITransformer3DModel.from_pretrained(tmp_path, device_map={"": "cpu"})
    inputs = make_inputs(model)
    assert torch.equal(run(loaded, **inputs), run(model, **inputs))
    assert model._get_no_split_modules("auto") == ["VIMIBlock"]


# ---------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_gradient_checkpointing_gives_the_same_gradients(options):
    gradients, latents = [], torch.randn(2, 16, 32)
    for checkpointing in (False, True):
        model = make(**options).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        names = {type(m).__name__ for m in model.modules() if hasattr(m, "gradient_checkpointing")}
        assert names == {"VIMITransformer3DModel"} and model.is_gradient_checkpointing == checkpointing
        kwargs = {"previous_latents": latents} if options else {}
        model(**make_inputs(model), **kwargs).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=5e-5, rtol=5e-5, msg=name)


# ---------------------------------------------------------------------------------------------- adapters
def test_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    model = make(**SHIPPED)
    inputs = make_inputs(model)
    base = run(model, **inputs)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    model.add_adapter(config)
    adapted = run(model, **inputs)
    assert not torch.allclose(adapted, base, atol=1e-2)
    torch.testing.assert_close(run(model, **inputs, attention_kwargs={"scale": 0.0}), base)
    model.disable_adapters()
    torch.testing.assert_close(run(model, **inputs), base)
    model.enable_adapters()

    model.save_lora_adapter(tmp_path)
    other = make(**SHIPPED)
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(run(other, **inputs), adapted)
    assert other.peft_config["default_0"].target_modules == config.target_modules
    other.unload_lora()
    torch.testing.assert_close(run(other, **inputs), base)
    model.delete_adapters("default")
    torch.testing.assert_close(run(model, **inputs), base)


def test_adapters_can_be_fused():
    peft = pytest.importorskip("peft")
    model = make()
    inputs = make_inputs(model)
    base = run(model, **inputs)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = run(model, **inputs)
    projection = model.transformer_blocks[0].write.attn.to_q.base_layer
    before = projection.weight.detach().clone()
    model.fuse_lora()
    assert not torch.allclose(projection.weight, before)
    torch.testing.assert_close(run(model, **inputs), adapted, atol=1e-4, rtol=1e-4)
    model.unfuse_lora()
    torch.testing.assert_close(projection.weight, before)
    model.disable_adapters()
    torch.testing.assert_close(run(model, **inputs), base, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- attention
def test_fused_projections_give_the_same():
    model = make(**EVERYTHING)
    inputs, names = make_inputs(model), set(model.state_dict())
    expected = run(model, **inputs)
    model.fuse_qkv_projections()
    attentions = [module for module in model.modules() if isinstance(module, VIMIAttention)]
    assert all(module.fused_projections for module in attentions)
    for module in attentions:  # the fused ones are what is used
        (module.to_kv if module.is_cross_attention else module.to_qkv).weight.data.mul_(1.5)
    assert not torch.allclose(run(model, **inputs), expected, atol=1e-3)
    for module in attentions:
        (module.to_kv if module.is_cross_attention else module.to_qkv).weight.data.div_(1.5)
    torch.testing.assert_close(run(model, **inputs), expected, atol=1e-5, rtol=1e-5)
    model.unfuse_qkv_projections()
    assert set(model.state_dict()) == names
    assert torch.equal(run(model, **inputs), expected)


@pytest.mark.parametrize("name", ["native", "_native_math", "flex"])
def test_attention_back_ends_agree(name):
    model = make(**SHIPPED, latent_dim=32, patch_dim=32)
    inputs = make_inputs(model)
    inputs["encoder_attention_mask"][0, 3:] = False
    with attention_backend("native"):
        expected = run(model, **inputs)
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        model.set_attention_backend(name)
        assert {p._attention_backend for p in model.attn_processors.values()} == {AttentionBackendName(name)}
        torch.testing.assert_close(run(model, **inputs), expected, atol=1e-4, rtol=1e-4)
    finally:
        model.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(before)
    assert {p._attention_backend for p in model.attn_processors.values()} == {None}


def test_processors_can_be_replaced():
    model = make(patch_attention=True)
    calls = []

    class Counting(type(model.transformer_blocks[0].write.attn.processor)):
        def __call__(self, *args, **kwargs):
            calls.append(self)
            return super().__call__(*args, **kwargs)

    names = list(model.attn_processors)
    assert "transformer_blocks.0.latent_layers.0.attn.processor" in names and len(names) == 2 * 5
    inputs = make_inputs(model)
    expected = run(model, **inputs)
    model.set_attn_processor(Counting())
    assert torch.equal(run(model, **inputs), expected) and len(calls) == 10
    with pytest.raises(ValueError, match="number of processors"):
        model.set_attn_processor({names[0]: Counting()})


# ---------------------------------------------------------------------------------------------- caches
CACHES = {
    "first block": FirstBlockCacheConfig(threshold=1.0),
    "taylor seer": TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1),
    "taylor seer lite": TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1, use_lite_mode=True),
    "pyramid": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: 500,
    ),
    "mag": MagCacheConfig(num_inference_steps=2, retention_ratio=0.0, threshold=100.0, mag_ratios=[1.0, 1.0]),
    "sea": SeaCacheConfig(
        threshold=100.0,
        residual_order=0,
        retention_steps=0,
        cache_end_steps=0,
        raw_vision_callback=lambda module, args, kwargs: list(kwargs["hidden_states"]),
    ),
}


@pytest.mark.parametrize("name", CACHES)
@torch.no_grad()
def test_caches(name):
    """The first step is exact, the second uses what the first has left, another context starts afresh."""
    model = make(**SHIPPED, num_layers=3)
    inputs = make_inputs(model)
    later = {**inputs, "hidden_states": inputs["hidden_states"] + 0.3 * torch.randn(2, 3, 4, 16, 16)}
    exact, exact_later = run(model, **inputs), run(model, **later)
    model.enable_cache(copy.deepcopy(CACHES[name]))
    assert model.is_cache_enabled
    with pytest.raises(ValueError, match="already been enabled"):
        model.enable_cache(copy.deepcopy(CACHES[name]))

    outputs = []
    for step, given in enumerate((inputs, later)):
        with model.cache_context("cond", step_index=step, sigma=0.9 - 0.3 * step, num_inference_steps=2):
            outputs.append(model(**given))
    torch.testing.assert_close(outputs[0].sample, exact, atol=1e-5, rtol=1e-5)
    assert outputs[1].sample.isfinite().all() and outputs[1].latents.isfinite().all()
    assert not torch.allclose(outputs[1].sample, exact_later, atol=1e-3)
    assert (outputs[1].sample - exact_later).norm() < 0.5 * exact_later.norm()  # an approximation all the same

    model._reset_stateful_cache()
    model.disable_cache()
    assert not model.is_cache_enabled
    assert torch.equal(run(model, **later), exact_later)


@pytest.mark.parametrize("name", ["first block", "mag"])
@torch.no_grad()
def test_block_caches_skip_blocks(name):
    model = make(num_layers=3)
    calls = []
    for number, block in enumerate(model.transformer_blocks):
        block.write.register_forward_hook(lambda *_, number=number: calls.append(number))
    model.enable_cache(copy.deepcopy(CACHES[name]))
    inputs = make_inputs(model)
    for _ in range(2):
        with model.cache_context("cond"):
            output = model(**inputs)
    assert calls == [0, 1, 2] + ([0] if name == "first block" else [])
    # the same input: what is left out is exactly what the cache holds
    plain = make(num_layers=3)
    torch.testing.assert_close(output.sample, run(plain, **inputs), atol=1e-5, rtol=1e-5)
    if name == "first block":  # which keeps the latents too
        torch.testing.assert_close(output.latents, plain(**inputs).latents, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_attention_can_be_cached():
    model = make(**SHIPPED)
    model.enable_cache(copy.deepcopy(CACHES["taylor seer"]))
    attentions = [module for module in model.modules() if isinstance(module, VIMIAttention)]
    hooks = {id(m) for m in model.modules() if hasattr(m, "_diffusers_hook") and m._diffusers_hook.hooks}
    assert len(attentions) == 10 and all(id(module) in hooks for module in attentions)


@torch.no_grad()
def test_faster_cache_leaves_out_the_unconditional_half():
    model = make(patch_attention=True)
    inputs = {**make_inputs(model, batch_size=4), "fps": torch.tensor(8.0)}  # one frame rate for either half
    exact, timestep, sizes = run(model, **inputs), [1000], []
    config = FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 901),
        current_timestep_callback=lambda: timestep[0],
        attention_weight_callback=lambda _: 0.5,
        alpha_low_frequency=1.0,
        alpha_high_frequency=1.0,
    )
    model.enable_cache(config)
    torch.testing.assert_close(run(model, **inputs), exact)
    timestep[0] = 500
    model.patch_embed.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    with torch.no_grad():
        output = model(**inputs).sample
    assert sizes == [2] and output.shape == exact.shape
    torch.testing.assert_close(output, exact, atol=1e-3, rtol=1e-3)  # the same input: nothing to approximate


@torch.no_grad()
def test_contexts_keep_their_caches_apart():
    model = make(num_layers=3)
    first, second = make_inputs(model), make_inputs(model, seed=2)
    expected = run(model, **second)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e6))
    with model.cache_context("cond"):
        model(**first)
    with model.cache_context("uncond"):
        assert torch.equal(model(**second).sample, expected)


@pytest.mark.parametrize("parts", [{}, {"skip_attention": False}, {"skip_ff": False}, "scores"])
def test_layers_can_be_skipped(parts):
    """As skip-layer and perturbed-attention guidance need it."""
    if parts == "scores":
        parts = {"skip_attention": False, "skip_ff": False, "skip_attention_scores": True}
    model = make(patch_attention=True, num_layers=3)
    inputs = make_inputs(model)
    expected = run(model, **inputs)
    apply_layer_skip(model, LayerSkipConfig(indices=[1], fqn="transformer_blocks", **parts))
    skipped = run(model, **inputs)
    assert not torch.allclose(skipped, expected, atol=1e-4)
    if not parts:
        shorter = make(patch_attention=True)
        blocks = model.transformer_blocks
        for name, source in (("0", blocks[0]), ("1", blocks[2])):
            getattr(shorter.transformer_blocks, name).load_state_dict(source.state_dict())
        shorter.load_state_dict({n: w for n, w in model.state_dict().items() if "blocks" not in n}, strict=False)
        torch.testing.assert_close(skipped, run(shorter, **inputs))


# ---------------------------------------------------------------------------------------------- compilation
@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def steps(model):
    """Three steps as a pipeline makes them: other noise, another noise level."""
    inputs = make_inputs(model)
    for step in range(3):
        yield {**inputs, "hidden_states": inputs["hidden_states"] * (1 + step), "timestep": inputs["timestep"] - step}


@pytest.mark.parametrize("options", [{}, EVERYTHING])
@torch.no_grad()
def test_the_model_is_compiled_once_as_one_graph(options, fresh_compiler):
    model = make(**options)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    carried = {"previous_latents": torch.zeros(2, 16, 32)} if options else {}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for inputs in steps(model):
            output, expected = compiled(**inputs, **carried), model(**inputs, **carried)
            torch.testing.assert_close(output.sample, expected.sample, atol=1e-5, rtol=1e-5)
            carried = dict.fromkeys(carried, output.latents)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@torch.no_grad()
def test_blocks_are_compiled_once(backend, fresh_compiler):
    model, plain = (make(**EVERYTHING, num_layers=3) for _ in range(2))
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True, recompile_limit=1):
        for inputs in steps(model):
            torch.testing.assert_close(run(model, **inputs), run(plain, **inputs), atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one for all blocks and steps


@pytest.mark.slow
@torch.no_grad()
def test_one_graph_serves_all_sizes(fresh_compiler):
    model = make(num_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
    ):
        for height, width in ((32, 24), (16, 16), (48, 40)):  # the trained one among them
            inputs = make_inputs(model, height=height, width=width)
            torch.testing.assert_close(run(compiled, **inputs), run(model, **inputs), atol=1e-5, rtol=1e-5)


def test_the_model_can_be_exported():
    model = make(**EVERYTHING)
    inputs = make_inputs(model)
    with torch.no_grad():
        program = torch.export.export(model, args=(), kwargs=inputs)
        torch.testing.assert_close(program.module()(**inputs).sample, run(model, **inputs), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float16])
def test_layerwise_casting(storage):
    model = make(**EVERYTHING)
    inputs = make_inputs(model)
    expected, size = run(model, **inputs), model.get_memory_footprint()
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    assert model.get_memory_footprint() < 0.8 * size
    stored = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert stored["transformer_blocks.0.write.attn.to_q.weight"] == storage
    for kept in ("patch_embed.weight", "pos_embed", "latents", "sigma_embedder.linear_1.weight", "skip_gain.weight",
                 "norm_out.weight", "modulation_proj.0.weight"):  # fmt: skip
        assert stored[kept] == torch.float32, kept
    output = run(model, **inputs)
    assert not torch.equal(output, expected)
    assert (output - expected).norm() < (0.2 if storage == torch.float8_e4m3fn else 1e-2) * expected.norm()


def test_layerwise_casting_trains():
    model = make(**SHIPPED).train()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    model(**make_inputs(model)).sample.square().mean().backward()
    assert model.patch_embed.weight.grad.abs().max() > 0


@pytest.mark.parametrize("options", [{}, EVERYTHING])
@pytest.mark.parametrize(
    "kind", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
@pytest.mark.parametrize("to_disk", [False, True])
def test_group_offload(tmp_path, options, kind, to_disk):
    model = make(**options)
    inputs = make_inputs(model)
    expected = run(model, **inputs)
    if to_disk:
        kind = {**kind, "offload_to_disk_path": str(tmp_path)}
    model.enable_group_offload(torch.device("cpu"), **kind)
    hooked = [m for m in model.modules() if hasattr(m, "_diffusers_hook")]
    assert all(HookRegistry.check_if_exists_or_initialize(m).get_hook("group_offloading") for m in hooked) and hooked
    for _ in range(2):
        torch.testing.assert_close(run(model, **inputs), expected)
    assert not to_disk or list(tmp_path.glob("*.safetensors"))


def device_map(model, last):
    """Where accelerate keeps each part: the last block elsewhere."""
    parts = [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))]
    parts.remove("transformer_blocks")
    blocks = [f"transformer_blocks.{i}" for i in range(len(model.transformer_blocks))]
    return {**dict.fromkeys(parts + blocks[:-1], "cpu"), blocks[-1]: last}


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_a_block_on_disk_gives_the_same(tmp_path, options):
    model = make(num_layers=2, **options)
    model.save_pretrained(tmp_path)
    loaded = VIMITransformer3DModel.from_pretrained(
        tmp_path, device_map=device_map(model, "disk"), offload_folder=tmp_path / "offload"
    )
    assert loaded.transformer_blocks[1].write.attn.to_q.weight.device.type == "meta"
    inputs = make_inputs(model)
    expected, output = model(**inputs), loaded(**inputs)
    assert torch.equal(output.sample, expected.sample) and torch.equal(output.latents, expected.latents)


@pytest.mark.gpu
@pytest.mark.parametrize("last", ["cpu", "disk"])
def test_a_block_off_the_gpu_gives_the_same(tmp_path, last):
    model = make(num_layers=2, **EVERYTHING)
    model.save_pretrained(tmp_path)
    where = dict.fromkeys(device_map(model, last), 0) | {"transformer_blocks.1": last}
    loaded = VIMITransformer3DModel.from_pretrained(tmp_path, device_map=where, offload_folder=tmp_path / "offload")
    inputs = make_inputs(model)
    output = loaded(**{name: value.to("cuda") for name, value in inputs.items()}).sample
    torch.testing.assert_close(output.cpu(), model(**inputs).sample, atol=1e-3, rtol=0)


def test_the_class_says_what_it_supports():
    assert VIMITransformer3DModel._repeated_blocks == VIMITransformer3DModel._no_split_modules == ["VIMIBlock"]
    assert VIMITransformer3DModel._supports_group_offloading and VIMITransformer3DModel._keep_in_fp32_modules is None
    assert VIMITransformer3DModel(**TINY).is_cache_enabled is False
