"""Speed, memory and fidelity of diffusers' accelerators in the sampling loop, against the plain loop of the same run.

python benchmarks/bench_pipeline.py [--model folder] [--steps 24] [--batch_size 128] [--out results.json]

Three tables: trained weights compiled, for one video and for many; trained weights with step caches (PSNR against
the uncached video); `base-500m` with fresh weights under each way to save memory.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline, VIMITransformer3DModel, default_checkpoint
from vimi_diffusers.vimi.tiny import build_conditioner, build_text_processor, build_tokenizer


PROMPTS = ("A fox runs through a park", "A sea turtle glides along a beach", "A balloon rises over a city")


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * (one - other).square().mean().log10().item()


def sample(pipe: VIMIPipeline, steps: int, batch_size: int, repeats: int = 1) -> dict:
    """Seconds (of the fastest of `repeats` runs after a first one), peak memory and the frames."""
    device = pipe._execution_device
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch_size)]
    seconds = []
    for repeat in range(repeats + 1):
        generator = torch.Generator().manual_seed(0)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        frames = pipe(prompts, num_inference_steps=steps, generator=generator, output_type="pt").frames
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds[1:] or seconds),
        "first_seconds": seconds[0],
        "peak_gb": torch.cuda.max_memory_allocated(device) / 2**30,
        "frames": frames.float().cpu(),
    }


def row(name: str, result: dict, plain: dict, fidelity: bool = True, **more: object) -> dict:
    values = {
        "name": name,
        "seconds": round(result["seconds"], 4),
        "speed": round(plain["seconds"] / result["seconds"], 2),
        "peak_gb": round(result["peak_gb"], 2),
        **more,
    }
    if fidelity and result is not plain:
        values["psnr"] = round(psnr(result["frames"], plain["frames"]), 1)
    print(json.dumps(values), flush=True)
    return values


def load(model: str, dtype: torch.dtype) -> VIMIPipeline:
    pipe = VIMIPipeline.from_pretrained(model, dtype=dtype).to("cuda")
    pipe.scheduler = EDMVideoScheduler.from_config(pipe.scheduler.config, solver="euler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compiled(model: str, steps: int, batch_size: int, whole: bool) -> list[dict]:
    """Compiled blocks and, with `whole`, the compiled generator: one graph each, never a second compilation."""
    plain = sample(load(model, torch.bfloat16), steps, batch_size)
    rows = [row("bf16", plain, plain), row("fp32", sample(load(model, torch.float32), steps, batch_size), plain)]
    ways = {"compile_repeated_blocks": lambda model: model.compile_repeated_blocks(fullgraph=True)}
    if whole:
        ways["compile"] = lambda model: model.compile(fullgraph=True)
        ways["compile, reduce-overhead"] = lambda model: model.compile(fullgraph=True, mode="reduce-overhead")
    for name, compile_it in ways.items():
        pipe = load(model, torch.bfloat16)
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        compile_it(pipe.transformer)
        with torch._dynamo.config.patch(error_on_recompile=True):
            result = sample(pipe, steps, batch_size, repeats=2)
            sample(pipe, steps // 2, batch_size, repeats=0)  # other steps are no reason to compile again
        counters = torch._dynamo.utils.counters
        more = {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}
        rows.append(row(name, result, plain, first_seconds=round(result["first_seconds"], 1), **more))
    torch.compiler.reset()
    return rows


def caches(steps: int) -> dict[str, Callable[[VIMIPipeline], object]]:
    """Settings for timesteps of `ln(sigma) / 4`."""

    def everywhere(skip: int) -> dict:
        names = [f"{kind}_attention" for kind in ("spatial", "cross")]
        return {f"{name}_block_skip_range": skip for name in names} | {
            f"{name}_timestep_skip_range": (-10, 10) for name in names
        }

    def sigma(pipe: VIMIPipeline) -> Callable[[], float]:
        return lambda: float(pipe.current_timestep)

    return {
        "FirstBlockCache 0.1": lambda pipe: FirstBlockCacheConfig(threshold=0.1),
        "FirstBlockCache 0.2": lambda pipe: FirstBlockCacheConfig(threshold=0.2),
        "TaylorSeerCache every 2": lambda pipe: TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=6, max_order=1
        ),
        "TaylorSeerCache every 3": lambda pipe: TaylorSeerCacheConfig(
            cache_interval=3, disable_cache_before_step=6, max_order=1
        ),
        "PyramidAttentionBroadcast 2": lambda pipe: PyramidAttentionBroadcastConfig(
            **everywhere(2), current_timestep_callback=sigma(pipe)
        ),
        "MagCache": lambda pipe: MagCacheConfig(
            num_inference_steps=steps, retention_ratio=0.25, threshold=0.1, max_skip_steps=2, mag_ratios=[1.0] * steps
        ),
        "SeaCache 0.5": lambda pipe: SeaCacheConfig(
            threshold=0.5, raw_vision_callback=lambda module, args, kwargs: list(kwargs["hidden_states"])
        ),
        "FasterCache": lambda pipe: FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-10, 0),
            unconditional_batch_skip_range=2,
            unconditional_batch_timestep_skip_range=(-10, 0),
            current_timestep_callback=sigma(pipe),
            attention_weight_callback=lambda module: 0.5,
        ),
    }


def cached(model: str, steps: int, batch_size: int) -> list[dict]:
    """Step caches on trained weights; what another seed's video has as PSNR is the floor."""
    pipe = load(model, torch.bfloat16)
    plain = sample(pipe, steps, batch_size)
    rows = [row("no cache", plain, plain)]
    for name, config in caches(steps).items():
        pipe.transformer.enable_cache(config(pipe))
        try:
            rows.append(row(name, sample(pipe, steps, batch_size), plain))
        finally:
            pipe.transformer.disable_cache()
    rows.append(row("half the steps, no cache", sample(pipe, steps // 2, batch_size), plain))
    rolled = {**plain, "frames": plain["frames"].roll(1, dims=0)}
    rows.append(row("(another prompt's video)", rolled, plain))
    return rows


def large() -> VIMIPipeline:
    """`base-500m` with fresh weights, in bf16 on the CPU."""
    torch.manual_seed(0)
    transformer = VIMITransformer3DModel.from_preset("base-500m")
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
    processor = build_text_processor(build_tokenizer(PROMPTS))
    conditioner = build_conditioner(processor, output_dim=transformer.config.condition_dim)
    scheduler = EDMVideoScheduler(solver="euler")
    pipe = VIMIPipeline(
        text_encoder=conditioner, text_processor=processor, transformer=transformer, scheduler=scheduler
    ).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def offloaded(steps: int, batch_size: int) -> list[dict]:
    """Ways to save memory on the 500M generator: time and peak memory."""

    def group(pipe: VIMIPipeline, **options: object) -> None:
        pipe.enable_group_offload(torch.device("cuda"), use_stream=True, record_stream=True, **options)

    def casting(pipe: VIMIPipeline) -> None:
        pipe.to("cuda")
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)

    ways = {
        "on the GPU": lambda pipe: pipe.to("cuda"),
        "enable_layerwise_casting, float8": casting,
        "enable_model_cpu_offload": lambda pipe: pipe.enable_model_cpu_offload(),
        "enable_group_offload, blocks": lambda pipe: group(pipe, offload_type="block_level", num_blocks_per_group=1),
        "enable_group_offload, leaves": lambda pipe: group(pipe, offload_type="leaf_level"),
        "enable_sequential_cpu_offload": lambda pipe: pipe.enable_sequential_cpu_offload(),
    }
    rows, plain, pipe = [], None, None
    for name, prepare in ways.items():
        del pipe
        gc.collect()  # hooks and their models hold each other
        torch.cuda.empty_cache()
        pipe = large()
        prepare(pipe)
        result = sample(pipe, steps, batch_size)
        plain = plain or result
        rows.append(row(name, result, plain))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=default_checkpoint(), help="Pipeline with trained weights.")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=128, help="Videos at once, enough to fill the GPU.")
    parser.add_argument("--out", type=Path, help="JSON file for the three tables.")
    args = parser.parse_args()
    tables = {
        "device": torch.cuda.get_device_name(),
        "steps": args.steps,
        "batch_size": args.batch_size,
        "compiled, one video": compiled(args.model, args.steps, 1, whole=True),
        "compiled": compiled(args.model, args.steps, args.batch_size, whole=False),
        "cached": cached(args.model, args.steps, args.batch_size),
        "offloaded": offloaded(8, 4),
    }
    if args.out:
        args.out.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
