# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop of both stages."""

import dataclasses
import os
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from .checkpoints import load_checkpoint, save_checkpoint
from .components import build_components
from .config import TrainingConfig
from .data import TrainingData
from .objective import VIMITrainingModel
from .step import TrainStep, build_optimizer
from .validation import HeldOutLoss


NUM_QUANTILES = 4
MAX_SKIPPED = 0.1  # share of batches without finite gradients at which a run is given up


class Trainer:
    """
    One run: everything that a checkpoint has to hold, and the loop over it.

    Args:
        config ([`TrainingConfig`]): The run.
    """

    def __init__(self, config: TrainingConfig):
        # transformers' shape checks read values on the host, which a captured step cannot
        os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1" if config.cuda_graph else "0")
        self.config = config
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_dir=str(Path(config.output_dir) / "logs"),
            # a CLIP tower has a norm that only its pooled output uses
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
        set_seed(config.seed)  # the same weights in every process
        self.data = TrainingData(config, self.accelerator)
        self.components = build_components(config, self.data.texts())
        self.data.bind(self.components["text_processor"], self.components["transformer"])
        self.check_lengths()

        self.model = VIMITrainingModel(
            self.components["text_encoder"],
            self.components["transformer"],
            self.components["scheduler"],
            config.loss_weighting,
        ).to(self.accelerator.device)
        self.model.train()
        self.model.text_encoder.requires_grad_(not config.freeze_conditioner)
        self.optimizer = build_optimizer(self.model, config, self.accelerator.device)
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.ema = EMAModel(self.saved_parameters(), decay=config.ema_decay, foreach=True)
        self.ema.to(self.accelerator.device)
        self.global_step = 0
        if config.resume_from_checkpoint:
            self.resume(config.resume_from_checkpoint)
        if self.accelerator.num_processes > 1:
            set_seed(config.seed + self.global_step, device_specific=True)  # other noise in each
        self.step = TrainStep(self.model, self.optimizer, config, self.accelerator)

    def saved_parameters(self) -> list[torch.nn.Parameter]:
        return [*self.model.text_encoder.parameters(), *self.model.transformer.parameters()]

    def check_lengths(self) -> None:
        positions = self.components["text_encoder"].config.mllm_config.get_text_config().max_position_embeddings
        if self.config.max_sequence_length > positions:
            raise ValueError(
                f"`max_sequence_length` {self.config.max_sequence_length} is over the model's {positions} positions."
            )

    # ------------------------------------------------------------------ the loop
    def run(self) -> Path:
        """Trains to `max_train_steps` and returns the folder of the final pipeline."""
        config, accelerator = self.config, self.accelerator
        if config.report_to:
            tracked = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, (int, float, str))}
            accelerator.init_trackers("vimi", config=tracked)
        held_out = self.held_out_loss() if config.validation_steps else None
        progress = tqdm(
            total=config.max_train_steps,
            initial=self.global_step,
            disable=not accelerator.is_local_main_process,
            mininterval=5.0,
        )
        errors = torch.zeros(NUM_QUANTILES + 1, device=accelerator.device)  # and how many batches were skipped
        last_log, since = time.perf_counter(), self.global_step
        steps_left = max(config.max_train_steps - self.global_step, 0)
        for batch in islice(self.data.batches(start_step=self.global_step), steps_left):
            output = self.step(batch)
            self.lr_scheduler.step()
            self.ema.step(self.saved_parameters())
            self.global_step += 1
            progress.update()
            # the noise levels of a batch are sorted
            quantiles = F.adaptive_avg_pool1d(output["error"][None], NUM_QUANTILES)[0]
            skipped = output["skipped"]
            errors += torch.cat([torch.where(skipped > 0, 0.0, quantiles), skipped[None]])
            if self.global_step % config.logging_steps == 0:
                logs = self.logs(output, errors, self.global_step - since)
                now = time.perf_counter()
                logs["steps_per_s"] = (self.global_step - since) / (now - last_log)
                logs["clips_per_s"] = logs["steps_per_s"] * config.train_batch_size * accelerator.num_processes
                accelerator.log(logs, step=self.global_step)
                progress.set_postfix(error=f"{logs['error']:.4f}", refresh=False)
                errors.zero_()
                last_log, since = now, self.global_step
            if held_out is not None and self.global_step % config.validation_steps == 0:
                with self.ema_weights():
                    accelerator.log(held_out(self.model), step=self.global_step)
            if config.checkpointing_steps and self.global_step % config.checkpointing_steps == 0:
                self.save()
        progress.close()
        folder = self.save_pipeline()
        self.step.close()
        accelerator.end_training()
        return folder

    def held_out_loss(self) -> HeldOutLoss:
        return HeldOutLoss(
            self.data.renderer,
            self.data.collator,
            tasks=list(self.config.task_weights),
            num_samples=self.config.validation_samples,
            batch_size=self.config.train_batch_size,
            seed=self.config.seed,
            autocast=self.accelerator.autocast,
        )

    def logs(self, output: dict[str, torch.Tensor], errors: torch.Tensor, steps: int) -> dict[str, float]:
        *sums, skipped = errors.tolist()
        if skipped > MAX_SKIPPED * steps:
            raise FloatingPointError(
                f"Training diverged: {skipped:.0f} of the {steps} steps before step {self.global_step} had gradients "
                "that are not finite. Go on from an earlier checkpoint, with a lower `learning_rate`."
            )
        values = [value / (steps - skipped) for value in sums]
        logs = {f"error_sigma_q{i + 1}": value for i, value in enumerate(values)}
        logs["error"] = sum(values) / len(values)
        logs["loss"] = output["loss"].item()
        logs["grad_norm"] = output["grad_norm"].item()
        logs["skipped_steps"] = skipped
        logs["lr"] = float(self.lr_scheduler.get_last_lr()[0])
        return logs

    # ------------------------------------------------------------------ state
    def ema_weights(self) -> "_EMAWeights":
        """Context in which the model has its averaged weights."""
        return _EMAWeights(self.ema, self.saved_parameters())

    def state(self) -> dict[str, Any]:
        rng = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state()
        return {
            "global_step": self.global_step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "rng": rng,
        }

    def save(self) -> None:
        """Writes a checkpoint (main process only; the weights are equal on all)."""
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.config.output_dir, self.global_step, self.state(), self.config.checkpoints_total_limit
            )
        self.accelerator.wait_for_everyone()

    def resume(self, resume_from: str) -> None:
        state = load_checkpoint(self.config.output_dir, resume_from)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.global_step = state["global_step"]
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"])

    def save_pipeline(self) -> Path:
        """Saves the averaged weights as a [`VIMIPipeline`] folder, whole or not at all."""
        from ..vimi.pipeline_vimi import VIMIPipeline

        folder = Path(self.config.output_dir) / "pipeline"
        if self.accelerator.is_main_process:
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut off
            with self.ema_weights():
                VIMIPipeline(**self.components).save_pretrained(partial)
            previous = folder.with_name(f".{folder.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            if folder.exists():  # a folder can only be renamed onto an empty one
                os.rename(folder, previous)
            os.rename(partial, folder)
            shutil.rmtree(previous, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return folder


class _EMAWeights:
    def __init__(self, ema: EMAModel, parameters: list[torch.nn.Parameter]):
        self.ema, self.parameters = ema, parameters

    def __enter__(self) -> None:
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)

    def __exit__(self, *error: object) -> None:
        self.ema.restore(self.parameters)


def main(description: str) -> None:
    """Entry of the training scripts."""
    config = TrainingConfig.from_args(description=description)
    print(Trainer(config).run())
