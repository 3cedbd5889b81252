# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The FIT video generator of Snap Video (2402.14797, section 3.4, table 8), conditioned on the MLLM's embedding C."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import apply_lora_scale
from torch import nn

from .transformer_blocks import VIMIBlock
from .transformer_embeddings import (
    VIMIReferenceEmbedding,
    VIMIScalarEmbedding,
    VIMISelfConditioning,
    resample_groups,
    resample_positions,
    sincos_positions,
)
from .transformer_presets import PRESETS


@dataclass
class VIMITransformer3DModelOutput(Transformer2DModelOutput):
    """
    Output of [`VIMITransformer3DModel`].

    Args:
        sample (`torch.Tensor` of shape `(batch_size, out_channels, num_frames, height, width)`):
            The network `F` of Snap Video's EDM.
        latents (`torch.Tensor` of shape `(batch_size, num_latents, latent_dim)`):
            The latents after the last block: the next step's `previous_latents` with `self_conditioning`.
    """

    # with a default, as accelerate's hooks build outputs anew from a dict of their fields
    latents: torch.Tensor | None = None


class VIMITransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin, AttentionMixin):
    """
    Far-reaching Interleaved Transformer (FIT) over video patches, as in Snap Video, with the MLLM's embedding C in
    place of text embeddings. Patches span one frame; groups of patches span all frames; latents carry the computation.

    Args:
        in_channels (`int`, *optional*, defaults to `3`):
            Channels of the input video: 6 for an upscaler, the noisy video and the upsampled base video.
        out_channels (`int`, *optional*): Channels of the output; `in_channels` by default.
        num_frames (`int`, *optional*, defaults to `16`): Frames of a sample in training.
        height (`int`, *optional*, defaults to `64`): Height of a sample in training, in pixels.
        width (`int`, *optional*, defaults to `64`): Width of a sample in training, in pixels.
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
        self_conditioning (`bool`, *optional*, defaults to `False`):
            Lets the latents start from those of the sampling step before (RIN, 2212.11972; Snap Video has it).
        resolution_token (`bool`, *optional*, defaults to `False`):
            Adds a condition token for the height and width that a video had originally (Snap Video has it).
        noise_level_token (`bool`, *optional*, defaults to `False`):
            Adds a condition token for the noise put on an upscaler's low-resolution input.
        reference_patch_size (`int`, *optional*):
            Rows and columns, in pixels, of the patches in which reference images are read directly, as further
            condition tokens beside C. Not in VIMI, whose generator sees them through the MLLM alone.
        shared_positions (`bool`, *optional*, defaults to `False`):
            One table of patch positions for all groups, as in FIT; the latents then carry the place of a group.
        scalar_mlp (`bool`, *optional*, defaults to `True`):
            Embeds scalars by sines, cosines and a two-layer MLP; `False` leaves the MLP out.
        dropout (`float`, *optional*, defaults to `0.0`): Dropout in the feed-forwards of the latents.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VIMIBlock"]
    _repeated_blocks = ["VIMIBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embed", "embedder", "modulation", "norm", "pos_embed", "latents", "skip_gain",
    ]  # fmt: skip
    # Groups are split over the devices. Only the latents' self-attention talks to other devices.
    _cp_plan = {
        "transformer_blocks.0": {
            "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
            "encoder_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        },
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        "latents_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }

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
        self_conditioning: bool = False,
        resolution_token: bool = False,
        noise_level_token: bool = False,
        reference_patch_size: int | None = None,
        shared_positions: bool = False,
        scalar_mlp: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.out_channels = out_channels or in_channels
        self.check_sample_size(num_frames, height, width)
        self.grid = self._grid(num_frames, height, width)
        self.groups = self._groups(self.grid)
        self.num_groups = self.groups[0] * self.groups[1]
        if num_latents % self.num_groups:
            raise ValueError(f"`num_latents` {num_latents} is no multiple of the {self.num_groups} groups.")
        if not scalar_mlp and (condition_dim % 4 or condition_dim < 8):
            raise ValueError(
                f"Without `scalar_mlp`, `condition_dim` must be a multiple of 4, at least 8, got {condition_dim}."
            )
        if input_skip and self.out_channels != in_channels:
            raise ValueError(f"`input_skip` needs equal input and output channels, got {in_channels}, {out_channels}.")
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]

        self.patch_embed = nn.Linear(in_channels * patch_volume, patch_dim)
        self.patch_norm = nn.LayerNorm(patch_dim)
        table_size = (self.grid[0], *group_size) if shared_positions else self.grid
        self.pos_embed = nn.Parameter(sincos_positions(table_size, patch_dim))
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, latent_dim))
        self.sigma_embedder = VIMIScalarEmbedding(condition_dim, scale=100.0, mlp=scalar_mlp)
        self.fps_embedder = VIMIScalarEmbedding(condition_dim, scale=1000.0, mlp=scalar_mlp)
        self.resolution_embedder = self.noise_level_embedder = self.reference_embedder = None
        if resolution_token:
            self.resolution_embedder = VIMIScalarEmbedding(condition_dim, 100.0, num_scalars=2, mlp=scalar_mlp)
        if noise_level_token:
            self.noise_level_embedder = VIMIScalarEmbedding(condition_dim, scale=100.0, mlp=scalar_mlp)
        if reference_patch_size is not None:
            self.reference_embedder = VIMIReferenceEmbedding(condition_dim, reference_patch_size)
        self.modulation_proj = None
        if modulation:
            self.modulation_proj = nn.ModuleList(nn.Linear(condition_dim, 6 * dim) for dim in (latent_dim, patch_dim))
        self.self_conditioner = VIMISelfConditioning(latent_dim) if self_conditioning else None
        self.transformer_blocks = nn.ModuleList(
            VIMIBlock(
                patch_dim,
                latent_dim,
                condition_dim,
                num_latents // self.num_groups,
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
        self.latents_out = nn.Identity()  # where context parallelism gathers the latents
        self.norm_out = nn.LayerNorm(patch_dim)
        self.proj_out = nn.Linear(patch_dim, self.out_channels * patch_volume)
        self.skip_gain = nn.Linear(condition_dim, self.out_channels * patch_volume) if input_skip else None
        self.gradient_checkpointing = False
        self._init_weights()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "VIMITransformer3DModel":
        """
        A published configuration of Snap Video (2402.14797, table 8) with fresh weights.

        Args:
            name (`str`):
                `"base-500m"` (492,036,400 parameters), `"base-3.9b"` (3,907,319,856) or `"upscaler-3.9b"`
                (3,909,466,160). Inside `with torch.device("meta")` no memory is taken.
            overrides (`dict`, *optional*): Arguments of the constructor to change, such as `num_layers=2`.

        Raises:
            ValueError: If there is no preset of this name.

        Example:

        ```py
        >>> model = VIMITransformer3DModel.from_preset("base-500m", height=72, width=128, group_size=(9, 8))
        ```
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}. The presets are {', '.join(map(repr, PRESETS))}.")
        return cls(**{**PRESETS[name], **overrides})

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight)
        for module in (self.skip_gain, *(self.modulation_proj or ())):  # start as if they were not there
            if module is not None:
                nn.init.zeros_(module.weight)

    def check_sample_size(self, num_frames: int, height: int, width: int) -> None:
        """
        Checks that a video of this size can be made: any that patches and groups fill. The tables of positions and
        latents are resampled for a size other than the trained one; the latents of a group keep their number.

        Raises:
            ValueError: If patches and groups do not fill the size.
        """
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

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        resolution: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
        previous_latents: torch.Tensor | None = None,
        reference_images: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> VIMITransformer3DModelOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        The network `F` of Snap Video's EDM (section 3.2).

        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, in_channels, num_frames, height, width)`):
                The preconditioned noisy video `c_in * x_sigma`; for an upscaler followed by the upsampled base video.
            timestep (`torch.Tensor` of shape `(batch_size,)` or `()`): `c_noise = ln(sigma) / 4`.
            encoder_hidden_states (`torch.Tensor` of shape `(batch_size, tokens, condition_dim)`): The embedding C.
            encoder_attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): True where C counts.
            fps (`torch.Tensor` of shape `(batch_size,)` or `()`, *optional*):
                Frames per second; infinity means a still image. Defaults to infinity.
            resolution (`torch.Tensor` of shape `(batch_size, 2)` or `(2,)`, *optional*):
                Height and width in pixels that the video had originally, for a model with `resolution_token`; the
                sample's own by default.
            noise_level (`torch.Tensor` of shape `(batch_size,)` or `()`, *optional*):
                `c_noise` of the noise put on the base video, for a model with `noise_level_token`, which needs it.
                It must be finite.
            previous_latents (`torch.Tensor` of shape `(batch_size, num_latents, latent_dim)`, *optional*):
                `latents` of the sampling step before, for a model with `self_conditioning`; zeros by default.
            reference_images (`torch.Tensor`, *optional*):
                Reference images in [-1, 1] of shape `(batch_size, num_images, 3, image_height, image_width)`, for a
                model with `reference_patch_size`.
            reference_mask (`torch.Tensor` of shape `(batch_size, num_images)`, *optional*):
                True where there is an image; everywhere by default.
            attention_kwargs (`dict`, *optional*): `{"scale": ...}` scales loaded LoRA layers.
            return_dict (`bool`, *optional*, defaults to `True`): Return an output class or a tuple.

        Raises:
            ValueError: If a size does not fit, or an input is given that the model was built without.
        """
        self.check_sample_size(*hidden_states.shape[2:])
        grid = self._grid(*hidden_states.shape[2:])
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(hidden_states.shape[0])
        dtype = encoder_hidden_states.dtype

        sigma_embedding = self.sigma_embedder(timestep, dtype)
        scalars = self._scalar_tokens(hidden_states, sigma_embedding, fps, resolution, noise_level)
        references, reference_mask = self._reference_tokens(reference_images, reference_mask)
        condition = torch.cat([scalars, *references, encoder_hidden_states], dim=1)
        mask = self._condition_mask(scalars, reference_mask, encoder_hidden_states, encoder_attention_mask)
        embeddings = self._modulation(sigma_embedding, encoder_hidden_states, encoder_attention_mask)

        patches = self._patchify(hidden_states, grid)
        positions = self._positions(grid).to(patches.dtype)
        hidden_states = self.patch_norm(self.patch_embed(patches)).unflatten(1, (-1, positions.shape[1])) + positions
        # under autocast a norm gives fp32: the many patch tokens go on in the dtype of the computation
        hidden_states = hidden_states.flatten(1, 2).to(dtype)
        latents = self._first_latents(grid, previous_latents, batch_size=hidden_states.shape[0])
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, latents = self._gradient_checkpointing_func(
                    block, hidden_states, latents, condition, mask, *embeddings
                )
            else:
                hidden_states, latents = block(hidden_states, latents, condition, mask, *embeddings)

        output, latents = self.proj_out(self.norm_out(hidden_states)), self.latents_out(latents)
        if self.skip_gain is not None:
            output = output + self.skip_gain(F.silu(sigma_embedding))[:, None] * patches.to(output.device)
        output = self._unpatchify(output, grid)
        if not return_dict:
            return (output, latents)
        return VIMITransformer3DModelOutput(sample=output, latents=latents)

    def _scalar_tokens(
        self,
        video: torch.Tensor,
        sigma_embedding: torch.Tensor,
        fps: torch.Tensor | None,
        resolution: torch.Tensor | None,
        noise_level: torch.Tensor | None,
    ) -> torch.Tensor:
        """Noise level, frame period in seconds (0: a still image) and what else the model is told, as tokens."""
        self._check_option("resolution", resolution, "resolution_token")
        self._check_option("noise_level", noise_level, "noise_level_token")
        (batch_size, _, _, height, width), dtype = video.shape, sigma_embedding.dtype
        options = {"dtype": torch.float32, "device": video.device}
        period = torch.zeros(batch_size, **options)
        if fps is not None:
            period = torch.as_tensor(fps, **options).reciprocal().expand(batch_size)
        tokens = [sigma_embedding, self.fps_embedder(period, dtype)]
        if self.resolution_embedder is not None:
            if resolution is None:
                resolution = torch.stack([torch.full((batch_size,), size, **options) for size in (height, width)], 1)
            tokens.append(self.resolution_embedder(resolution.expand(batch_size, -1).float().log(), dtype))
        if self.noise_level_embedder is not None:
            if noise_level is None:
                raise ValueError("A model with `noise_level_token` needs the `noise_level` of the base video.")
            tokens.append(self.noise_level_embedder(noise_level.expand(batch_size), dtype))
        return torch.stack(tokens, dim=1)

    def _reference_tokens(
        self, images: torch.Tensor | None, mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Tokens of the reference images, if there are any, and the mask of these tokens."""
        self._check_option("reference_images", images, "reference_patch_size")
        if images is None:
            if mask is not None:
                raise ValueError("`reference_mask` was given without `reference_images`.")
            return [], None
        tokens = self.reference_embedder(images)
        if mask is None:
            return [tokens], tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        return [tokens], mask.bool().repeat_interleave(tokens.shape[1] // images.shape[1], dim=1)

    def _check_option(self, name: str, value: Any, option: str) -> None:
        if value is not None and not self.config[option]:
            raise ValueError(f"`{name}` was given, but this model was built without `{option}`: leave `{name}` out.")

    def _condition_mask(
        self,
        scalars: torch.Tensor,
        reference_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Which condition tokens count, `(batch_size, 1, 1, tokens)`; `None` if all do."""
        if encoder_attention_mask is None and reference_mask is None:
            return None
        if encoder_attention_mask is None:
            encoder_attention_mask = reference_mask.new_ones(encoder_hidden_states.shape[:2])
        masks = [mask.bool() for mask in (reference_mask, encoder_attention_mask) if mask is not None]
        return F.pad(torch.cat(masks, dim=1), (scalars.shape[1], 0), value=True)[:, None, None]

    def _modulation(
        self,
        sigma_embedding: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        """What modulates latents and patches, each of shape `(batch_size, 6, dim)`; nothing without `modulation`."""
        if self.modulation_proj is None:
            return ()
        batch_size, tokens, _ = encoder_hidden_states.shape
        rows = torch.arange(batch_size, device=encoder_hidden_states.device)
        last = torch.full_like(rows, tokens)
        if encoder_attention_mask is not None:  # the prompt is padded on the right
            last = encoder_attention_mask.sum(dim=1).long()
        summary = F.silu(sigma_embedding + encoder_hidden_states[rows, last - 1])
        return tuple(linear(summary).unflatten(1, (6, -1)) for linear in self.modulation_proj)

    def _first_latents(
        self, grid: tuple[int, int, int], previous_latents: torch.Tensor | None, batch_size: int
    ) -> torch.Tensor:
        """Learned latents, with `self_conditioning` plus what becomes of the previous step's."""
        self._check_option("previous_latents", previous_latents, "self_conditioning")
        latents = resample_groups(self.latents, self.groups, self._groups(grid)).repeat(batch_size, 1, 1)
        if self.self_conditioner is None:
            return latents
        if previous_latents is None:
            previous_latents = torch.zeros_like(latents)
        if previous_latents.shape != latents.shape:
            raise ValueError(
                f"`previous_latents` of shape {tuple(previous_latents.shape)} do not fit this video: they must have "
                f"the shape {tuple(latents.shape)} of the `latents` of its step before."
            )
        return self.self_conditioner(latents, previous_latents.to(latents.dtype))

    def _positions(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """Positions in token order, `(groups, patches_per_group, patch_dim)`; of one group if all share them."""
        group_h, group_w = self.config.group_size
        size = (grid[0], group_h, group_w) if self.config.shared_positions else grid
        table = resample_positions(self.pos_embed, size)
        table = table.reshape(size[0], size[1] // group_h, group_h, size[2] // group_w, group_w, table.shape[3])
        return table.permute(1, 3, 0, 2, 4, 5).flatten(2, 4).flatten(0, 1)

    def _grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches along each axis."""
        patch_t, patch_h, patch_w = self.config.patch_size
        return num_frames // patch_t, height // patch_h, width // patch_w

    def _groups(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        """Rows and columns of groups."""
        return grid[1] // self.config.group_size[0], grid[2] // self.config.group_size[1]

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
