"""MFU on one GPU, scaling over several, and loss curves that must not depend on their number. Prints JSON lines.

MFU of the 500M base for batch sizes, with and without compilation and gradient checkpointing:
    accelerate launch --num_processes 1 benchmarks/bench_scaling.py mfu
Scaling at a fixed batch of each GPU, for each number of processes N; the table of what was written:
    accelerate launch --multi_gpu --num_processes N benchmarks/bench_scaling.py scaling --out scaling.jsonl
    python benchmarks/bench_scaling.py table scaling.jsonl
Loss curves at one global batch, for each N, of which a second seed on one process shows the noise; the plot of them:
    accelerate launch --multi_gpu --num_processes N benchmarks/bench_scaling.py curves --out curves_N.json
    accelerate launch --num_processes 1 benchmarks/bench_scaling.py curves --seed 1 --out curves_seed.json
    python benchmarks/bench_scaling.py plot curves_*.json --out curves.png
"""

import argparse
import dataclasses
import itertools
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from bench_train_step import build_step, measure, read_config, synchronize

from vimi_diffusers.training.config import TrainingConfig
from vimi_diffusers.training.loop import build_accelerator
from vimi_diffusers.training.validation import held_out_errors


BASE = "training_scripts/configs/base_500m_pretrain.yaml"
SMALL = "training_scripts/configs/emoji_world_pretrain.yaml"
# the generator alone is measured: C comes from a small frozen conditioner in place of the 7B model, as from a cache
STAND_IN = (
    "conditioner={vision_dim: 64, vision_layers: 1, text_dim: 64, text_layers: 1}",
    "max_sequence_length=512",
    "num_images=1",
    "max_context=1",
    "gradient_accumulation_steps=1",
    "optimizer=adamw",
    "learning_rate=1.0e-4",
)
COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "yellow": (1, 1, -1), "white": (1, 1, 1)}
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def emit(values: dict, out: str | None, accelerator: Accelerator) -> None:
    """One line on the screen, and of the file if there is one."""
    if accelerator.is_main_process:
        line = json.dumps(values)
        print(line, flush=True)
        if out:
            with open(out, "a") as file:
                file.write(line + "\n")


# ------------------------------------------------------------------ speed
def run_mfu(args: argparse.Namespace) -> None:
    """Every combination of the switches; one that does not fit into memory says so."""
    config = read_config(args.config, [*args.stand_in, *args.set])
    accelerator = build_accelerator(config)
    for compiled, checkpointing, batch in itertools.product(args.compile, args.gradient_checkpointing, args.batches):
        switches = {"compile": compiled, "gradient_checkpointing": checkpointing, "train_batch_size": batch}
        torch.compiler.reset()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            results = measure(dataclasses.replace(config, **switches), args.steps, accelerator)
        except torch.cuda.OutOfMemoryError:
            results = {"error": "out of memory"}
        accelerator.free_memory()
        emit({"bench": "mfu", "config": Path(args.config).stem, **switches, **results}, args.out, accelerator)


def run_scaling(args: argparse.Namespace) -> None:
    """One setting; run it for several numbers of processes."""
    config = read_config(args.config, [*args.stand_in, *args.set])
    switches = {"train_batch_size": args.batch, "compile": args.compile}
    switches["gradient_checkpointing"] = args.gradient_checkpointing
    accelerator = build_accelerator(config)
    results = measure(dataclasses.replace(config, **switches), args.steps, accelerator)
    emit({"bench": "scaling", "config": Path(args.config).stem, **switches, **results}, args.out, accelerator)


def run_table(args: argparse.Namespace) -> None:
    """Efficiency: clips a second over those of one process times their number."""
    rows = [json.loads(line) for path in args.files for line in Path(path).read_text().splitlines()]
    rows = sorted((row for row in rows if row["bench"] == "scaling"), key=lambda row: row["processes"])
    if not rows or rows[0]["processes"] != 1:
        raise ValueError(f"{', '.join(args.files)} hold no scaling result of one process: run that first.")
    for row in rows:
        efficiency = row["clips_per_s"] / row["processes"] / rows[0]["clips_per_s"]
        print(json.dumps({**{key: row[key] for key in ("processes", "clips_per_s", "mfu")},
                          "efficiency": round(efficiency, 4)}))  # fmt: skip


# ------------------------------------------------------------------ curves
class MovingSquares:
    """
    A small world that needs no files: squares of some colours that move in some direction, and their captions. Sample
    `i` depends on `i` and the seed alone.
    """

    def __init__(self, config: TrainingConfig, components: dict, device: torch.device):
        self.config, self.device = config, device
        self.size, self.tokenizer = components["transformer"].config, components["text_processor"].tokenizer

    def batch(self, first: int, count: int, seed: int) -> dict[str, torch.Tensor]:
        """Samples `first` to `first + count`."""
        videos, texts = [], []
        for number in range(first, first + count):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            colour, move = (
                list(names)[int(torch.randint(len(names), (), generator=generator))] for names in (COLOURS, MOVES)
            )
            start = torch.rand(2, generator=generator) * 0.5 + 0.25
            videos.append(self._video(colour, move, start))
            texts.append(f"a {colour} square is moving {move}")
        encoded = self.tokenizer(
            texts, padding="max_length", max_length=self.config.max_sequence_length, return_tensors="pt"
        )
        return {
            "video": torch.stack(videos).to(self.device),
            "input_ids": encoded["input_ids"].to(self.device),
            "attention_mask": encoded["attention_mask"].to(self.device),
            "pixel_values": None,
            "fps": torch.full((count,), 16 / 3, device=self.device),
        }

    def _video(self, colour: str, move: str, start: torch.Tensor) -> torch.Tensor:
        time = torch.linspace(-0.5, 0.5, self.size.num_frames)
        down, right = (start[axis] + 0.4 * MOVES[move][axis] * time for axis in (0, 1))
        rows = (torch.arange(self.size.height) + 0.5) / self.size.height
        columns = (torch.arange(self.size.width) + 0.5) / self.size.width
        inside = ((rows - down[:, None]).abs() < 0.12)[:, :, None] & ((columns - right[:, None]).abs() < 0.12)[:, None]
        return torch.where(inside, torch.tensor(COLOURS[colour])[:, None, None, None], -0.6).float()


