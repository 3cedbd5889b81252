# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""FLOPs of a multimodal conditioner: weights of the matrix products times tokens, and attention."""

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import nn

from ..vimi.mllm_conditioner import MLLMConditioner
from .flops_rules import FlopCount, is_trained


CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
MERGERS = ("merger", "deepstack_merger_list")  # inside Qwen-VL's vision tower, but over merged tokens


def count_conditioner(
    count: FlopCount, encoder: MLLMConditioner, sizes: Mapping[str, tuple[int, ...]]
) -> tuple[int, bool]:
    """
    Adds the FLOPs of C and returns its number of tokens and whether it requires gradients.

    Vision tower, projector and language model are told apart by the names that transformers gives them; the first may
    be a CLIP or SigLIP tower or Qwen-VL's, the last any dense decoder.

    Raises:
        ValueError: If a part is missing, or the language model is a mixture of experts.
    """
    mllm = encoder.mllm.get_base_model() if hasattr(encoder.mllm, "get_base_model") else encoder.mllm
    backbone = mllm.base_model
    text = backbone.get_decoder()
    if not hasattr(text, "layers"):
        raise ValueError(f"The FLOPs of {type(text).__name__} cannot be counted: it has no list of `layers`.")
    batch_size, tokens = sizes["input_ids"]
    grad = is_trained(text.get_input_embeddings())
    if "pixel_values" in sizes:
        grad |= _count_images(count, backbone, sizes)
    config = backbone.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    used = _used_layers(encoder.config.hidden_layer, len(text.layers))
    grad = _count_layers(
        count, text.layers, batch_size, tokens, config.num_attention_heads * head_dim, grad, used
    )  # fmt: skip
    grad |= is_trained(encoder.norm)
    tokens -= encoder.config.crop_start
    if encoder.config.num_queries:
        queries = encoder.config.num_queries
        grad = _count_resampler(count, encoder.resampler, batch_size, queries, tokens, grad)
        tokens = queries
    return tokens, count.linear(encoder.proj, batch_size * tokens, grad)


def _count_images(count: FlopCount, backbone: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    vision, text = backbone.get_encoder(modality="image"), backbone.get_decoder()
    if vision is backbone:
        raise ValueError(f"The FLOPs of {type(backbone).__name__} cannot be counted: it has no known vision tower.")
    config = backbone.config.vision_config
    images, patches = _image_patches(config, sizes)
    merge = getattr(backbone.config, "scale_factor", None) or getattr(config, "spatial_merge_size", 1)
    convolutions = [module for module in vision.modules() if isinstance(module, CONVOLUTIONS)]
    for module in convolutions:
        count.convolution(module, images * patches, False)
    embeddings = [module for name, module in vision.named_modules() if name.split(".")[-1] == "embeddings"]
    grad = any(is_trained(module) for module in (*convolutions, *embeddings))
    has_class = any(name.endswith("class_embedding") for name, _ in vision.named_parameters())
    layers = next(m for n, m in vision.named_modules() if n.split(".")[-1] in ("layers", "blocks"))
    chosen = getattr(backbone.config, "vision_feature_layer", -1)
    used = max(_used_layers(layer, len(layers)) for layer in ([chosen] if isinstance(chosen, int) else chosen))
    width = getattr(config, "hidden_size", None) or config.embed_dim
    windows = _windows(config, len(layers), patches)
    grad = _count_layers(count, layers, images, patches + has_class, width, grad, used, windows)
    merged = [m for n, m in vision.named_children() if n in MERGERS]
    merged += [m for m in backbone.children() if m is not vision and m is not text]
    for module in merged:
        grad |= count.linear(module, images * patches // merge**2, grad or is_trained(module))
    return grad


def _image_patches(config: Any, sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Images of the batch, and patches of each."""
    shape = sizes["pixel_values"]
    if len(shape) == 2:  # Qwen-VL: patches of all images behind each other
        if "image_grid_thw" not in sizes:
            raise ValueError("`pixel_values` are patches: the count needs `image_grid_thw` for the number of images.")
        images = sizes["image_grid_thw"][0]
        return images, shape[0] // images
    return prod(shape[:-3]), (shape[-2] // config.patch_size) * (shape[-1] // config.patch_size)


def _windows(config: Any, num_layers: int, patches: int) -> list[int]:
    """Patches among which each layer attends; Qwen2.5-VL has windows in most."""
    size, whole = getattr(config, "window_size", None), getattr(config, "fullatt_block_indexes", None)
    if not isinstance(size, int) or whole is None:
        return [0] * num_layers
    window = (size // config.patch_size) ** 2
    return [0 if index in whole or window >= patches else window for index in range(num_layers)]


def _used_layers(hidden_layer: int, num_layers: int) -> int:
    return num_layers + 1 + hidden_layer if hidden_layer < 0 else hidden_layer


def _count_layers(
    count: FlopCount,
    layers: nn.ModuleList,
    batch_size: int,
    tokens: int,
    width: int,
    grad: bool,
    used: int,
    windows: list[int] | None = None,
) -> bool:
    """All layers run, but gradients come back only through the first `used`."""
    result = grad
    for index, layer in enumerate(layers):
        experts = [name for name, weight in layer.named_parameters() if weight.ndim > 2]
        if experts:
            raise ValueError(
                f"The FLOPs of {type(layer).__name__} cannot be counted: {experts[0]} is no matrix, as in a mixture "
                "of experts."
            )
        before = FlopCount()
        grad = before.linear(layer, batch_size * tokens, grad or is_trained(layer))
        keys = windows[index] if windows and windows[index] else tokens
        before.attention(batch_size, tokens, keys, width, grad, grad, grad)
        count.forward += before.forward
        if index < used:
            count.backward += before.backward
            result = grad
            if getattr(layer, "gradient_checkpointing", False) and grad:
                count.recomputed += before.forward - _last_product(layer, batch_size * tokens)
    return result


def _last_product(layer: nn.Module, rows: int) -> int:
    """Checkpointing stops before a layer's last product: only a sum follows, which keeps nothing."""
    last = [module for module in layer.modules() if isinstance(module, nn.Linear)][-1]
    return 2 * rows * last.in_features * last.out_features


def _count_resampler(
    count: FlopCount, resampler: nn.Module, batch_size: int, queries: int, tokens: int, grad: bool
) -> bool:
    trained = is_trained(resampler)
    for block in resampler.blocks:
        count.linear(block.to_q, batch_size * queries, trained)
        count.linear(block.to_kv, batch_size * tokens, grad)
        count.attention(
            batch_size, queries, tokens, block.to_q.out_features, trained, grad or trained, grad or trained
        )
        count.linear(block.to_out, batch_size * queries, grad or trained)
        count.linear(block.mlp, batch_size * queries, grad or trained)
    return grad or trained
