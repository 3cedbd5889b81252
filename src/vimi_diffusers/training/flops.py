# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Floating-point operations of a training step in closed form, and what the device could do: together the MFU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..vimi.mllm_conditioner import MLLMConditioner
from ..vimi.transformer_blocks import VIMIAttentionLayer, VIMIBlock
from ..vimi.transformer_vimi import VIMITransformer3DModel
from .flops_mllm import count_conditioner
from .flops_rules import FlopCount, is_trained


# Dense bf16 peaks of the tensor cores with fp32 accumulation, in TFLOP/s, from NVIDIA's data sheets and whitepapers.
# Those of Hopper, Blackwell and the L4 print the sparse rate, which is twice the dense one: B200 4,500, H100 and H200
# SXM 1,979, NVL 1,671, H100 PCIe 1,513, L4 242. Ampere: A100 312, A40 149.7, A30 165, A10 125. Ada: L40S 362, L40 181,
# RTX 4090 165.2. The first entry whose words are in a device's name counts.
PEAK_TFLOPS: tuple[tuple[str, float | None], ...] = (
    ("B200", 2250.0),
    ("H200 NVL", 835.5),
    ("H200", 989.5),
    ("GH200", 989.5),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.5),
    ("H100", 989.5),  # "NVIDIA H100 80GB HBM3" is the SXM board
    ("A100", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 4090 D", None),  # slower boards than their names say
    ("RTX 4090 Laptop", None),
    ("RTX 4090", 165.2),
)


def peak_flops(device: torch.device | str) -> float | None:
    """
    FLOP/s that a device can do at most in dense bf16 matrix products; `None` if it is no known NVIDIA GPU.

    Args:
        device (`torch.device` or `str`): A device of this machine, or a device's name as
            `torch.cuda.get_device_name` gives it.
    """
    name = str(device)
    if not isinstance(device, str) or name.split(":")[0] in ("cpu", "cuda", "mps", "xpu", "meta"):
        if torch.device(device).type != "cuda":
            return None
        name = torch.cuda.get_device_name(device)
    words = f" {name.replace('-', ' ')} "
    peak = next((peak for key, peak in PEAK_TFLOPS if f" {key} " in words), None)
    return None if peak is None else 1e12 * peak


def training_flops(
    transformer: VIMITransformer3DModel,
    text_encoder: MLLMConditioner | None,
    shapes: Mapping[str, Sequence[int] | torch.Tensor],
    recomputed: bool = False,
) -> int:
    """
    FLOPs of one step of [`VIMITrainingModel`] in one process: forward and backward pass of conditioner and generator,
    with the first pass of `self_conditioning`. A multiplication and an addition are two FLOPs. Matrix products,
    convolutions and attention (in full, masked or not) are counted, everything else is left out, as for MFU
    (PaLM, 2204.02311, appendix B). What does not require gradients costs no backward pass, so that a frozen
    conditioner and LoRA are counted for what they are.

    Args:
        transformer ([`VIMITransformer3DModel`]): The generator; it may be on the meta device.
        text_encoder ([`MLLMConditioner`], *optional*): Gives C; unused where the batch holds `prompt_embeds`.
        shapes (`dict`): The batch of one process, or the shapes of its tensors: `video` of shape
            `(batch_size, channels, num_frames, height, width)`; `input_ids` with `pixel_values` (and what else the
            conditioner takes, such as `image_grid_thw`), or `prompt_embeds`; `reference_images` if there are any.
        recomputed (`bool`, *optional*, defaults to `False`):
            Count what gradient checkpointing computes again as well, where it is on. MFU leaves it out; hardware
            utilisation has it. What fused attention computes again in its backward pass is never counted.

    Raises:
        ValueError: If the conditioner's multimodal model is of a kind that the count does not know.
    """
    sizes = {name: tuple(getattr(value, "shape", value)) for name, value in shapes.items()}
    count = FlopCount()
    if "prompt_embeds" in sizes:
        tokens, with_grad = sizes["prompt_embeds"][1], False
    elif text_encoder is None:
        raise ValueError("Without `text_encoder` the batch needs `prompt_embeds`, whose length counts.")
    else:
        tokens, with_grad = count_conditioner(count, text_encoder, sizes)
    references = _reference_tokens(transformer, sizes)
    first = FlopCount()
    _count_transformer(first, transformer, sizes["video"], tokens, references, with_grad)
    count.add(first)
    if transformer.config.self_conditioning:  # the first pass, without gradients
        count.forward += first.forward
    return count.forward + count.backward + (count.recomputed if recomputed else 0)


def _reference_tokens(transformer: VIMITransformer3DModel, sizes: Mapping[str, tuple[int, ...]]) -> int:
    if "reference_images" not in sizes:
        return 0
    _, images, _, height, width = sizes["reference_images"]
    return images * (height * width) // transformer.config.reference_patch_size**2


