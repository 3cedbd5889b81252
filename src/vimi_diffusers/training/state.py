# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Everything that a run has to find again when it goes on: saved as a checkpoint, checked and loaded."""

import dataclasses
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, set_seed
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from .averages import DecayEMA, PowerEMA
from .checkpoints import begin_checkpoint, find_checkpoint, finish_checkpoint, refuse_checkpoints
from .config import PROCESSES, TrainingConfig, changed_arguments
from .sharding import fill_adamw_state, is_sharded
from .step import TrainStep


STATE_FILE = "training_state.pt"
SHARDS = "sharded"  # folder of accelerate's own state, where weights or optimizer are spread over processes
HYPERPARAMETERS = ("initial_lr", "betas", "eps", "weight_decay", "momentum")


class TrainingState:
    """
    Weights, averages, optimizer, schedule, step and random numbers of a run. Data order and task mix are functions of
    the step, and so is all of the data source.

    Args:
        config ([`TrainingConfig`]): The run.
        accelerator (`Accelerator`): Its processes.
        model (`nn.Module`): The bare training model.
        step ([`TrainStep`]): Holds optimizer and schedule as they are after `accelerator.prepare`.
        ema ([`DecayEMA`] or [`PowerEMA`], *optional*): The averaged weights.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: nn.Module,
        step: TrainStep,
        ema: DecayEMA | PowerEMA | None = None,
    ):
        self.config, self.accelerator, self.model, self.step, self.ema = config, accelerator, model, step, ema
        self.sharded = step.sharded
        self.global_step = 0

    def state_dict(self) -> dict[str, Any]:
        """What the main process writes: all of the state, or what is not sharded of it."""
        state: dict[str, Any] = {"global_step": self.global_step}
        if not self.sharded:
            state["model"] = self.model.state_dict()
            state["optimizer"] = self.step.optimizer.state_dict()
            state["lr_scheduler"] = self.step.lr_scheduler.state_dict()
            state["ema"] = self.ema.state_dict() if self.ema else None
        return state

    def process_state(self) -> dict[str, Any]:
        """What each process writes of its own."""
        state = {"rng": random_states()}
        if self.sharded:
            state["ema"] = local(self.ema.state_dict()) if self.ema else None
        return state

    def save(self) -> None:
        """Writes `output_dir/checkpoint-{global_step}`. Every process must call it."""
        accelerator, rank = self.accelerator, self.accelerator.process_index
        folder = [None]
        if accelerator.is_main_process:
            folder = [str(begin_checkpoint(self.config.output_dir, self.global_step))]
        folder = Path(broadcast_object_list(folder)[0])
        if self.sharded:
            if accelerator.distributed_type == DistributedType.FSDP:
                fill_adamw_state(self.step.optimizer)
            accelerator.save_state(str(folder / SHARDS))
        torch.save(self.process_state(), folder / f"process_{rank}.pt")
        if accelerator.is_main_process:
            torch.save(self.state_dict(), folder / STATE_FILE)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            finish_checkpoint(folder, self.record(), self.config.checkpoints_total_limit)
        accelerator.wait_for_everyone()

    def record(self) -> dict[str, Any]:
        return {
            "step": self.global_step,
            PROCESSES: self.accelerator.num_processes,
            "sharding": sharding(self.accelerator),
            "config": dataclasses.asdict(self.config),
        }

    def load(self, found: "FoundCheckpoint") -> None:
        """Takes over what [`find_run`] found. Every process must call it."""
        state = torch.load(found.folder / STATE_FILE, map_location="cpu", weights_only=True)
        self.global_step = state["global_step"]
        mine: dict[str, Any] = {}
        if found.same_processes:
            path = found.folder / f"process_{self.accelerator.process_index}.pt"
            mine = torch.load(path, map_location="cpu", weights_only=True)
        fresh = hyperparameters(self.step)
        if self.sharded:
            self.accelerator.load_state(str(found.folder / SHARDS))
        else:
            self.model.load_state_dict(state["model"])
            self.step.optimizer.load_state_dict(state["optimizer"])
            self.step.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.ema and self.sharded:
            self.ema.load_state_dict(sharded_like(self.ema.state_dict(), mine["ema"]))
        elif self.ema:
            self.ema.load_state_dict(state["ema"])
        restore_rates(self.step, fresh, bool(found.changed))
        if mine:
            set_random_states(mine["rng"], self.config.seed + self.global_step)
        else:
            set_seed(self.config.seed + self.global_step, device_specific=True)


@dataclass
class FoundCheckpoint:
    """
    A whole checkpoint that fits the run.

    Attributes:
        folder (`Path`): Where it is.
        changed (`set[str]`): Arguments that differ from its own, all of them allowed.
        same_processes (`bool`): Whether as many processes wrote it as run now.
    """

    folder: Path
    changed: set[str]
    same_processes: bool


def find_run(config: TrainingConfig, accelerator: Accelerator) -> FoundCheckpoint | None:
    """
    The checkpoint to go on from, if `resume_from_checkpoint` asks for one. Every process must call it.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: If there is none, it is damaged or of a run with other
            arguments than `allow_changed` permits, or if `output_dir` has another run's. All processes raise it.
    """
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            if config.resume_from_checkpoint:
                answer = [find_checkpoint(config.output_dir, config.resume_from_checkpoint)]
            else:
                refuse_checkpoints(config.output_dir)
        except (OSError, ValueError) as error:
            answer = [error]
    answer = broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    if answer[0] is None:
        return None
    folder, record = answer[0]
    return FoundCheckpoint(
        folder, check_arguments(config, accelerator, folder, record), record[PROCESSES] == accelerator.num_processes
    )


def check_arguments(
    config: TrainingConfig, accelerator: Accelerator, folder: Path, record: dict[str, Any]
) -> set[str]:
    """
    Arguments that differ from those of the checkpoint, each named in `allow_changed`.

    Raises:
        ValueError: If others differ: names them all, with both values.
    """
    before, now = dict(record["config"]), dataclasses.asdict(config)
    before[PROCESSES], now[PROCESSES] = record[PROCESSES], accelerator.num_processes
    changed = changed_arguments(before, now)
    refused = {path: values for path, values in changed.items() if path.split(".")[0] not in config.allow_changed}
    if refused:
        listed = "; ".join(f"`{path}` was {old!r} and is {new!r}" for path, (old, new) in refused.items())
        raise ValueError(
            f"{folder} was trained with other arguments: {listed}. Set them back, or name them in `allow_changed`."
        )
    kinds = {record["sharding"], sharding(accelerator)}
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} was written with the sharding {record['sharding']}, this run has {sharding(accelerator)}: use "
            "the same configuration of accelerate."
        )
    if PROCESSES in changed and kinds != {None} and (kinds != {"FSDP"} or config.ema_decay or config.ema_profiles):
        raise ValueError(
            f"{folder} is spread over {record[PROCESSES]} processes: only an FSDP run without averages "
            f"(`ema_decay: 0`) can go on with {now[PROCESSES]}."
        )
    return {path.split(".")[0] for path in changed}


def sharding(accelerator: Accelerator) -> str | None:
    """How weights or optimizer are spread over processes: `"FSDP"`, `"DEEPSPEED"` or not at all."""
    return accelerator.distributed_type.value if is_sharded(accelerator) else None


def local(state: Any) -> Any:
    """`state` with the part of each sharded tensor that this process holds."""
    return tree_map(lambda leaf: leaf.to_local() if isinstance(leaf, DTensor) else leaf, state)


@torch.no_grad()
def sharded_like(template: Any, state: Any) -> Any:
    """Undoes [`local`]: its parts go into the sharded tensors of `template`, which stand in their places."""
    if isinstance(template, DTensor):
        template.to_local().copy_(state)
        return template
    if isinstance(state, dict):
        return {key: sharded_like(template[key], value) for key, value in state.items()}
    if isinstance(state, list) and isinstance(template, list) and len(state) == len(template):
        return [sharded_like(own, value) for own, value in zip(template, state)]
    return state


def random_states() -> dict[str, Any]:
    """The states of all random generators that a process uses, of types that load without running code."""
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any], seed: int) -> None:
    """Undoes [`random_states`]; `seed` is for a GPU's generator if the states were taken without one."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])
        else:
            warnings.warn("The checkpoint was written without a GPU: the noise will differ from that run's.")
            torch.cuda.manual_seed(seed)


