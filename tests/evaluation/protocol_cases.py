"""A small protocol, data of the user for it, and a run of one process of several."""

import sys
from pathlib import Path

import yaml


TOY = {
    "name": "toy",
    "title": "Toy captions",
    "description": "A protocol for tests.",
    "source": {"kind": "captions"},
    "size": [16, 16],
    "num_frames": 4,
    "fps": 8,
    "sampling": {"num_inference_steps": 2},
    "metrics": ["dynamic_degree"],
    "not_comparable_with": ["anything published"],
}


def write_toy(folder: Path, **other) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY | other), encoding="utf-8")
    return path


def write_captions(folder: Path, number: int = 5) -> Path:
    path = folder / "captions.csv"
    rows = [f"clip{n},a red ball and a blue cube {'and a cube ' * n}" for n in range(number)]
    path.write_text("\n".join(["id,caption", *rows]) + "\n", encoding="utf-8")
    return path


def main(protocol: str, checkpoint: str, captions: str, out: str, die_after: str) -> None:
    """Generates, as one of the processes that the environment names, and is killed on the way if that is asked for."""
    import os
    import signal

    import torch
    from accelerate import PartialState

    from vimi_diffusers import VIMIPipeline
    from vimi_diffusers.evaluation.generation import generate_samples
    from vimi_diffusers.evaluation.protocols import load_protocol

    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    chosen = load_protocol(protocol)
    pipe = VIMIPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)

    def report(stage: str, done: int, total: int) -> None:
        if done == int(die_after):
            os.kill(os.getpid(), signal.SIGKILL)

    samples = chosen.source.open(chosen, {"captions": Path(captions)})
    generate_samples(chosen, pipe, samples, out, batch_size=2, state=state, report=report)
    if state.num_processes > 1:
        state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
