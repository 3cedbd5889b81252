# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The FIT video generator of Snap Video (2402.14797, section 3.4, table 8), conditioned on the MLLM's embedding C."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import apply_lora_scale
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
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1))
        key = attn.to_k(context).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if encoder_hidden_states is None else None,
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
    """

    _default_processor_cls = VIMIAttnProcessor
    _available_processors = [VIMIAttnProcessor]

    def __init__(self, query_dim: int, context_dim: int | None, inner_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.is_cross_attention = context_dim is not None
        self.to_q = nn.Linear(query_dim, inner_dim)
        self.to_k = nn.Linear(context_dim or query_dim, inner_dim)
        self.to_v = nn.Linear(context_dim or query_dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Dropout(0.0)])
        self.set_processor(VIMIAttnProcessor())

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
    ):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim)) if modulation else None
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim) if context_dim is not None else None
        self.attn = VIMIAttention(dim, context_dim, inner_dim or dim, heads)
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
    """

    def __init__(
        self,
        patch_dim: int,
        latent_dim: int,
        condition_dim: int,
        num_latent_layers: int,
        cross_attention_heads: int,
        latent_heads: int,
        patch_attention: bool,
        patch_condition: bool,
        modulation: bool,
        dropout: float,
    ):
        super().__init__()
        shared_dim = min(patch_dim, latent_dim)
        self.condition_to_latent = nn.Linear(condition_dim, latent_dim) if patch_condition else None
        self.condition_read = VIMIAttentionLayer(latent_dim, cross_attention_heads, condition_dim, condition_dim)
        self.patch_read = VIMIAttentionLayer(latent_dim, cross_attention_heads, patch_dim, shared_dim)
        self.latent_layers = nn.ModuleList(
            VIMIAttentionLayer(latent_dim, latent_heads, dropout=dropout, modulation=modulation)
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
        latents: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        latent_embedding: torch.Tensor | None = None,
        patch_embedding: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size * groups, patches_per_group, patch_dim)`): Patches.
            latents (`torch.Tensor` of shape `(batch_size, num_latents, latent_dim)`): Latents.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, condition_dim)`): Condition.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, 1, 1, tokens)`, *optional*): `True` = keep.
            latent_embedding (`torch.Tensor` of shape `(batch_size, 6, latent_dim)`, *optional*): Modulates latents.
            patch_embedding (`torch.Tensor` of shape `(batch_size, 6, patch_dim)`, *optional*): Modulates patches.
        """
        batch_size, groups = latents.shape[0], hidden_states.shape[0] // latents.shape[0]
        latents = self.condition_read(latents, encoder_hidden_states, encoder_attention_mask)
        latents = self.patch_read(_split_groups(latents, groups), hidden_states).view(batch_size, -1, latents.shape[2])
        for layer in self.latent_layers:
            latents = layer(latents, embedding=latent_embedding)
        context, mask = _split_groups(latents, groups), None
        if self.condition_to_latent is not None:
            condition = self.condition_to_latent(encoder_hidden_states).to(context.dtype)
            context = torch.cat([context, condition.repeat_interleave(groups, dim=0)], dim=1)
            if encoder_attention_mask is not None:
                mask = F.pad(encoder_attention_mask, (latents.shape[1] // groups, 0), value=True)
                mask = mask.repeat_interleave(groups, dim=0)
        hidden_states = self.write(hidden_states, context, mask)
        if self.patch_layer is not None:
            if patch_embedding is not None:
                patch_embedding = patch_embedding.repeat_interleave(groups, dim=0)
            hidden_states = self.patch_layer(hidden_states, embedding=patch_embedding)
        return hidden_states, latents


def _split_groups(latents: torch.Tensor, groups: int) -> torch.Tensor:
    return latents.view(latents.shape[0] * groups, -1, latents.shape[2])


class VIMITransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin, AttentionMixin):
    """
    Far-reaching Interleaved Transformer (FIT) over video patches, as in Snap Video, with the MLLM's embedding C in
    place of text embeddings. Patches span one frame; groups of patches span all frames; latents carry the computation.

    Args:
        in_channels (`int`, *optional*, defaults to `3`): Channels of the input video.
        out_channels (`int`, *optional*): Channels of the output; `in_channels` by default.
        num_frames (`int`, *optional*, defaults to `16`): Frames of a sample.
        height (`int`, *optional*, defaults to `64`): Height of a sample in pixels.
        width (`int`, *optional*, defaults to `64`): Width of a sample in pixels.
        patch_size (`tuple[int, int, int]`, *optional*, defaults to `(1, 8, 8)`): Frames, rows, columns of a patch.
        group_size (`tuple[int, int]`, *optional*, defaults to `(8, 8)`):
            Rows and columns of a group, in patches. A group spans all frames.
        patch_dim (`int`, *optional*, defaults to `256`): Channels of the patch tokens.
        latent_dim (`int`, *optional*, defaults to `320`): Channels of the latent tokens.
        num_latents (`int`, *optional*, defaults to `128`): Latent tokens over all groups.
        condition_dim (`int`, *optional*, defaults to `256`): Channels of C.
        num_layers (`int`, *optional*, defaults to `4`): FIT blocks.
        num_latent_layers (`int`, *optional*, defaults to `2`): Self-attention layers on the latents in each block.
        cross_attention_heads (`int`, *optional*, defaults to `4`): Heads of reads, writes and patch attention.
        latent_heads (`int`, *optional*, defaults to `5`): Heads of the latents' self-attention.
        patch_attention (`bool`, *optional*, defaults to `False`):
            Adds self-attention among the patches of a group to each block. Snap Video has none; small models need it.
        patch_condition (`bool`, *optional*, defaults to `False`):
            Lets the patches read C beside the latents in each write, so that what an image shows where need not pass
            through the latents. Not in Snap Video.
        modulation (`bool`, *optional*, defaults to `False`):
            Lets sigma and the last token of C, which has read the whole prompt, modulate the layers of latents and
            patches directly, besides being read as tokens. Not in Snap Video.
        input_skip (`bool`, *optional*, defaults to `False`):
            Adds the input to the output with a learned gain for each channel that depends on sigma, so that copying
            noise costs no capacity. Not in Snap Video.
        dropout (`float`, *optional*, defaults to `0.0`): Dropout in the feed-forwards of the latents.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VIMIBlock"]
    _repeated_blocks = ["VIMIBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "embedder", "modulation", "norm", "pos_embed", "latents"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        num_frames: int = 16,
        height: int = 64,
        width: int = 64,
        patch_size: tuple[int, int, int] = (1, 8, 8),
        group_size: tuple[int, int] = (8, 8),
        patch_dim: int = 256,
        latent_dim: int = 320,
        num_latents: int = 128,
        condition_dim: int = 256,
        num_layers: int = 4,
        num_latent_layers: int = 2,
        cross_attention_heads: int = 4,
        latent_heads: int = 5,
        patch_attention: bool = False,
        patch_condition: bool = False,
        modulation: bool = False,
        input_skip: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.out_channels = out_channels or in_channels
        self._check_divisible(num_frames, height, width)
        self.grid = (num_frames // patch_size[0], height // patch_size[1], width // patch_size[2])
        self.num_groups = (self.grid[1] // group_size[0]) * (self.grid[2] // group_size[1])
        if num_latents % self.num_groups:
            raise ValueError(f"`num_latents` {num_latents} is no multiple of the {self.num_groups} groups.")
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]

        self.patch_embed = nn.Linear(in_channels * patch_volume, patch_dim)
        self.patch_norm = nn.LayerNorm(patch_dim)
        self.pos_embed = nn.Parameter(_sincos_positions(self.grid, patch_dim))
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, latent_dim))
        self.sigma_embedder = VIMIScalarEmbedding(condition_dim, scale=100.0)
        self.fps_embedder = VIMIScalarEmbedding(condition_dim, scale=1000.0)
        self.modulation_proj = None
        if modulation:
            self.modulation_proj = nn.ModuleList(nn.Linear(condition_dim, 6 * dim) for dim in (latent_dim, patch_dim))
        self.transformer_blocks = nn.ModuleList(
            VIMIBlock(
                patch_dim,
                latent_dim,
                condition_dim,
                num_latent_layers,
                cross_attention_heads,
                latent_heads,
                patch_attention,
                patch_condition,
                modulation,
                dropout,
            )
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(patch_dim)
        self.proj_out = nn.Linear(patch_dim, self.out_channels * patch_volume)
        self.skip_gain = nn.Linear(condition_dim, self.out_channels * patch_volume) if input_skip else None
        if input_skip and self.out_channels != in_channels:
            raise ValueError(f"`input_skip` needs equal input and output channels, got {in_channels}, {out_channels}.")
        self.gradient_checkpointing = False
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight)
        for module in (self.proj_out, self.skip_gain, *(self.modulation_proj or ())):  # start at F = 0 and unmodulated
            if module is not None:
                nn.init.zeros_(module.weight)

    def _check_divisible(self, num_frames: int, height: int, width: int) -> None:
        (patch_t, patch_h, patch_w), (group_h, group_w) = self.config.patch_size, self.config.group_size
        for name, size, step in (
            ("num_frames", num_frames, patch_t),
            ("height", height, patch_h * group_h),
            ("width", width, patch_w * group_w),
        ):
            if size < 1 or size % step:
                raise ValueError(
                    f"`{name}` {size} does not fit the model: it must be a positive multiple of {step} "
                    f"(patches of {tuple(self.config.patch_size)}, groups of {tuple(self.config.group_size)} patches)."
                )

    def check_sample_size(self, num_frames: int, height: int, width: int) -> None:
        """
        Checks that a video of this size can be made.

        Raises:
            ValueError: If patches and groups do not fill the size, or it needs another number of groups than the
                model has latents for.
        """
        self._check_divisible(num_frames, height, width)
        if (height, width) != (self.config.height, self.config.width):
            raise ValueError(
                f"This model makes videos of {self.config.height}x{self.config.width} pixels (height x width), "
                f"not {height}x{width}."
            )

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """
        The network `F` of Snap Video's EDM (section 3.2).

        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, in_channels, num_frames, height, width)`):
                The preconditioned noisy video `c_in * x_sigma`.
            timestep (`torch.Tensor` of shape `(batch_size,)` or `()`): `c_noise = ln(sigma) / 4`.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, condition_dim)`): The embedding C.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): True where C counts.
            fps (`torch.Tensor` of shape `(batch_size,)`, *optional*):
                Frames per second; infinity means a still image. Defaults to infinity.
            attention_kwargs (`dict`, *optional*): `{"scale": ...}` scales loaded LoRA layers.
            return_dict (`bool`, *optional*, defaults to `True`): Return an output class or a tuple.
        """
        self.check_sample_size(*hidden_states.shape[2:])
        batch_size = hidden_states.shape[0]
        grid = tuple(size // patch for size, patch in zip(hidden_states.shape[2:], self.config.patch_size))
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(batch_size)
        period = torch.zeros_like(timestep) if fps is None else fps.to(timestep).reciprocal().expand(batch_size)

        sigma_embedding = self.sigma_embedder(timestep)
        condition = torch.stack([sigma_embedding, self.fps_embedder(period)], dim=1).to(encoder_hidden_states.dtype)
        condition = torch.cat([condition, encoder_hidden_states], dim=1)
        embeddings = ()
        if self.modulation_proj is not None:
            last = torch.full_like(timestep, encoder_hidden_states.shape[1]).long()
            if encoder_attention_mask is not None:  # the prompt is padded on the right
                last = encoder_attention_mask.sum(dim=1).long()
            summary = encoder_hidden_states[torch.arange(batch_size, device=timestep.device), last - 1]
            summary = F.silu(sigma_embedding.to(summary.dtype) + summary)
            embeddings = tuple(linear(summary).unflatten(1, (6, -1)) for linear in self.modulation_proj)
        if encoder_attention_mask is not None:
            encoder_attention_mask = F.pad(encoder_attention_mask.bool(), (2, 0), value=True)[:, None, None]

        patches = self._patchify(hidden_states, grid)
        hidden_states = self.patch_norm(self.patch_embed(patches)) + self._positions(grid).to(patches.dtype)
        # under autocast a norm gives fp32: the many patch tokens go on in the dtype of the computation
        hidden_states = hidden_states.to(encoder_hidden_states.dtype)
        hidden_states = hidden_states.view(batch_size * self.num_groups, -1, hidden_states.shape[2])
        latents = self.latents.expand(batch_size, -1, -1)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, latents = self._gradient_checkpointing_func(
                    block, hidden_states, latents, condition, encoder_attention_mask, *embeddings
                )
            else:
                hidden_states, latents = block(hidden_states, latents, condition, encoder_attention_mask, *embeddings)

        output = self.proj_out(self.norm_out(hidden_states)).view(batch_size, patches.shape[1], -1)
        if self.skip_gain is not None:
            output = output + self.skip_gain(F.silu(sigma_embedding))[:, None] * patches
        output = self._unpatchify(output, grid)
        if not return_dict:
            return (output,)
        return Transformer2DModelOutput(sample=output)

    def _patchify(self, video: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """`(B, C, T, H, W)` to `(B, tokens, C * patch)`, group by group: `(Gh Gw) (T gh gw)`."""
        (patch_t, patch_h, patch_w), (group_h, group_w) = self.config.patch_size, self.config.group_size
        batch_size, channels = video.shape[:2]
        video = video.view(
            batch_size, channels, grid[0], patch_t,
            grid[1] // group_h, group_h, patch_h, grid[2] // group_w, group_w, patch_w,
        )  # fmt: skip
        return video.permute(0, 4, 7, 2, 5, 8, 1, 3, 6, 9).reshape(
            batch_size, grid[0] * grid[1] * grid[2], channels * patch_t * patch_h * patch_w
        )

    def _unpatchify(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        (patch_t, patch_h, patch_w), (group_h, group_w) = self.config.patch_size, self.config.group_size
        batch_size = patches.shape[0]
        patches = patches.view(
            batch_size, grid[1] // group_h, grid[2] // group_w, grid[0], group_h, group_w,
            self.out_channels, patch_t, patch_h, patch_w,
        )  # fmt: skip
        return patches.permute(0, 6, 3, 7, 1, 4, 8, 2, 5, 9).reshape(
            batch_size, self.out_channels, grid[0] * patch_t, grid[1] * patch_h, grid[2] * patch_w
        )

    def _positions(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """Position table in token order, `(tokens, patch_dim)`; resampled when a video has another length."""
        table, (group_h, group_w) = self.pos_embed, self.config.group_size
        if grid != self.grid:
            volume = table.permute(3, 0, 1, 2)[None].float()
            table = F.interpolate(volume, size=grid, mode="trilinear")[0].permute(1, 2, 3, 0).to(table.dtype)
        table = table.view(grid[0], grid[1] // group_h, group_h, grid[2] // group_w, group_w, -1)
        return table.permute(1, 3, 0, 2, 4, 5).reshape(grid[0] * grid[1] * grid[2], -1)


class VIMIScalarEmbedding(nn.Module):
    """A scalar as one condition token: 256 sines and cosines of `scale * value`, then a two-layer MLP."""

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.scale = scale
        self.linear_1 = nn.Linear(256, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        features = get_timestep_embedding(self.scale * value.float(), 256, flip_sin_to_cos=True)
        return self.linear_2(F.silu(self.linear_1(features.to(self.linear_1.weight.dtype))))


def _sincos_positions(grid: tuple[int, int, int], dim: int) -> torch.Tensor:
    """Sines and cosines of the three coordinates, `(T, H, W, dim)`: where the learned table starts."""
    bands = -(-dim // 6)
    parts = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size)[:, None] * 100.0 ** (-torch.arange(bands) / bands)
        shape = [1, 1, 1, 2 * bands]
        shape[axis] = size
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=1).view(shape).expand(*grid, -1))
    return 0.5 * torch.cat(parts, dim=-1)[..., :dim].contiguous()
