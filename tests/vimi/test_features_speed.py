"""Compilation, step caches and attention back ends in the loop of a pipeline."""

import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline, default_checkpoint
from vimi_diffusers.vimi.tiny import build_tiny_components


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 8


def run(pipe, prompt="a red ball", seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    arguments = {"num_inference_steps": 4, "generator": generator, "output_type": "pt", **arguments}
    return pipe(prompt, **arguments).frames.cpu()


def psnr(one, other):
    return -10 * (one - other).square().mean().log10().item()


# ---------------------------------------------------------------- compilation
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_once_for_all_steps(device, whole):
    pipe = VIMIPipeline(**build_tiny_components(num_layers=3)).to(device)
    pipe.scheduler = EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0, solver="euler")
    pipe.set_progress_bar_config(disable=True)
    expected = run(pipe)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compile_it = pipe.transformer.compile if whole else pipe.transformer.compile_repeated_blocks
    compile_it(fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                torch.testing.assert_close(run(pipe), expected, atol=1e-3, rtol=0)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    finally:
        torch.compiler.reset()


# ---------------------------------------------------------------- step caches
@pytest.fixture(scope="module", params=DEVICES)
def shipped(request):
    """The embedded weights: on random ones a cache has nothing that changes slowly."""
    pipe = VIMIPipeline.from_pretrained(default_checkpoint()).to(request.param)
    pipe.scheduler = EDMVideoScheduler.from_config(pipe.scheduler.config, solver="euler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **arguments):
    """A short video, and how many rows the projections of two attentions of each block have computed for it."""
    work = []
    hooks = [
        attention.to_q.register_forward_hook(lambda _, args, __: work.append(len(args[0])))
        for block in pipe.transformer.transformer_blocks
        for attention in (block.write.attn, block.patch_read.attn)
    ]
    frames = run(pipe, "A fox runs through a park", num_inference_steps=STEPS, num_frames=8, **arguments)
    for hook in hooks:
        hook.remove()
    return frames, sum(work)


@pytest.fixture(scope="module")
def uncached(shipped):
    return draw(shipped)


def everywhere(skip):
    return {f"{kind}_attention_{name}": value for kind in ("spatial", "cross")
            for name, value in (("block_skip_range", skip), ("timestep_skip_range", (-10, 10)))}  # fmt: skip


CACHES = {  # timesteps are ln(sigma) / 4
    "first_block": lambda pipe: FirstBlockCacheConfig(threshold=0.2),
    "taylor_seer": lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=4, max_order=1),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        **everywhere(2), current_timestep_callback=lambda: float(pipe.current_timestep)
    ),
    "mag": lambda pipe: MagCacheConfig(
        num_inference_steps=STEPS, retention_ratio=0.5, threshold=0.1, max_skip_steps=1, mag_ratios=[1.0] * STEPS
    ),
    "sea": lambda pipe: SeaCacheConfig(
        threshold=0.5, raw_vision_callback=lambda module, args, kwargs: list(kwargs["hidden_states"])
    ),
    "faster": lambda pipe: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-10, 0),
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-10, 0),
        current_timestep_callback=lambda: float(pipe.current_timestep),
        attention_weight_callback=lambda module: 0.5,
    ),
}


@pytest.mark.parametrize("name", CACHES)
def test_step_caches_stay_near_the_uncached_video(shipped, uncached, name):
    """They leave work out, and the video stays the same to the eye: another one has a PSNR below 20."""
    shipped.transformer.enable_cache(CACHES[name](shipped))
    try:
        cached, work = draw(shipped)
    finally:
        shipped.transformer.disable_cache()
    assert work < 0.95 * uncached[1]
    assert 22 < psnr(cached, uncached[0]) < 60


def test_another_video_is_farther_than_a_cached_one(shipped, uncached):
    assert psnr(draw(shipped, seed=1)[0], uncached[0]) < 20


@pytest.mark.parametrize("name", ["first_block", "taylor_seer"])
def test_caches_keep_nothing_between_calls(shipped, name):
    shipped.transformer.enable_cache(CACHES[name](shipped))
    try:
        first, second = draw(shipped)[0], draw(shipped)[0]
    finally:
        shipped.transformer.disable_cache()
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- attention
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["_native_flash", "_native_efficient", "_native_cudnn"])
def test_attention_back_ends_of_a_gpu(backend):
    pipe = VIMIPipeline.from_pretrained(default_checkpoint(), dtype=torch.bfloat16).to("cuda")
    pipe.scheduler = EDMVideoScheduler.from_config(pipe.scheduler.config, solver="euler")
    pipe.set_progress_bar_config(disable=True)
    expected, _ = draw(pipe, guidance_scale=1.0)  # one prompt has no padding, and so no mask, which flash cannot take
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        pipe.transformer.set_attention_backend(backend)
        frames, _ = draw(pipe, guidance_scale=1.0)
    finally:
        pipe.transformer.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(before)
    assert psnr(frames, expected) > 25