def _count_transformer(
    count: FlopCount,
    model: VIMITransformer3DModel,
    video: tuple[int, ...],
    tokens: int,
    references: int,
    condition_grad: bool,
) -> None:
    batch_size, config = video[0], model.config
    grid = model._grid(*video[2:])
    group_rows, group_columns = model._groups(grid)
    groups = group_rows * group_columns
    patches = grid[0] * grid[1] * grid[2]
    latents = config.num_latents // model.num_groups * groups

    # scalars and references become condition tokens
    embedders = (model.sigma_embedder, model.fps_embedder, model.resolution_embedder, model.noise_level_embedder)
    scalar_grads = [count.linear(each, batch_size, False) for each in embedders if each is not None]
    sigma_grad = scalar_grads[0]
    tokens_grad = condition_grad or any(scalar_grads)
    if references:
        tokens_grad |= count.linear(model.reference_embedder.proj, batch_size * references, False)
        tokens_grad |= is_trained(model.reference_embedder)
    condition = (len(scalar_grads) + references + tokens, tokens_grad)
    embeddings_grad = False
    for linear, used in zip(model.modulation_proj or (), (True, config.patch_attention)):
        part = FlopCount()
        embeddings_grad |= part.linear(linear, batch_size, sigma_grad or condition_grad)
        part.backward *= used  # without patch attention nothing is modulated by the second
        count.add(part)

    patch_grad = count.linear(model.patch_embed, batch_size * patches, False)
    patch_grad |= is_trained(model.patch_norm) or model.pos_embed.requires_grad
    latent_grad = model.latents.requires_grad
    if model.self_conditioner is not None:
        grad = is_trained(model.self_conditioner.norm)  # the latents before carry no gradients
        latent_grad |= count.linear(model.self_conditioner.ff, batch_size * latents, grad)
        latent_grad |= is_trained(model.self_conditioner.norm_out)

    for block in model.transformer_blocks:
        before = count.forward
        patch_grad, latent_grad = _count_block(
            count, block, batch_size, groups, patches, latents, condition, patch_grad, latent_grad, embeddings_grad
        )
        if model.gradient_checkpointing:
            count.recomputed += count.forward - before - _unrepeated(block, batch_size * patches)
    count.linear(model.proj_out, batch_size * patches, patch_grad or is_trained(model.norm_out))
    if model.skip_gain is not None:
        count.linear(model.skip_gain, batch_size, sigma_grad)


def _count_block(
    count: FlopCount,
    block: VIMIBlock,
    batch_size: int,
    groups: int,
    patches: int,
    latents: int,
    condition: tuple[int, bool],
    patch_grad: bool,
    latent_grad: bool,
    embeddings_grad: bool,
) -> tuple[bool, bool]:
    """Whether patches and latents require gradients after the block."""
    tokens, condition_grad = condition
    split, per_group, own = batch_size * groups, patches // groups, latents // groups
    latent_grad = _count_layer(
        count, block.condition_read, batch_size, latents, latent_grad, context=(tokens, condition_grad)
    )
    latent_grad = _count_layer(count, block.patch_read, split, own, latent_grad, context=(per_group, patch_grad))
    for layer in block.latent_layers:
        latent_grad = _count_layer(count, layer, batch_size, latents, latent_grad, embedding_grad=embeddings_grad)
    context_grad = latent_grad
    if block.condition_to_latent is not None:
        context_grad |= count.linear(block.condition_to_latent, batch_size * tokens, condition_grad)
        own += tokens
    patch_grad = _count_layer(count, block.write, split, per_group, patch_grad, context=(own, context_grad))
    if block.patch_layer is not None:
        patch_grad = _count_layer(
            count, block.patch_layer, split, per_group, patch_grad, embedding_grad=embeddings_grad
        )
    return patch_grad, latent_grad


def _count_layer(
    count: FlopCount,
    layer: VIMIAttentionLayer,
    batch_size: int,
    queries: int,
    grad: bool,
    context: tuple[int, bool] | None = None,
    embedding_grad: bool = False,
) -> bool:
    """Attention and feed-forward; `context` is the number of keys and whether they require gradients."""
    attn, rows = layer.attn, batch_size * queries
    modulated = layer.scale_shift_table is not None and (embedding_grad or layer.scale_shift_table.requires_grad)
    query_grad = grad or modulated or is_trained(layer.norm)
    keys, context_grad = (queries, query_grad) if context is None else context
    if layer.norm_context is not None:
        context_grad |= is_trained(layer.norm_context)
    q = count.linear(attn.to_q, rows, query_grad)
    k = count.linear(attn.to_k, batch_size * keys, context_grad)
    v = count.linear(attn.to_v, batch_size * keys, context_grad)
    count.attention(batch_size, queries, keys, _out_features(attn.to_q), q, k, v)
    grad |= count.linear(attn.to_out, rows, q or k or v) or modulated
    if layer.ff is not None:
        grad |= count.linear(layer.ff, rows, grad or modulated or is_trained(layer.norm_ff))
    return grad


def _out_features(linear: nn.Module) -> int:
    return getattr(linear, "base_layer", linear).out_features  # peft wraps what it adapts


def _unrepeated(block: VIMIBlock, rows: int) -> int:
    """Checkpointing stops before a last layer whose result nothing keeps; a modulated one is multiplied, so kept."""
    last: Any = block.patch_layer or block.write
    if last.scale_shift_table is not None:
        return 0
    linear = getattr(last.ff.net[2], "base_layer", last.ff.net[2])
    return 2 * rows * linear.in_features * linear.out_features
