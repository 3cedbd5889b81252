# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One optimiser step, eager or captured as a single CUDA graph."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from .config import TrainingConfig
from .objective import VIMITrainingModel
from .optimizers import update
from .sharding import is_sharded, set_up_sharding


class TrainStep:
    """
    Noise, forward, backward, clipping and the optimiser's update for one step. A step whose gradients are not finite
    changes nothing and is counted: one bad batch in millions must not cost the run.

    Small models are bound by kernel launches from Python; with `cuda_graph` the first calls warm up, then the whole
    step is captured and later calls copy the batch in and replay it. That needs batches of one shape. Over several
    GPUs the captured step averages the gradients itself, since DistributedDataParallel's hooks cannot be captured as
    such.

    Under FSDP2 and DeepSpeed, weights and optimizer are spread over the processes in fp32, and computed with in
    `mixed_precision` by autocast as without: the policies of both would round noise and noise levels too.

    Args:
        model ([`VIMITrainingModel`]): The bare module.
        optimizer (`torch.optim.Optimizer`): From [`~optimizers.build_optimizer`].
        config ([`TrainingConfig`]): Speed and clipping settings.
        accelerator (`Accelerator`): Gradients over processes, without `cuda_graph`; sharding.
        lr_scheduler (`LRScheduler`, *optional*): To prepare with the others.

    Attributes:
        sharded (`bool`): Whether weights or optimizer are spread over processes.
        forward, optimizer, lr_scheduler: The arguments as `accelerator.prepare` gives them back.
    """

    warmup_steps = 3

    def __init__(
        self,
        model: VIMITrainingModel,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        accelerator: Accelerator,
        lr_scheduler: Any | None = None,
    ):
        self.sharded = is_sharded(accelerator)
        self.config, self.accelerator, self.model = config, accelerator, model
        self.scheduler = model.scheduler
        if config.compile:
            compile_blocks(model) if self.sharded else compile_loss(model)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        if self.sharded:
            set_up_sharding(model, config, accelerator)
            self.forward, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)
        else:
            self.forward = model if config.cuda_graph else accelerator.prepare_model(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def __call__(self, *batches: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Args:
            batches (`dict`): As many as `gradient_accumulation_steps`: `video`, `input_ids`, `attention_mask`,
                `pixel_values`, `fps`, on the device.

        Returns:
            `dict` with `loss` (the scalar), `error` and `sigmas` (each of shape `(samples,)`, by rising noise level),
            `grad_norm` and `skipped` (1 where the step was left out, else 0). With `cuda_graph` the tensors are
            overwritten by the next call.
        """
        if not self.config.cuda_graph:
            return self._step(*batches)
        (batch,) = batches
        self.calls += 1
        if self.graph is not None:
            for name, tensor in batch.items():
                self.static_batch[name].copy_(tensor)
            self.graph.replay()
            return self.static_output
        if self.calls == 1:
            self.static_batch = {name: tensor.clone() for name, tensor in batch.items()}
            self.stream = torch.cuda.Stream()
        for name, tensor in batch.items():
            self.static_batch[name].copy_(tensor)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            output = self._step(self.static_batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        if self.calls >= self.warmup_steps:
            self._capture()
        return output

    def _capture(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)  # so that the captured backward writes gradients, not adds
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader thread pins memory meanwhile
            self.static_output = self._step(self.static_batch)
        self.graph = graph

    def close(self) -> None:
        """Frees the captured step: NCCL waits for captured graphs before it lets a process group go."""
        if self.graph is not None:
            torch.cuda.synchronize()
            self.graph.reset()
            self.graph = None

    def _step(self, *batches: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for number, batch in enumerate(batches):
            with self.accelerator.accumulate(self.forward):  # gradients meet after the last batch
                parts.append(self._backward(batch, number))
        output = parts[0]
        if len(parts) > 1:
            output = {name: torch.cat([part[name].reshape(-1) for part in parts]) for name in parts[0]}
            order = output["sigmas"].argsort()
            output = {
                "loss": output["loss"].mean(),
                "error": output["error"][order],
                "sigmas": output["sigmas"][order],
            }
        if self.config.cuda_graph and self.accelerator.num_processes > 1:
            average_gradients(self.parameters)
        grad_norm = self._clip()
        return {**output, "grad_norm": grad_norm, "skipped": self._update(grad_norm)}

    def _backward(self, batch: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        accelerator, video, count = self.accelerator, batch["video"], self.config.gradient_accumulation_steps
        sigmas = self.scheduler.sample_sigmas(
            video.shape[0],
            device=video.device,
            rank=accelerator.process_index * count + number,
            world_size=accelerator.num_processes * count,
        )
        noise = torch.randn_like(video)
        # the cache of casts must not outlive a captured step
        mixed = self.config.mixed_precision != "no"
        with torch.autocast(video.device.type, dtype=torch.bfloat16, enabled=mixed, cache_enabled=False):
            loss, error = self.forward(noise=noise, sigmas=sigmas, **batch)
        accelerator.backward(loss)
        return {"loss": loss.detach(), "error": error, "sigmas": sigmas}

    def _clip(self) -> torch.Tensor:
        if not self.sharded:
            return nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        norm = torch.as_tensor(norm, device=self.accelerator.device)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _update(self, grad_norm: torch.Tensor) -> torch.Tensor:
        """The optimiser's step unless a gradient is not finite; returns whether it was left out."""
        skipped = (~grad_norm.isfinite()).float()
        if not self.sharded:
            update(self.optimizer, skipped)
        elif not skipped.item():
            self.optimizer.step()  # under DeepSpeed nothing is left to do: its engine stepped after the last batch
        return skipped


def compile_blocks(model: VIMITrainingModel) -> None:
    """Compiles layer by layer, so that weights sharded by layer can be gathered between them."""
    model.transformer.compile_repeated_blocks(dynamic=False)
    compile_layers(model.text_encoder, dynamic=False)


def compile_loss(model: VIMITrainingModel) -> None:
    """
    Compiles the diffusion loss as one graph, and the conditioner layer by layer: its layers are alike, and the code of
    transformers between them is not made to be traced as one.
    """
    # the casts of hundreds of weights and gradients as a few kernels instead of one each; there is no such kernel
    # for the CPU
    on_gpu = next(model.parameters()).device.type == "cuda"
    settings = {"dynamic": False, "options": {"combo_kernels": True} if on_gpu else None}
    # DistributedDataParallel would have the graph cut at its buckets of 25 MB, into dozens that compile for minutes
    # and that gradient checkpointing cannot be part of; one message at the end costs a few per cent of a step
    torch._dynamo.config.optimize_ddp = False
    model.diffusion_loss = torch.compile(model.diffusion_loss, fullgraph=True, **settings)
    model.text_encoder.embed_inputs = torch.compile(model.text_encoder.embed_inputs, **settings)
    compile_layers(model.text_encoder, **settings)


def compile_layers(module: nn.Module, **settings: Any) -> None:
    """Compiles each entry of the module lists in `module` in place."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            for layer in child:
                layer.compile(**settings)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Averages the gradients of all processes, as one message. Every process must call it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    pieces = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(grad) for piece, grad in zip(pieces, gradients)])
