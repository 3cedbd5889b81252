"""Steps a second of the embedded default's training step over random batches, on one GPU or several.

python benchmarks/bench_train_step.py [--config training_scripts/configs/emoji_world_pretrain.yaml]
    [--set transformer.num_layers=3 ...]
accelerate launch --multi_gpu --num_processes 2 benchmarks/bench_train_step.py --set train_batch_size=64
"""

import argparse
import copy
import json
import os
import time

import torch
import yaml
from accelerate import Accelerator, PartialState
from torch.utils.flop_counter import FlopCounterMode

from vimi_diffusers.training.components import build_components
from vimi_diffusers.training.config import TrainingConfig
from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.training.step import TrainStep, build_optimizer


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


def measure(config: TrainingConfig, steps: int) -> dict:
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    components = build_components(config, ["a red ball and a blue cube"])
    model = VIMITrainingModel(*(components[k] for k in ("text_encoder", "transformer", "scheduler"))).to(
        accelerator.device
    )
    batch = random_batch(config, components, accelerator.device)
    small = {name: tensor[: len(tensor) // config.train_batch_size] for name, tensor in batch.items()}
    with FlopCounterMode(display=False) as counter:
        sigmas = torch.ones(1, device=accelerator.device)
        copy.deepcopy(model)(noise=torch.randn_like(small["video"]), sigmas=sigmas, **small)[0].backward()
    flops = counter.get_total_flops() * config.train_batch_size
    start = time.perf_counter()
    step = TrainStep(model, build_optimizer(model, config, accelerator.device), config, accelerator)
    for _ in range(step.warmup_steps + 3):
        step(batch)
    torch.cuda.synchronize()
    compile_seconds, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(steps):
        step(batch)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    return {
        "steps_per_s": round(1 / seconds, 2),
        "clips_per_s": round(config.train_batch_size * accelerator.num_processes / seconds),
        "gpus": accelerator.num_processes,
        "tflops_per_s_per_gpu": round(flops / seconds / 1e12, 1),
        "tflop_per_step": round(flops / 1e12, 2),
        "parameters_m": {
            name: round(sum(p.numel() for p in components[name].parameters()) / 1e6, 2)
            for name in ("text_encoder", "transformer")
        },
        "memory_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "compile_s": round(compile_seconds, 1),
        "device": torch.cuda.get_device_name(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="training_scripts/configs/emoji_world_pretrain.yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the model section, a.b=value")
    args = parser.parse_args()
    values = yaml.safe_load(open(args.config))
    for item in args.set:
        path, value = item.split("=", 1)
        target = values["model"] if path.split(".")[0] in values["model"] else values
        *parents, last = path.split(".")
        for name in parents:
            target = target[name]
        target[last] = yaml.safe_load(value)
    values.setdefault("output_dir", "unused")
    values.setdefault("train_data_dir", "unused")
    results = measure(TrainingConfig(**values), args.steps)
    if PartialState().is_main_process:
        print(json.dumps({"overrides": args.set, **results}))


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    main()
