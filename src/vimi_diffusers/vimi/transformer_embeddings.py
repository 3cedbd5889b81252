# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the FIT generator's tokens start from: scalars, reference patches, positions and earlier latents."""

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


class VIMIScalarEmbedding(nn.Module):
    """
    One or several scalars as one condition token: sines and cosines of `scale * value`, then a two-layer MLP.

    Args:
        dim (`int`): Channels of the token.
        scale (`float`): Factor of the values.
        num_scalars (`int`, *optional*, defaults to `1`): Scalars of a token; they share the sines and cosines.
        mlp (`bool`, *optional*, defaults to `True`):
            256 sines and cosines and the MLP; `False` gives `dim` sines and cosines and no parameters.
    """

    def __init__(self, dim: int, scale: float, num_scalars: int = 1, mlp: bool = True):
        super().__init__()
        self.scale = scale
        self.features = (256 if mlp else dim) // num_scalars
        self.linear_1 = nn.Linear(256, dim) if mlp else None
        self.linear_2 = nn.Linear(dim, dim) if mlp else None

    def forward(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        Args:
            value (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_scalars)`): The scalars.
            dtype (`torch.dtype`): Type of the computation after the sines and cosines.

        Returns:
            `torch.Tensor` of shape `(batch_size, dim)`.
        """
        features = get_timestep_embedding(self.scale * value.flatten().float(), self.features, flip_sin_to_cos=True)
        features = features.view(value.shape[0], -1).to(dtype)
        if self.linear_1 is None:
            return features
        return self.linear_2(F.silu(self.linear_1(features)))


class VIMIReferenceEmbedding(nn.Module):
    """
    Reference images as condition tokens: one token for each patch, with fixed sines and cosines of the number of the
    image, the row and the column, so that any size and number of images will do.

    Args:
        dim (`int`): Channels of the tokens.
        patch_size (`int`): Rows and columns of a patch, in pixels.
    """

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(3 * patch_size**2, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_images, 3, height, width)` in [-1, 1] to `(batch_size, num_images * patches, dim)`."""
        if (
            images.ndim != 5
            or images.shape[2] != 3
            or images.shape[3] % self.patch_size + images.shape[4] % self.patch_size
        ):
            raise ValueError(
                f"`reference_images` of shape {tuple(images.shape)} must have the shape (batch, images, 3, height, "
                f"width) with height and width multiples of {self.patch_size}."
            )
        patches = F.pixel_unshuffle(images, self.patch_size)
        grid = (images.shape[1], *patches.shape[3:])
        tokens = self.norm(self.proj(patches.permute(0, 1, 3, 4, 2).flatten(1, 3)))
        return tokens + sincos_positions(grid, tokens.shape[2], tokens.device).flatten(0, 2).to(tokens.dtype)


class VIMISelfConditioning(nn.Module):
    """
    Latent self-conditioning of RIN (2212.11972): the latents that a sampling step starts from are the learned ones
    plus `LN0(MLP(previous))`, with a residual pre-norm MLP and a norm LN0 whose gain starts at zero.

    Args:
        dim (`int`): Channels of the latents.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="gelu")
        self.norm_out = nn.LayerNorm(dim)
        nn.init.zeros_(self.norm_out.weight)

    def forward(self, latents: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return latents + self.norm_out(previous + self.ff(self.norm(previous)))


def sincos_positions(grid: tuple[int, int, int], dim: int, device: torch.device | None = None) -> torch.Tensor:
    """Sines and cosines of three coordinates, `(*grid, dim)`: where the learned table of positions starts."""
    bands = -(-dim // 6)
    parts = []
    for axis, size in enumerate(grid):
        frequencies = 100.0 ** (-torch.arange(bands, device=device) / bands)
        angle = torch.arange(size, device=device)[:, None] * frequencies
        shape = [1, 1, 1, 2 * bands]
        shape[axis] = size
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=1).view(shape).expand(*grid, -1))
    return 0.5 * torch.cat(parts, dim=-1)[..., :dim].contiguous()


def resample_positions(table: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """
    A table of positions `(frames, rows, columns, dim)` stretched to another grid, linearly between its entries; the
    table itself for its own grid.
    """
    if _is_known_equal(grid, table.shape[:3]):
        return table
    volume = table.permute(3, 0, 1, 2)[None].float()
    return F.interpolate(volume, size=grid, mode="trilinear")[0].permute(1, 2, 3, 0).to(table.dtype)


def resample_groups(table: torch.Tensor, groups: tuple[int, int], new_groups: tuple[int, int]) -> torch.Tensor:
    """
    A table of latents `(num_latents, dim)` of `groups` rows and columns of groups, for other numbers of groups: each
    new group takes the latents of the group nearest to its relative place. Latents of different groups have nothing
    in common slot by slot, so that means of them would be meaningless.
    """
    if _is_known_equal(new_groups, groups):
        return table
    rows, columns = (
        (2 * torch.arange(new, device=table.device) + 1) * old // (2 * new) for old, new in zip(groups, new_groups)
    )
    index = (rows[:, None] * groups[1] + columns).flatten()
    return table.view(groups[0] * groups[1], -1, table.shape[1])[index].flatten(0, 1)


def _is_known_equal(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    # sizes that a compiled graph leaves open are never taken for equal: one graph then serves all of them
    return all(statically_known_true(a == b) for a, b in zip(size, other))