def hyperparameters(step: TrainStep) -> tuple[list[dict[str, Any]], list[Any]]:
    """The optimizer's settings and the peak rates, as this run's arguments made them."""
    groups = [{key: group[key] for key in group if key != "params"} for group in step.optimizer.param_groups]
    return groups, list(_bare(step.lr_scheduler).base_lrs)


def restore_rates(step: TrainStep, fresh: tuple[list[dict[str, Any]], list[Any]], changed: bool) -> None:
    """
    Puts right what a loaded optimizer gets wrong: a captured step reads its learning rate from a tensor on the device,
    and `load_state_dict` brings back the old settings even where `allow_changed` permits new ones.

    Args:
        step ([`TrainStep`]): Optimizer and schedule, loaded.
        fresh (`tuple`): Their [`hyperparameters`] before.
        changed (`bool`): Whether any argument differs from the checkpoint's.
    """
    groups, scheduler = step.optimizer.param_groups, _bare(step.lr_scheduler)
    own_groups, scheduler.base_lrs = fresh
    for group, own in zip(groups, own_groups):
        if isinstance(own["lr"], torch.Tensor):
            group["lr"] = own["lr"].copy_(torch.as_tensor(group["lr"]))
        if changed:
            group.update({key: own[key] for key in HYPERPARAMETERS if key in own})
    if changed:
        scheduler._last_lr = [
            base * rate(scheduler.last_epoch) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas)
        ]
        for group, rate in zip(groups, scheduler._last_lr):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].copy_(torch.as_tensor(rate))
            else:
                group["lr"] = rate


def _bare(scheduler: Any) -> torch.optim.lr_scheduler.LambdaLR:
    return getattr(scheduler, "scheduler", scheduler)  # out of accelerate's wrapper
