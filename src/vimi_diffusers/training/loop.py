# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop of all stages."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from diffusers.optimization import get_scheduler
from torch import nn

from ..data import VideoData
from ..vimi.pipeline_vimi import VIMIPipeline
from .averages import applied, build_ema
from .checkpoints import show_folder
from .components import build_components, freeze_conditioner, plain_components
from .condition_cache import ConditionCache
from .config import TrainingConfig
from .data import TrainingData
from .lora import add_lora, save_lora
from .metrics import StepMeter
from .objective import VIMITrainingModel
from .optimizers import build_optimizer
from .progress import Progress
from .samples import SampleLogger, held_out_requests, prompt_requests
from .sharding import build_whole_weights, check_sharding, is_sharded
from .state import TrainingState, find_run
from .step import TrainStep
from .validation import held_out_errors


class Trainer:
    """
    One run: its parts, and the loop over them. `make_data`, `make_components`, `make_model` and `pipeline_class` are
    what a stage with other data or another objective overrides.

    Args:
        config ([`TrainingConfig`]): The run.

    Attributes:
        components (`dict`): Parts of the pipeline.
        model (`nn.Module`): The training model, bare.
        step ([`TrainStep`]): One step of the optimiser.
        condition_cache ([`ConditionCache`], *optional*): What the frozen conditioner computed.
        ema ([`DecayEMA`] or [`PowerEMA`], *optional*): The averaged weights.
        state ([`TrainingState`]): What a checkpoint holds.
    """

    pipeline_class: type = VIMIPipeline

    def __init__(self, config: TrainingConfig):
        # transformers' shape checks read values on the host, which a captured step cannot
        os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1" if config.cuda_graph else "0")
        self.config = config
        self.accelerator = build_accelerator(config)
        found = find_run(config, self.accelerator)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        set_seed(config.seed)  # the same weights in every process
        self.data = self.make_data()
        self.components = self.make_components(self.data.texts())
        self.prepare_components()
        chat = self.components["text_encoder"].config.crop_start > 0
        self.data.bind(self.components["text_processor"], self.components["transformer"], chat)
        self.model = self.make_model(self.components)
        self.model.train()
        if not is_sharded(self.accelerator):  # else each process gets its part alone
            self.model.to(self.accelerator.device)
        self.condition_cache = self.make_cache()
        self.make_step()
        self.ema = build_ema(self.components, config)
        self.state = TrainingState(config, self.accelerator, self.model, self.step, self.ema)
        if found:
            self.state.load(found)
        elif self.accelerator.num_processes > 1:
            set_seed(config.seed, device_specific=True)  # other noise in each

    # ------------------------------------------------------------------ parts
    def make_data(self) -> Any:
        """The source of batches: an emoji world, or videos."""
        config = self.config
        folder = Path(config.train_data_dir) if config.train_data_dir else None
        if folder and not folder.exists():
            raise FileNotFoundError(f"`train_data_dir` {folder} does not exist.")
        if not (folder and (folder / "manifest.json").is_file() and (folder / "concepts.jsonl").is_file()):
            return VideoData.from_config(config, self.accelerator)
        if config.condition_cache_dir:
            raise ValueError("Emoji world draws each image anew, so nothing recurs: leave `condition_cache_dir` out.")
        for name in ("video_buckets", "max_context", "condition_dropout", "image_dropout", "num_paraphrases"):
            if getattr(config, name):
                raise ValueError(f"Emoji world draws its own shapes, context and dropout: leave `{name}` out.")
        return TrainingData(config, self.accelerator)

    def make_components(self, texts: Iterable[str]) -> dict[str, Any]:
        """The pipeline's components; `texts` are for a new tokenizer."""
        return build_components(self.config, texts)

    def prepare_components(self) -> None:
        """Says what of the components trains, and how."""
        config = self.config
        text_encoder, transformer = self.components["text_encoder"], self.components["transformer"]
        positions = text_encoder.config.mllm_config.get_text_config().max_position_embeddings
        if config.max_sequence_length > positions:
            raise ValueError(
                f"`max_sequence_length` {config.max_sequence_length} is over the model's {positions} positions."
            )
        if config.lora:
            add_lora(self.components, config.lora)
        elif config.freeze_conditioner:
            freeze_conditioner(text_encoder, config)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
            if any(parameter.requires_grad for parameter in text_encoder.parameters()):
                text_encoder.gradient_checkpointing_enable({"use_reentrant": False})

    def make_model(self, components: dict[str, Any]) -> nn.Module:
        """The loss as one module."""
        parts = (components[name] for name in ("text_encoder", "transformer", "scheduler"))
        return VIMITrainingModel(*parts, self.config.loss_weighting)

    def make_cache(self) -> ConditionCache | None:
        """What keeps the frozen conditioner's results on disk, if `condition_cache_dir` says where."""
        config = self.config
        if not config.condition_cache_dir:
            return None
        dtype = torch.bfloat16 if config.mixed_precision == "bf16" else None
        parts = (self.components[name] for name in ("text_encoder", "text_processor"))
        return ConditionCache(config.condition_cache_dir, *parts, dtype=dtype)

    def make_step(self) -> None:
        """Optimizer, schedule, and the step over them; shards the model if accelerate is told so."""
        config = self.config
        optimizer = build_optimizer(self.model, config, self.accelerator.device)
        lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.step = TrainStep(self.model, optimizer, config, self.accelerator, lr_scheduler)

    @property
    def global_step(self) -> int:
        """Steps of the optimiser so far."""
        return self.state.global_step

    # ------------------------------------------------------------------ the loop
    def run(self) -> Path:
        """Trains to `max_train_steps` and returns the folder of the result: a pipeline, or LoRA weights."""
        config, accelerator = self.config, self.accelerator
        if config.report_to:
            tracked = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, (int, float, str))}
            accelerator.init_trackers(config.tracker_project_name, config=tracked)
        sampler = self.sample_logger() if config.validation_steps else None
        progress = Progress(config.max_train_steps, self.global_step, enabled=accelerator.is_local_main_process)
        meter = StepMeter(self.components, accelerator.device, progress, accelerator.num_processes)
        for batches in self.batches():
            output = self.step(*batches)
            self.step.lr_scheduler.step()
            self.state.global_step += 1
            if self.ema:
                self.ema.update(self.global_step)
            meter.add(output, batches)
            if self.global_step % config.logging_steps == 0:
                logs = meter.logs(output, self.global_step)
                logs["lr"] = float(self.step.lr_scheduler.get_last_lr()[0])
                accelerator.log(logs, step=self.global_step)
            with progress.paused():
                self.validate(sampler)
                self.save()
        progress.close()
        folder = self.save_result()
        self.step.close()
        accelerator.end_training()
        return folder

    def batches(self) -> Iterator[tuple[dict[str, torch.Tensor], ...]]:
        """The batches of each step that is left."""
        count = self.config.gradient_accumulation_steps
        single = map(self.encode, self.data.batches(start_step=self.global_step * count))
        return islice(zip(*[single] * count), max(self.config.max_train_steps - self.global_step, 0))

    def encode(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """With a condition cache, C in place of the texts and images of a batch."""
        if self.condition_cache is None:
            return batch
        # compiled steps have one shape; learned queries have one anyway
        fixed = self.config.compile and not self.components["text_encoder"].config.num_queries
        embeds, mask = self.condition_cache(
            batch.pop("texts"), batch.pop("images"), self.config.max_sequence_length if fixed else None
        )
        return {**batch, "prompt_embeds": embeds, "prompt_attention_mask": mask}

    # ------------------------------------------------------------------ validation
    def validate(self, sampler: SampleLogger | None) -> None:
        """Logs the held-out loss and sample videos of the averaged weights, if the step is due or the last one."""
        config, last = self.config, self.global_step == self.config.max_train_steps
        if not config.validation_steps or (self.global_step % config.validation_steps and not last):
            return
        with applied(self.ema):
            batches = self.data.held_out(config.validation_samples, config.train_batch_size)
            self.accelerator.log(held_out_errors(self.model, batches, self.autocast), step=self.global_step)
            if sampler:
                sampler(self.global_step)

    def sample_logger(self) -> SampleLogger:
        """Makes sample videos of `validation_prompts`, or of held-out samples."""
        config, processor = self.config, self.components["text_processor"]
        number = config.num_validation_videos
        if config.validation_prompts:
            requests = prompt_requests(config.validation_prompts, number)
        else:
            batches = self.data.held_out(number, number) if number else iter(())
            requests = held_out_requests(batches, processor, number, getattr(self.model, "base_size", None))
        return SampleLogger(
            self.model,
            processor,
            self.accelerator,
            config.output_dir,
            requests,
            self.pipeline_class,
            seed=config.seed,
            autocast=self.autocast,
        )

    def autocast(self) -> torch.autocast:
        """Context of `mixed_precision`."""
        mixed = self.config.mixed_precision != "no"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=mixed)

    # ------------------------------------------------------------------ results
    def save(self) -> None:
        """Writes a snapshot of the averages and a checkpoint, if the step is due."""
        config, step = self.config, self.global_step
        if config.ema_snapshot_steps and (step % config.ema_snapshot_steps == 0 or step == config.max_train_steps):
            self.ema.save_snapshot(Path(config.output_dir) / "ema", self.accelerator.is_main_process)
            self.accelerator.wait_for_everyone()
        if config.checkpointing_steps and step % config.checkpointing_steps == 0:
            self.state.save()

    def save_result(self) -> Path:
        """
        Saves the averaged weights as a pipeline folder, or with `lora` the adapters alone, whole or not at all. Every
        process must call it.
        """
        folder = Path(self.config.output_dir) / ("lora" if self.config.lora else "pipeline")
        with applied(self.ema):
            components = self.components
            if self.step.sharded:
                components = plain_components(components, self.accelerator.get_state_dict(self.step.forward))
            if self.accelerator.is_main_process and self.config.lora:
                save_lora(components, folder)
            elif self.accelerator.is_main_process:
                hidden = folder.with_name(f".{folder.name}.partial")
                shutil.rmtree(hidden, ignore_errors=True)  # of a run that was cut off
                self.pipeline_class(**components).save_pretrained(hidden)
                show_folder(hidden, folder)
        self.accelerator.wait_for_everyone()
        return folder


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """
    The processes and devices that the launcher gives.

    Raises:
        ValueError: If `report_to` is no installed tracker, or the run wants what these devices cannot do.
    """
    if config.report_to:
        if config.report_to not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"`report_to` must be one of {known}, got {config.report_to!r}.")
        if config.report_to not in [tracker.value for tracker in get_available_trackers()]:
            raise ValueError(f"`report_to` {config.report_to!r} is not installed: `pip install {config.report_to}`.")
    # with sharded weights the step computes in bf16 by autocast alone, see `TrainStep`
    sharded = any(os.environ.get(f"ACCELERATE_USE_{kind}", "false") == "true" for kind in ("FSDP", "DEEPSPEED"))
    accelerator = Accelerator(
        mixed_precision="no" if sharded else config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,  # the loop steps it once, not once for each process
        log_with=config.report_to,
        project_dir=str(Path(config.output_dir) / "logs"),
        # a CLIP tower has a norm that only its pooled output uses
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if config.cuda_graph and accelerator.device.type != "cuda":
        raise ValueError(f"`cuda_graph` needs a GPU, the device is {accelerator.device.type!r}: set it to false.")
    check_sharding(config, accelerator)
    build_whole_weights(accelerator)
    return accelerator


def main(description: str, trainer: Callable[[TrainingConfig], Trainer] = Trainer) -> None:
    """Entry of the training scripts."""
    run = trainer(TrainingConfig.from_args(description=description))
    folder = run.run()
    if run.accelerator.is_main_process:
        print(folder)
