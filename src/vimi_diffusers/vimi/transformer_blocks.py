# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Attention, layers and blocks of the FIT generator, registered with diffusers' caches and layer skipping."""

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import (
    AttentionProcessorMetadata,
    AttentionProcessorRegistry,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
)
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn


class VIMIAttnProcessor:
    """Scaled dot-product attention through diffusers' back ends."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "VIMIAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        query, key, value = (
            projected.unflatten(2, (attn.heads, -1))
            for projected in attn.project(hidden_states, encoder_hidden_states)
        )
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if attn.spans_devices else None,
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        for module in attn.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


class VIMIAttention(nn.Module, AttentionModuleMixin):
    """
    Multi-head attention with its own inner width.

    Args:
        query_dim (`int`): Channels of the queries and of the output.
        context_dim (`int`, *optional*): Channels of keys and values; `None` makes it self-attention.
        inner_dim (`int`): Channels over all heads.
        heads (`int`): Number of heads.
        spans_devices (`bool`, *optional*, defaults to `False`):
            Whether context parallelism splits the keys over devices, so that they must talk to each other.
    """

    _default_processor_cls = VIMIAttnProcessor
    _available_processors = [VIMIAttnProcessor]

    def __init__(
        self, query_dim: int, context_dim: int | None, inner_dim: int, heads: int, spans_devices: bool = False
    ):
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.is_cross_attention = context_dim is not None
        self.spans_devices = spans_devices
        self.to_q = nn.Linear(query_dim, inner_dim)
        self.to_k = nn.Linear(context_dim or query_dim, inner_dim)
        self.to_v = nn.Linear(context_dim or query_dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Dropout(0.0)])
        self.set_processor(VIMIAttnProcessor())

    def project(
        self, hidden_states: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each of shape `(batch_size, tokens, inner_dim)`; fused ones if there are any."""
        if self.fused_projections and not self.is_cross_attention:
            return self.to_qkv(hidden_states).chunk(3, dim=2)
        query = self.to_q(hidden_states)
        if self.fused_projections:
            return query, *self.to_kv(context).chunk(2, dim=2)
        context = hidden_states if context is None else context
        return query, self.to_k(context), self.to_v(context)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask)