def captions() -> list[str]:
    return [f"a {colour} square is moving {move}" for colour in COLOURS for move in MOVES]


def run_curves(args: argparse.Namespace) -> None:
    """Trains for some steps at a fixed global batch and writes errors of training and of held-out samples."""
    settings = ["max_sequence_length=32", "cuda_graph=false", f"compile={str(args.compile).lower()}"]
    config = read_config(args.config, [*settings, f"learning_rate={args.learning_rate}", *args.set])
    config = dataclasses.replace(config, seed=args.seed)
    accelerator = build_accelerator(config)
    if args.global_batch % accelerator.num_processes:
        raise ValueError(
            f"`--global_batch` {args.global_batch} is no multiple of {accelerator.num_processes} processes."
        )
    own = args.global_batch // accelerator.num_processes
    config = dataclasses.replace(config, train_batch_size=own)
    components, model, step = build_step(config, accelerator, captions())
    data = MovingSquares(config, components, accelerator.device)
    held_out = [("squares", data.batch(0, args.held_out, seed=10_000))]  # the same for every seed
    set_seed(config.seed, device_specific=accelerator.num_processes > 1)
    records, errors = [], torch.zeros((), device=accelerator.device)
    for number in range(args.steps):
        first = (number * accelerator.num_processes + accelerator.process_index) * own
        errors += step(data.batch(first, own, config.seed))["error"].mean()
        if (number + 1) % args.every == 0:
            synchronize(accelerator.device)
            error = accelerator.reduce(errors / args.every, "mean").item()
            measured = held_out_errors(model, held_out, accelerator.autocast)["held_out/squares"]
            records.append({"step": number + 1, "error": round(error, 6), "held_out": round(measured, 6)})
            errors.zero_()
    step.close()
    setting = {"processes": accelerator.num_processes, "global_batch": args.global_batch, "seed": args.seed}
    if accelerator.is_main_process:
        if args.out:
            Path(args.out).write_text(json.dumps({**setting, "records": records}, indent=1))
        print(json.dumps({"bench": "curves", **setting, **records[-1]}), flush=True)


def run_plot(args: argparse.Namespace) -> None:
    """Curves of all files in one picture; and how far the last held-out errors lie apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = sorted((json.loads(Path(path).read_text()) for path in args.files), key=lambda run: run["processes"])
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for run in runs:
        label = f"{run['processes']} process{'es' if run['processes'] > 1 else ''}, seed {run['seed']}"
        for axis, name in zip(axes, ("error", "held_out")):
            steps = [record["step"] for record in run["records"]]
            axis.plot(steps, [record[name] for record in run["records"]], linewidth=1, label=label)
    for axis, title in zip(axes, ("training", "held-out samples")):
        axis.set(yscale="log", xlabel=f"step (global batch {runs[0]['global_batch']})", title=title)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("error in F space")
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    first = runs[0]["records"][-1]["held_out"]
    for run in runs:
        last = run["records"][-1]["held_out"]
        print(json.dumps({"bench": "curves", "processes": run["processes"], "seed": run["seed"], "held_out": last,
                          "to_one_process": round(last / first - 1, 4)}))  # fmt: skip


# ------------------------------------------------------------------ arguments
def flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text == "true"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    both = {"type": flag, "nargs": "+", "metavar": "true|false"}
    mfu, scaling, curves = (kinds.add_parser(name) for name in ("mfu", "scaling", "curves"))
    for kind, config, steps in ((mfu, BASE, 20), (scaling, BASE, 30), (curves, SMALL, 400)):
        kind.add_argument("--config", default=config)
        kind.add_argument("--steps", type=int, default=steps)
        kind.add_argument("--out", help="file to write to as well")
        kind.add_argument("--set", nargs="*", default=[], help="overrides of the configuration, a.b=value")
        kind.add_argument("--stand_in", nargs="*", default=STAND_IN, help="overrides that come before those")
    mfu.add_argument("--compile", default=[True, False], **both)
    mfu.add_argument("--gradient_checkpointing", default=[False, True], **both)
    mfu.add_argument("--batches", type=int, nargs="+", default=[32, 64], help="samples of the GPU")
    scaling.add_argument("--batch", type=int, default=64, help="samples of each GPU")
    for kind, compiled in ((scaling, True), (curves, False)):
        kind.add_argument("--compile", type=flag, default=compiled, metavar="true|false")
    scaling.add_argument("--gradient_checkpointing", type=flag, default=False, metavar="true|false")
    curves.add_argument("--global_batch", type=int, default=128)
    curves.add_argument("--learning_rate", type=float, default=5e-4)
    curves.add_argument("--seed", type=int, default=0)
    curves.add_argument("--every", type=int, default=10, help="steps between two points")
    curves.add_argument("--held_out", type=int, default=256, help="held-out samples")
    for name in ("table", "plot"):
        kind = kinds.add_parser(name)
        kind.add_argument("files", nargs="+")
        if name == "plot":
            kind.add_argument("--out", required=True)
    args = parser.parse_args()
    runs = {"mfu": run_mfu, "scaling": run_scaling, "curves": run_curves, "table": run_table, "plot": run_plot}
    runs[args.kind](args)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    main()
