# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The optimisers of the training scripts: AdamW of torch, and others through well-kept libraries."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn


if TYPE_CHECKING:
    from .config import TrainingConfig  # which may take OPTIMIZERS from here

OPTIMIZERS = ("adamw", "adamw8bit", "lamb", "muon")
# by accelerate's kind of sharding: FSDP2 has the operations of these alone; DeepSpeed cuts matrices into flat pieces
SHARDED = {"FSDP": ("adamw", "muon"), "DEEPSPEED": ("adamw",)}


def build_optimizer(model: nn.Module, config: "TrainingConfig", device: torch.device) -> torch.optim.Optimizer:
    """
    The optimiser that `config.optimizer` names, over the parameters that train; matrices alone are decayed.

    Args:
        model (`nn.Module`): What trains: its parameters with `requires_grad`.
        config ([`TrainingConfig`]): `optimizer` and its numbers; one `learning_rate` serves all of them:

            - `"adamw"`: torch's fused AdamW; capturable for `cuda_graph`.
            - `"adamw8bit"`: bitsandbytes' AdamW with 8-bit moments, a quarter of the memory.
            - `"lamb"` (1904.00962): Adam's step scaled to each matrix's norm, for very large batches; without bias
              correction, as in the paper's third version. Vectors take Adam's step.
            - `"muon"`: orthogonalised momentum for the hidden matrices (see [`hidden_matrices`]), scaled to AdamW's
              usual step size (2502.16982, section 2.2), and AdamW for the rest.
        device (`torch.device`): Where a capturable learning rate lives.

    Raises:
        ValueError: For an unknown name, an optimiser that `cuda_graph` cannot capture, or a model with nothing to
            train.
        ImportError: If the optimiser's library is missing.
    """
    name = config.optimizer
    if name not in OPTIMIZERS:
        raise ValueError(f"Unknown `optimizer` {name!r}: choose one of {', '.join(OPTIMIZERS)}.")
    if config.cuda_graph and name != "adamw":
        raise ValueError(
            f"`cuda_graph` cannot capture the optimizer {name!r}, which counts its steps on the host: use 'adamw', or "
            "set `cuda_graph` to false."
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("No parameter of the model trains: unfreeze some, or add LoRA layers.")
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    others = [parameter for parameter in trainable if parameter.ndim < 2]
    decay, settings = config.adam_weight_decay, {"lr": config.learning_rate, "betas": _betas(config)}
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if name == "adamw":
        if config.cuda_graph:
            settings["lr"] = torch.tensor(config.learning_rate, device=device)
        return torch.optim.AdamW(groups, eps=config.adam_epsilon, fused=True, capturable=config.cuda_graph, **settings)
    if name == "adamw8bit":
        optimizer = _library("bitsandbytes", name).optim.AdamW8bit
        return optimizer(_filled(groups), eps=config.adam_epsilon, **settings)
    if name == "lamb":
        optimizer = _library("pytorch_optimizer", name).Lamb
        groups[1]["adam"] = True  # no trust ratio: a bias may start at zero
        # decay inside the scaled update, and no 10 times larger first step
        paper = {"weight_decouple": False, "adam_debias": True}
        return optimizer(_filled(groups), eps=config.adam_epsilon, **paper, **settings)
    return _muon(_library("pytorch_optimizer", name).Muon, model, config)


def check_sharded_optimizer(name: str, kind: str | None) -> None:
    """
    Raises:
        ValueError: If an optimiser does not work over weights that are spread over processes.

    Args:
        name (`str`): One of `OPTIMIZERS`.
        kind (`str`, *optional*): `"FSDP"`, `"DEEPSPEED"`, or `None` for weights that are not sharded.
    """
    if kind is not None and name not in SHARDED[kind]:
        raise ValueError(
            f"The optimizer {name!r} does not work with weights sharded by {kind}: use {' or '.join(SHARDED[kind])}, "
            "or the plain or DDP configuration of accelerate."
        )


def update(optimizer: torch.optim.Optimizer, skipped: torch.Tensor) -> None:
    """
    One step of the optimiser, left out where `skipped` is 1. Fused AdamW reads that on the device, as from a gradient
    scaler; the others need it on the host.

    Args:
        optimizer (`torch.optim.Optimizer`): From [`build_optimizer`].
        skipped (`torch.Tensor` of shape `()`): 1 for gradients that are not finite, else 0.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = skipped
        optimizer.step()
    elif not skipped:
        optimizer.step()


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """
    The matrices that Muon is made for: weights of linear layers inside a model's repeated blocks. Embeddings,
    positions and the layers before and after the blocks are none.
    """
    found = {}
    for blocks in model.modules():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            for layer in block.modules():
                if isinstance(layer, nn.Linear) and layer is not block:
                    found[id(layer.weight)] = layer.weight
    return [weight for weight in found.values() if weight.requires_grad]


def _muon(muon: type, model: nn.Module, config: "TrainingConfig") -> torch.optim.Optimizer:
    hidden = hidden_matrices(model)
    taken = {id(weight) for weight in hidden}
    rest = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in taken]
    adamw = {"use_muon": False, "betas": _betas(config), "eps": config.adam_epsilon}
    groups = [
        {"params": hidden, "weight_decay": config.adam_weight_decay, "use_muon": True, "use_adjusted_lr": True},
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.adam_weight_decay, **adamw},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, **adamw},
    ]
    return muon([{"lr": config.learning_rate, **group} for group in _filled(groups)])


def _filled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def _betas(config: "TrainingConfig") -> tuple[float, float]:
    return config.adam_beta1, config.adam_beta2


def _library(module: str, optimizer: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The optimizer {optimizer!r} needs {module}, which cannot be imported ({error}): run `pip install "
            f"{module}`, or use 'adamw'."
        ) from error
