"""Steps a second and MFU of a training step over random batches, on one GPU or several; of the embedded default's by
default.

python benchmarks/bench_train_step.py [--config training_scripts/configs/emoji_world_pretrain.yaml]
    [--set transformer.num_layers=3 ...]
accelerate launch --multi_gpu --num_processes 2 benchmarks/bench_train_step.py --set train_batch_size=64
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence

import torch
import yaml
from accelerate import Accelerator

from vimi_diffusers.training.arguments import as_type
from vimi_diffusers.training.components import build_components
from vimi_diffusers.training.config import TrainingConfig
from vimi_diffusers.training.flops import peak_flops, training_flops
from vimi_diffusers.training.loop import build_accelerator
from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.training.optimizers import build_optimizer
from vimi_diffusers.training.step import TrainStep


TEXTS = ("a red ball and a blue cube",)


def random_batch(config: TrainingConfig, components: dict, device: torch.device) -> dict[str, torch.Tensor]:
    size, count = components["transformer"].config, config.train_batch_size
    processor = components["text_processor"]
    image = processor.image_processor.crop_size["height"]
    tokens = (image // processor.patch_size) ** 2 * config.num_images
    text = config.max_sequence_length - tokens
    ids = torch.full((count, config.max_sequence_length), processor.image_token_id)
    ids[:, :text] = torch.randint(4, len(processor.tokenizer), (count, text))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, text // 2 :] = False  # prompts differ in length
    return {
        "video": torch.rand(count, 3, size.num_frames, size.height, size.width, device=device) * 2 - 1,
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "pixel_values": torch.rand(count * config.num_images, 3, image, image, device=device) * 2 - 1,
        "fps": torch.full((count,), 16 / 3, device=device),
    }


def build_step(
    config: TrainingConfig, accelerator: Accelerator, texts: Sequence[str] = TEXTS
) -> tuple[dict, VIMITrainingModel, TrainStep]:
    """Components, model and step as the training loop makes them."""
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
    with accelerator.device:  # billions of random weights take minutes on the CPU
        components = build_components(config, texts)
    components["text_encoder"].requires_grad_(not config.freeze_conditioner)
    if config.gradient_checkpointing:
        components["transformer"].enable_gradient_checkpointing()
    parts = (components[name] for name in ("text_encoder", "transformer", "scheduler"))
    model = VIMITrainingModel(*parts, config.loss_weighting).train().to(accelerator.device)
    optimizer = build_optimizer(model, config, accelerator.device)
    return components, model, TrainStep(model, optimizer, config, accelerator)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(config: TrainingConfig, steps: int, accelerator: Accelerator) -> dict:
    """Builds a step and times it over one random batch."""
    device = accelerator.device
    components, _, step = build_step(config, accelerator)
    batch = random_batch(config, components, device)
    flops = training_flops(components["transformer"], components["text_encoder"], batch)
    start = time.perf_counter()
    for _ in range(step.warmup_steps + 3):
        step(batch)
    synchronize(device)
    compile_seconds, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(steps):
        step(batch)
    synchronize(device)
    seconds = (time.perf_counter() - start) / steps
    step.close()
    peak, on_gpu = peak_flops(device), device.type == "cuda"
    return {
        "steps_per_s": round(1 / seconds, 3),
        "clips_per_s": round(config.train_batch_size * accelerator.num_processes / seconds, 2),
        "processes": accelerator.num_processes,
        "mfu": peak and round(flops / seconds / peak, 4),
        "tflops_per_s_per_gpu": round(flops / seconds / 1e12, 3),
        "tflop_per_step": round(flops / 1e12, 3),
        "parameters_m": {
            name: round(sum(p.numel() for p in components[name].parameters()) / 1e6, 2)
            for name in ("text_encoder", "transformer")
        },
        "memory_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "compile_s": round(compile_seconds, 1),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def read_config(path: str, overrides: Sequence[str]) -> TrainingConfig:
    """A configuration file with `a.b=value` overrides of its `model` section, or of itself."""
    values = yaml.safe_load(open(path))
    for item in overrides:
        name, value = item.split("=", 1)
        target = values["model"] if name.split(".")[0] in values["model"] else values
        *parents, last = name.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = yaml.safe_load(value)
    values = {"output_dir": "unused", "train_data_dir": "unused", **values}
    fields = {field.name: field for field in dataclasses.fields(TrainingConfig)}
    return TrainingConfig(**{name: as_type(fields[name], value) for name, value in values.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="training_scripts/configs/emoji_world_pretrain.yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the model section, a.b=value")
    args = parser.parse_args()
    config = read_config(args.config, args.set)
    accelerator = build_accelerator(config)
    results = measure(config, args.steps, accelerator)
    if accelerator.is_main_process:
        print(json.dumps({"overrides": args.set, **results}))


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    main()