class VIMIAttentionLayer(nn.Module):
    """
    Pre-norm attention, then (unless `feed_forward=False`) a pre-norm feed-forward, both residual.

    With `modulation=True` an embedding, plus a table of the layer's own, shifts and scales both norms' outputs and
    scales what the two add (adaLN-single of PixArt-alpha, 2310.00426, but starting as if it were not there).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        inner_dim: int | None = None,
        dropout: float = 0.0,
        feed_forward: bool = True,
        modulation: bool = False,
        spans_devices: bool = False,
    ):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim)) if modulation else None
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim) if context_dim is not None else None
        self.attn = VIMIAttention(dim, context_dim, inner_dim or dim, heads, spans_devices)
        self.norm_ff = nn.LayerNorm(dim) if feed_forward else None
        self.ff = FeedForward(dim, dropout=dropout, activation_fn="gelu") if feed_forward else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        embedding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.norm_context is not None:
            context = self.norm_context(context)
        if self.scale_shift_table is not None:
            return self._modulated(hidden_states, context, attention_mask, embedding)
        hidden_states = hidden_states + self.attn(self.norm(hidden_states), context, attention_mask)
        if self.ff is not None:
            hidden_states = hidden_states + self.ff(self.norm_ff(hidden_states))
        return hidden_states

    def _modulated(
        self,
        hidden_states: torch.Tensor,
        context: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        embedding: torch.Tensor,
    ) -> torch.Tensor:
        changes = (self.scale_shift_table + embedding).to(hidden_states.dtype)[:, None]
        shift, scale, gain, shift_ff, scale_ff, gain_ff = changes.unbind(dim=2)
        normed = self.norm(hidden_states) * (1 + scale) + shift
        hidden_states = hidden_states + (1 + gain) * self.attn(normed, context, attention_mask)
        normed = self.norm_ff(hidden_states) * (1 + scale_ff) + shift_ff
        return hidden_states + (1 + gain_ff) * self.ff(normed)


class VIMIBlock(nn.Module):
    """
    One FIT block: the latents read the condition, then the patches of their group; they attend to each other; the
    patches read the latents back ("write"). With `patch_condition` the write reads the condition as well. With
    `patch_attention` the patches of a group then attend to each other.

    Groups lie behind each other in both sequences. Only the latents' self-attention joins them, so that everything
    else of a group can stay on one device.
    """

    def __init__(
        self,
        patch_dim: int,
        latent_dim: int,
        condition_dim: int,
        latents_per_group: int,
        num_latent_layers: int,
        cross_attention_heads: int,
        latent_heads: int,
        patch_attention: bool,
        patch_condition: bool,
        modulation: bool,
        dropout: float,
    ):
        super().__init__()
        self.latents_per_group = latents_per_group
        shared_dim = min(patch_dim, latent_dim)
        self.condition_to_latent = nn.Linear(condition_dim, latent_dim) if patch_condition else None
        self.condition_read = VIMIAttentionLayer(latent_dim, cross_attention_heads, condition_dim, condition_dim)
        self.patch_read = VIMIAttentionLayer(latent_dim, cross_attention_heads, patch_dim, shared_dim)
        self.latent_layers = nn.ModuleList(
            VIMIAttentionLayer(latent_dim, latent_heads, dropout=dropout, modulation=modulation, spans_devices=True)
            for _ in range(num_latent_layers)
        )
        # with patch attention the feed-forward of the write comes after it, so that one serves both
        self.write = VIMIAttentionLayer(
            patch_dim, cross_attention_heads, latent_dim, shared_dim, feed_forward=not patch_attention
        )
        self.patch_layer = None
        if patch_attention:
            self.patch_layer = VIMIAttentionLayer(patch_dim, cross_attention_heads, modulation=modulation)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        condition: torch.Tensor,
        condition_mask: torch.Tensor | None = None,
        latent_embedding: torch.Tensor | None = None,
        patch_embedding: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, patches, patch_dim)`): Patches, group by group.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, num_latents, latent_dim)`):
                Latents, group by group; under the name by which diffusers' hooks know a block's second stream.
            condition (`torch.Tensor` of shape `(batch_size, tokens, condition_dim)`): Condition.
            condition_mask (`torch.Tensor` of shape `(batch_size, 1, 1, tokens)`, *optional*): `True` = keep.
            latent_embedding (`torch.Tensor` of shape `(batch_size, 6, latent_dim)`, *optional*): Modulates latents.
            patch_embedding (`torch.Tensor` of shape `(batch_size, 6, patch_dim)`, *optional*): Modulates patches.

        Raises:
            ValueError: If context parallelism has cut a group in two.
        """
        latents = encoder_hidden_states
        if latents.shape[1] % self.latents_per_group:
            raise ValueError(
                f"A device got {latents.shape[1]} latents, not whole groups of {self.latents_per_group}: context "
                "parallelism needs a video whose number of groups is a multiple of the number of devices."
            )
        shape, groups = hidden_states.shape, latents.shape[1] // self.latents_per_group
        hidden_states = _split_groups(hidden_states, groups)
        latents = self.condition_read(latents, condition, condition_mask)
        latents = self.patch_read(_split_groups(latents, groups), hidden_states).view(latents.shape)
        for layer in self.latent_layers:
            latents = layer(latents, embedding=latent_embedding)
        context, mask = _split_groups(latents, groups), None
        if self.condition_to_latent is not None:
            condition = self.condition_to_latent(condition).to(context.dtype)
            context = torch.cat([context, condition.repeat_interleave(groups, dim=0)], dim=1)
            if condition_mask is not None:
                mask = F.pad(condition_mask, (self.latents_per_group, 0), value=True)
                mask = mask.repeat_interleave(groups, dim=0)
        hidden_states = self.write(hidden_states, context, mask)
        if self.patch_layer is not None:
            if patch_embedding is not None:
                patch_embedding = patch_embedding.repeat_interleave(groups, dim=0)
            hidden_states = self.patch_layer(hidden_states, embedding=patch_embedding)
        return hidden_states.view(shape), latents


def _split_groups(tokens: torch.Tensor, groups: int) -> torch.Tensor:
    return tokens.reshape(tokens.shape[0] * groups, -1, tokens.shape[2])


def _skipped_attention(attn: VIMIAttention, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    return hidden_states


# what FirstBlockCache, MagCache, SeaCache and skipped layers must know of a block
TransformerBlockRegistry.register(
    VIMIBlock, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
)
AttentionProcessorRegistry.register(
    VIMIAttnProcessor, AttentionProcessorMetadata(skip_processor_output_fn=_skipped_attention)
)
