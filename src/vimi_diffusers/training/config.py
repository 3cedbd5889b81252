# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The one configuration of all training stages: a YAML file, overridden by command-line arguments."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..prompting import TASKS
from .arguments import read_arguments
from .optimizers import OPTIMIZERS


# they only decide where a run writes, what it says and how long it goes on; `changed_arguments` knows of the last
FREE_ON_RESUME = (
    "output_dir",
    "resume_from_checkpoint",
    "allow_changed",
    "dataloader_num_workers",
    "max_bad_share",
    "logging_steps",
    "validation_steps",
    "validation_samples",
    "validation_prompts",
    "num_validation_videos",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "ema_snapshot_steps",
    "report_to",
    "tracker_project_name",
)
# a checkpoint's state has no meaning under another value
FIXED_ON_RESUME = ("freeze_conditioner", "lora", "optimizer", "loss_weighting", "ema_profiles")
PROCESSES = "num_processes"  # no argument of a run, but a checkpoint is bound to it as to one


@dataclass
class TrainingConfig:
    """
    Arguments of the training scripts. Names follow diffusers' example scripts where those have one.

    > Model

    Args:
        output_dir (`str`): Where checkpoints, logs and the final pipeline go. Shared by all machines of a run.
        pretrained_model_name_or_path (`str`, *optional*):
            A VIMI pipeline (folder or Hub id) to continue from; its EMA weights are what it stores.
        model (`dict[str, Any]`, *optional*):
            Without a pretrained pipeline: keyword arguments of `transformer`, `conditioner`, `scheduler`, and
            `vocab_size`, `image_size`, `image_patch_size`, for components built from scratch. With a pretrained
            pipeline: a `transformer` section with options to change, where the weights allow it.
        freeze_conditioner (`bool`, *optional*, defaults to `False`):
            Train the generator alone; and the layers from MLLM to C, where `model` puts new ones behind a pretrained
            MLLM.
        lora (`dict[str, Any]`, *optional*):
            Train low-rank adapters instead of the weights: for `transformer`, `text_encoder` or both a section with
            `rank`, `alpha`, `dropout` and `target_modules`, see [`add_lora`]. All other weights are frozen.

    > Data

    Args:
        train_data_dir (`str`, *optional*):
            A folder: an emoji world as `vimi emoji-world build` writes it, videos with a `metadata.jsonl`, or
            webdataset shards.
        dataset_name (`str`, *optional*): A data set of the Hub or a script, instead of a folder.
        dataset_config_name (`str`, *optional*): Which configuration of it.
        video_column (`str`, *optional*, defaults to `"video"`): Its column of videos or images.
        caption_column (`str`, *optional*, defaults to `"caption"`): Its column of captions.
        video_buckets (`list[str]`, *optional*):
            Shapes to train at, each "frames x height x width @ frames per second" as in `"16x64x64@5.333"`; without a
            rate each clip's own, one frame is an image. By default the one shape of the model.
        task_weights (`dict[str, float]`): Share of each task in a batch; stage 1 has text-to-video alone.
        max_sequence_length (`int`, *optional*, defaults to `192`): Tokens of the padded prompt, images included.
        num_images (`int`, *optional*, defaults to `2`): Image slots for each sample.
        max_context (`int`, *optional*, defaults to `0`):
            Most retrieved image-text pairs in a prompt; each sample draws its number from 0 to this. Emoji world draws
            its own.
        condition_dropout (`float`, *optional*, defaults to `0.0`):
            Share of samples that train without text and images, for classifier-free guidance.
        image_dropout (`float`, *optional*, defaults to `0.0`):
            Share of samples that keep the text and lose the images.
        num_paraphrases (`int`, *optional*):
            Wordings of an instruction to draw from, the plainest first; by default all, over a hundred for each task.
            Few of them let `condition_cache_dir` find more. Emoji world draws its own.
        condition_cache_dir (`str`, *optional*):
            Folder for what the frozen conditioner computed once, so that later epochs only read it; needs
            `freeze_conditioner`.
        max_bad_share (`float`, *optional*, defaults to `0.05`):
            Share of unusable samples over which a run stops with a report of them.
        train_batch_size (`int`, *optional*, defaults to `128`): Samples for each process and forward pass.
        dataloader_num_workers (`int`, *optional*, defaults to `4`): Processes that draw and tokenise samples.
        seed (`int`, *optional*, defaults to `0`): Seed of weights, data order and noise.

    > Optimisation

    Args:
        max_train_steps (`int`, *optional*, defaults to `10000`): Optimiser steps.
        gradient_accumulation_steps (`int`, *optional*, defaults to `1`):
            Batches whose gradients are averaged for one optimiser step.
        optimizer (`str`, *optional*, defaults to `"adamw"`):
            `"adamw"`, `"adamw8bit"` (bitsandbytes), `"lamb"` or `"muon"`, with the arguments below.
        learning_rate (`float`, *optional*, defaults to `5e-4`): Peak learning rate.
        lr_scheduler (`str`, *optional*, defaults to `"cosine"`): One of diffusers' schedules.
        lr_warmup_steps (`int`, *optional*, defaults to `500`): Linear warm-up.
        adam_beta1 (`float`, *optional*, defaults to `0.9`): Decay of the optimizer's first moment.
        adam_beta2 (`float`, *optional*, defaults to `0.99`): Decay of its second moment.
        adam_weight_decay (`float`, *optional*, defaults to `0.01`): Weight decay of matrices; vectors have none.
        adam_epsilon (`float`, *optional*, defaults to `1e-8`): Added to the root of the second moment.
        max_grad_norm (`float`, *optional*, defaults to `1.0`): Global norm that gradients are clipped to.
        loss_weighting (`str`, *optional*, defaults to `"uncertainty"`):
            `"snap"` is the paper's w(sigma); `"uncertainty"` divides each noise level's loss by a learned estimate of
            it (EDM2, 2312.02696, eq. 21), so that all levels pull equally.
        ema_decay (`float`, *optional*, defaults to `0.999`):
            Decay of the exponential moving average of the weights, warmed up; 0 keeps none.
        ema_profiles (`list[float]`, *optional*):
            Instead of it, averages with power-function profiles of these relative widths sigma_rel (EDM2, section
            3.1), from which others can be reconstructed afterwards; e.g. `[0.05, 0.1]`. The pipeline gets the first.
        ema_snapshot_steps (`int`, *optional*, defaults to `0`):
            Steps between the snapshots of `ema_profiles` that a reconstruction needs; 0 takes none.

    > Speed

    Args:
        mixed_precision (`str`, *optional*, defaults to `"no"`): `"no"` or `"bf16"`.
        compile (`bool`, *optional*, defaults to `False`): Compile the loss with `torch.compile`.
        cuda_graph (`bool`, *optional*, defaults to `False`):
            Capture the whole step as one CUDA graph; for one shape, `"adamw"` and unsharded weights.
        allow_tf32 (`bool`, *optional*, defaults to `True`): TF32 matrix products on NVIDIA GPUs.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Compute activations again in the backward pass instead of keeping them.

    > Logging and validation

    Args:
        logging_steps (`int`, *optional*, defaults to `50`): Steps between log entries.
        report_to (`str`, *optional*): Tracker of accelerate: `"tensorboard"` or `"wandb"`.
        tracker_project_name (`str`, *optional*, defaults to `"vimi"`): Name of the project in the tracker.
        validation_steps (`int`, *optional*, defaults to `0`):
            Steps between measurements of the held-out loss and sample videos; 0 switches both off.
        validation_samples (`int`, *optional*, defaults to `512`): Samples of each held-out split.
        validation_prompts (`list[str]`, *optional*): Prompts of the sample videos.
        num_validation_videos (`int`, *optional*, defaults to `4`): Sample videos at most; 0 makes none.

    > Checkpoints

    Args:
        checkpointing_steps (`int`, *optional*, defaults to `0`):
            Steps between checkpoints; 0 saves only the final pipeline.
        checkpoints_total_limit (`int`, *optional*): Older checkpoints are removed.
        resume_from_checkpoint (`str`, *optional*): A checkpoint folder, or `"latest"`.
        allow_changed (`list[str]`, *optional*):
            Arguments that may differ from those of the checkpoint; any other difference that matters is refused.
    """

    output_dir: str
    pretrained_model_name_or_path: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    freeze_conditioner: bool = False
    lora: dict[str, Any] | None = None

    train_data_dir: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    video_column: str = "video"
    caption_column: str = "caption"
    video_buckets: list[str] | None = None
    task_weights: dict[str, float] = field(default_factory=lambda: {"text-to-video": 1.0})
    max_sequence_length: int = 192
    num_images: int = 2
    max_context: int = 0
    condition_dropout: float = 0.0
    image_dropout: float = 0.0
    num_paraphrases: int | None = None
    condition_cache_dir: str | None = None
    max_bad_share: float = 0.05
    train_batch_size: int = 128
    dataloader_num_workers: int = 4
    seed: int = 0

    max_train_steps: int = 10_000
    gradient_accumulation_steps: int = 1
    optimizer: str = "adamw"
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
    ema_profiles: list[float] | None = None
    ema_snapshot_steps: int = 0

    mixed_precision: str = "no"
    compile: bool = False
    cuda_graph: bool = False
    allow_tf32: bool = True
    gradient_checkpointing: bool = False

    logging_steps: int = 50
    report_to: str | None = None
    tracker_project_name: str = "vimi"
    validation_steps: int = 0
    validation_samples: int = 512
    validation_prompts: list[str] | None = None
    num_validation_videos: int = 4

    checkpointing_steps: int = 0
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    allow_changed: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not self.pretrained_model_name_or_path and not self.model:
            raise ValueError("Give `pretrained_model_name_or_path` or a `model` section: there is nothing to train.")
        if bool(self.train_data_dir) == bool(self.dataset_name):
            raise ValueError(
                f"Give one of `train_data_dir` and `dataset_name`, got {self.train_data_dir!r} and "
                f"{self.dataset_name!r}."
            )
        self._check_numbers()
        self._check_choices()
        self._check_together()
        if self.lora is not None:
            from .lora import check_lora  # which needs the models

            check_lora(self.lora)
        for bucket in self.video_buckets or ():
            if not re.fullmatch(r"1x\d+x\d+|(?!1x)\d+x\d+x\d+(@\d+(\.\d+)?)?", bucket):
                raise ValueError(
                    f"`video_buckets` must be like '16x64x64@5.333' (frames x height x width @ frames per second) or, "
                    f"for images, '1x64x64'; got {bucket!r}."
                )

    def _check_numbers(self) -> None:
        at_least_one = (
            "max_train_steps", "train_batch_size", "max_sequence_length", "num_images", "gradient_accumulation_steps",
            "logging_steps", "validation_samples",
        )  # fmt: skip
        not_negative = (
            "max_context", "dataloader_num_workers", "learning_rate", "lr_warmup_steps", "ema_snapshot_steps",
            "validation_steps", "num_validation_videos", "checkpointing_steps",
        )  # fmt: skip
        for least, names in ((1, at_least_one), (0, not_negative)):
            for name in names:
                if not getattr(self, name) >= least:
                    raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise ValueError(f"`checkpoints_total_limit` must be at least 1, got {self.checkpoints_total_limit}.")
        for name in ("condition_dropout", "image_dropout", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {self.ema_decay}.")
        if wrong := [width for width in self.ema_profiles or () if not 0 < width <= 0.28]:
            raise ValueError(f"`ema_profiles` are relative widths over 0 and up to 0.28, got {wrong[0]}.")

    def _check_choices(self) -> None:
        choices = {
            "mixed_precision": ("no", "bf16"),
            "loss_weighting": ("snap", "uncertainty"),
            "optimizer": OPTIMIZERS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be {_either(known)}, got {getattr(self, name)!r}.")
        if unknown := set(self.task_weights) - set(TASKS):
            raise ValueError(f"Unknown tasks in `task_weights`: {sorted(unknown)}; known are {list(TASKS)}.")
        if any(weight < 0 for weight in self.task_weights.values()) or not sum(self.task_weights.values()) > 0:
            raise ValueError(f"`task_weights` must not be negative and not all 0, got {self.task_weights}.")
        known = {item.name for item in dataclasses.fields(self)} | {PROCESSES}
        if unknown := sorted(set(self.allow_changed) - known):
            raise ValueError(f"`allow_changed` names what is no argument: {', '.join(unknown)}.")
        if fixed := sorted(set(self.allow_changed) & set(FIXED_ON_RESUME)):
            raise ValueError(
                f"`{fixed[0]}` cannot change on resume: the checkpoint's state would not fit. Start from the pipeline "
                "of that run instead, with `pretrained_model_name_or_path`."
            )

    def _check_together(self) -> None:
        if self.max_context > self.num_images:
            raise ValueError(
                f"`max_context` {self.max_context} is over the {self.num_images} image slots of `num_images`."
            )
        if self.condition_dropout + self.image_dropout > 1:
            raise ValueError("`condition_dropout` and `image_dropout` are shares of one batch: their sum is over 1.")
        if self.condition_cache_dir and not self.freeze_conditioner:
            raise ValueError("`condition_cache_dir` needs `freeze_conditioner`: what is trained cannot be cached.")
        if self.freeze_conditioner and "text_encoder" in (self.lora or {}):
            raise ValueError("`freeze_conditioner` excludes a `text_encoder` section of `lora`: drop one of them.")
        if self.ema_snapshot_steps and not self.ema_profiles:
            raise ValueError("`ema_snapshot_steps` takes snapshots of `ema_profiles`: give those too.")
        if self.cuda_graph:
            for name, value in (
                ("optimizer", "adamw"),
                ("gradient_accumulation_steps", 1),
                ("gradient_checkpointing", False),
                ("condition_cache_dir", None),
            ):
                if getattr(self, name) != value:
                    raise ValueError(f"`cuda_graph` only captures a step with `{name}` {value!r}: change one of them.")
            if len(self.video_buckets or ()) > 1:
                raise ValueError(
                    "`cuda_graph` needs batches of one shape: give one of `video_buckets`, or switch it off."
                )

    @classmethod
    def from_args(cls, args: Sequence[str] | None = None, description: str | None = None) -> "TrainingConfig":
        """
        Reads `--config file.yaml` and then the other arguments, which win over the file.

        Raises:
            ValueError: For a key of the file that is no argument, and for a wrong value.
            SystemExit: For an unknown argument or a missing required one.
        """
        values, parser = read_arguments(cls, args, description)
        missing = [] if values.get("output_dir") else ["--output_dir"]
        if not values.get("train_data_dir") and not values.get("dataset_name"):
            missing.append("--train_data_dir (or --dataset_name)")
        if missing:
            parser.error(f"missing {', '.join(missing)}")
        return cls(**values)


def changed_arguments(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """
    Which arguments that matter for a resumed run differ.

    Args:
        before (`dict`): Arguments of the checkpoint; one it lacks had its default.
        now (`dict`): Arguments of this run.

    Returns:
        Old and new value by name, with the path of what differs in a nested section: `model.transformer.dropout`.
    """
    missing = dataclasses.MISSING
    defaults = {
        item.name: item.default if item.default_factory is missing else item.default_factory()
        for item in dataclasses.fields(TrainingConfig)
    }
    free = set(FREE_ON_RESUME)
    if str(now.get("lr_scheduler")).startswith("constant"):
        free.add("max_train_steps")  # other schedules end where the run does
    changed: dict[str, tuple[Any, Any]] = {}
    for name in {**now, **before}:
        if name not in free:
            _compare(name, before.get(name, defaults.get(name)), now.get(name), changed)
    return changed


def _compare(path: str, before: Any, now: Any, changed: dict[str, tuple[Any, Any]]) -> None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            _compare(f"{path}.{key}", before.get(key), now.get(key), changed)
    elif before != now:
        changed[path] = (before, now)


def _either(known: Sequence[str]) -> str:
    *others, last = map(repr, known)
    return f"{', '.join(others)} or {last}"
