# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One optimiser step, eager or captured as a single CUDA graph."""

import torch
from accelerate import Accelerator
from torch import nn

from .config import TrainingConfig
from .objective import VIMITrainingModel


def build_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on matrices alone; capturable for `cuda_graph`."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    others = [parameter for parameter in trainable if parameter.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.adam_weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=torch.tensor(config.learning_rate, device=device) if config.cuda_graph else config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
        capturable=config.cuda_graph,
    )


class TrainStep:
    """
    Noise, forward, backward, clipping and the optimiser's update for one batch. A batch whose gradients are not finite
    changes nothing and is counted: one bad batch in millions must not cost the run.

    Small models are bound by kernel launches from Python; with `cuda_graph` the first calls warm up, then the whole
    step is captured and later calls copy the batch in and replay it. That needs batches of one shape. Over several
    GPUs the captured step averages the gradients itself, since DistributedDataParallel's hooks cannot be captured as
    such.

    Args:
        model ([`VIMITrainingModel`]): The bare module.
        optimizer (`torch.optim.Optimizer`): From [`build_optimizer`].
        config ([`TrainingConfig`]): Speed and clipping settings.
        accelerator (`Accelerator`): Mixed precision and, without `cuda_graph`, gradients over processes.
    """

    warmup_steps = 3

    def __init__(
        self,
        model: VIMITrainingModel,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        if config.cuda_graph and accelerator.device.type != "cuda":
            raise ValueError(f"`cuda_graph` needs a GPU, the device is {accelerator.device.type!r}: set it to false.")
        self.config = config
        self.accelerator = accelerator
        self.scheduler = model.scheduler
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer
        if config.compile:
            compile_loss(model)
        self.forward = model if config.cuda_graph else accelerator.prepare_model(model)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Args:
            batch (`dict`): `video`, `input_ids`, `attention_mask`, `pixel_values`, `fps`, on the device.

        Returns:
            `dict` with `loss` (the scalar), `error` and `sigmas` (each of shape `(batch_size,)`), `grad_norm` and
            `skipped` (1 where the batch was left out, else 0). With `cuda_graph` the tensors are overwritten by the
            next call.
        """
        if not self.config.cuda_graph:
            return self._step(batch)
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

    def _step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        video = batch["video"]
        sigmas = self.scheduler.sample_sigmas(
            video.shape[0],
            device=video.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        noise = torch.randn_like(video)
        self.optimizer.zero_grad(set_to_none=True)
        # the cache of casts must not outlive a captured step
        mixed = self.accelerator.mixed_precision != "no"
        with torch.autocast(video.device.type, dtype=torch.bfloat16, enabled=mixed, cache_enabled=False):
            loss, error = self.forward(noise=noise, sigmas=sigmas, **batch)
        self.accelerator.backward(loss)
        if self.config.cuda_graph and self.accelerator.num_processes > 1:
            average_gradients(self.parameters)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        skipped = (~grad_norm.isfinite()).float()
        self.optimizer.found_inf = skipped  # as a gradient scaler tells a fused optimiser, without a host sync
        self.optimizer.step()
        return {"loss": loss.detach(), "error": error, "sigmas": sigmas, "grad_norm": grad_norm, "skipped": skipped}


def compile_loss(model: VIMITrainingModel) -> None:
    """
    Compiles the diffusion loss as one graph, and the conditioner layer by layer: its layers are alike, and the code of
    transformers between them is not made to be traced as one.
    """
    # the casts of hundreds of weights and gradients as a few kernels instead of one each; there is no such kernel
    # for the CPU
    on_gpu = next(model.parameters()).device.type == "cuda"
    settings = {"dynamic": False, "options": {"combo_kernels": True} if on_gpu else None}
    model.diffusion_loss = torch.compile(model.diffusion_loss, fullgraph=True, **settings)
    model.text_encoder.embed_inputs = torch.compile(model.text_encoder.embed_inputs, **settings)
    for module in model.text_encoder.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                layer.compile(**settings)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Averages the gradients of all processes, as one message. Every process must call it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    pieces = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(grad) for piece, grad in zip(pieces, gradients)])
