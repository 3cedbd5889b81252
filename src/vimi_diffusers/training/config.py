# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The one configuration of both training stages: a YAML file, overridden by command-line arguments."""

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml

from ..prompting import TASKS


@dataclass
class TrainingConfig:
    """
    Arguments of the training scripts. Names follow diffusers' example scripts where those have one.

    > Model

    Args:
        output_dir (`str`): Where checkpoints, logs and the final pipeline go.
        pretrained_model_name_or_path (`str`, *optional*):
            A VIMI pipeline (folder or Hub id) to continue from; its EMA weights are what it stores.
        model (`dict`, *optional*):
            Without a pretrained pipeline: keyword arguments of `transformer`, `conditioner`, `scheduler` and
            `vocab_size` for components built from scratch. With a pretrained pipeline: a `transformer` section with
            options to change, where the weights allow it.
        freeze_conditioner (`bool`, *optional*, defaults to `False`): Train the generator alone.

    > Data

    Args:
        train_data_dir (`str`): An emoji world folder, as `vimi emoji-world build` writes it.
        task_weights (`dict[str, float]`): Share of each task in a batch; stage 1 has text-to-video alone.
        max_sequence_length (`int`): Tokens of the padded prompt, images included.
        num_images (`int`): Image slots for each sample.
        train_batch_size (`int`): Samples for each process and step.
        dataloader_num_workers (`int`): Processes that draw and tokenise samples.
        seed (`int`): Seed of weights, data order and noise.

    > Optimisation

    Args:
        max_train_steps (`int`): Optimiser steps.
        learning_rate (`float`): Peak learning rate of AdamW.
        lr_scheduler (`str`): One of diffusers' schedules.
        lr_warmup_steps (`int`): Linear warm-up.
        adam_beta1 (`float`), adam_beta2 (`float`), adam_weight_decay (`float`), adam_epsilon (`float`): AdamW.
        max_grad_norm (`float`): Global norm that gradients are clipped to.
        loss_weighting (`str`):
            `"snap"` is the paper's w(sigma); `"uncertainty"` divides each noise level's loss by a learned estimate of
            it (EDM2, 2312.02696, eq. 21), so that all levels pull equally.
        ema_decay (`float`): Decay of the exponential moving average of the weights, warmed up.

    > Speed

    Args:
        mixed_precision (`str`): `"no"` or `"bf16"`.
        compile (`bool`): Compile the loss with `torch.compile`.
        cuda_graph (`bool`): Capture the whole step as one CUDA graph.
        allow_tf32 (`bool`): TF32 matrix products on NVIDIA GPUs.

    > Logging and checkpoints

    Args:
        logging_steps (`int`): Steps between log entries.
        validation_steps (`int`): Steps between measurements of the held-out loss; 0 switches it off.
        validation_samples (`int`): Samples of each held-out split.
        checkpointing_steps (`int`): Steps between checkpoints; 0 saves only the final pipeline.
        checkpoints_total_limit (`int`, *optional*): Older checkpoints are removed.
        resume_from_checkpoint (`str`, *optional*): A checkpoint folder, or `"latest"`.
        report_to (`str`, *optional*): Tracker of accelerate, e.g. `"tensorboard"`.
    """

    output_dir: str
    train_data_dir: str
    pretrained_model_name_or_path: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    freeze_conditioner: bool = False

    task_weights: dict[str, float] = field(default_factory=lambda: {"text-to-video": 1.0})
    max_sequence_length: int = 192
    num_images: int = 2
    train_batch_size: int = 128
    dataloader_num_workers: int = 4
    seed: int = 0

    max_train_steps: int = 10_000
    learning_rate: float = 5e-4
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 500
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    loss_weighting: str = "uncertainty"
    ema_decay: float = 0.999

    mixed_precision: str = "no"
    compile: bool = False
    cuda_graph: bool = False
    allow_tf32: bool = True

    logging_steps: int = 50
    validation_steps: int = 0
    validation_samples: int = 512
    checkpointing_steps: int = 0
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    report_to: str | None = None

    def __post_init__(self):
        unknown = set(self.task_weights) - set(TASKS)
        if unknown:
            raise ValueError(f"Unknown tasks in `task_weights`: {sorted(unknown)}; known are {list(TASKS)}.")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"`mixed_precision` must be 'no' or 'bf16', got {self.mixed_precision!r}.")
        if self.loss_weighting not in ("snap", "uncertainty"):
            raise ValueError(f"`loss_weighting` must be 'snap' or 'uncertainty', got {self.loss_weighting!r}.")
        if not self.pretrained_model_name_or_path and not self.model:
            raise ValueError("Give `pretrained_model_name_or_path` or a `model` section: there is nothing to train.")
        for name in ("max_train_steps", "train_batch_size", "max_sequence_length", "num_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @classmethod
    def from_args(cls, args: Sequence[str] | None = None, description: str | None = None) -> "TrainingConfig":
        """
        Reads `--config file.yaml` and then the other arguments, which win over the file.

        Raises:
            ValueError: For a key of the file that is no argument.
            SystemExit: For an unknown argument or a missing required one.
        """
        parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
        parser.add_argument("--config", type=Path, help="YAML file with any of the arguments below.")
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for item in fields.values():
            parser.add_argument(f"--{item.name}", type=yaml.safe_load, default=argparse.SUPPRESS, help=str(item.type))
        given = vars(parser.parse_args(args))
        path = given.pop("config")
        values = _read_yaml(path) if path else {}
        if unknown := sorted(set(values) - set(fields)):
            raise ValueError(f"Unknown keys in {path}: {', '.join(unknown)}.")
        values.update(given)
        if missing := [name for name in ("output_dir", "train_data_dir") if not values.get(name)]:
            parser.error(f"missing {', '.join('--' + name for name in missing)}")
        return cls(**{name: _as_type(fields[name], value) for name, value in values.items()})


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"No configuration file at {path}.")
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of arguments, not a {type(values).__name__}.")
    return values


def _as_type(item: dataclasses.Field, value: Any) -> Any:
    """Checks a value's type. YAML reads `5e-4` as text, `1` as an integer and `no` as false: that is put right."""
    types = get_args(item.type) if isinstance(item.type, UnionType) else (get_origin(item.type) or item.type,)
    if float in types and not isinstance(value, bool):
        with suppress(TypeError, ValueError):
            value = float(value)
    if item.name == "mixed_precision" and value is False:
        value = "no"
    if not isinstance(value, types) or isinstance(value, bool) and bool not in types:
        names = " or ".join("null" if each is NoneType else each.__name__ for each in types)
        raise ValueError(f"`{item.name}` must be of type {names}, got {value!r}.")
    return value
