# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The renderer of emoji world: batched torch, one implementation for every device.

All images of a world lie in one atlas of premultiplied pixels. A batch of samples becomes a few tensors of fixed
shape; from them videos and reference images are computed without a loop over samples and without a host
synchronisation, so that rendering can be captured in a CUDA graph together with the training step.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from .recipes import MAX_REFERENCES, Recipe, Reference, Sample
from .world_index import CLIP_FRAMES, WorldIndex


CIRCLE_RADIUS = 0.14
BOUNCE_HEIGHT = 0.22
ZOOM = math.log(1.35)
# move -> shift in x and y (times `dist`), log of the zoom, radius of the circle, height of the bounce
TRAJECTORIES = {
    "still": (0.0, 0.0, 0.0, 0.0, 0.0),
    "right": (1.0, 0.0, 0.0, 0.0, 0.0),
    "left": (-1.0, 0.0, 0.0, 0.0, 0.0),
    "up": (0.0, -1.0, 0.0, 0.0, 0.0),
    "down": (0.0, 1.0, 0.0, 0.0, 0.0),
    "near": (0.0, 0.0, ZOOM, 0.0, 0.0),
    "far": (0.0, 0.0, -ZOOM, 0.0, 0.0),
    "circle": (0.0, 0.0, 0.0, CIRCLE_RADIUS, 0.0),
    "bounce": (0.0, 0.0, 0.0, 0.0, BOUNCE_HEIGHT),
}

WHITE, SPRITE, CROP, FIRST_FRAME = range(4)  # kinds of reference slots
FIXED_FOV = 75.0  # of slots that show no crop
MARGIN = 0.25  # a view is narrower than 180 degrees, so no ray leaves its middle by more than a quarter turn


class RenderBatch(NamedTuple):
    """
    What the renderer needs to know of B samples with K reference slots each; every field is a tensor.

    Attributes:
        subject_row (`torch.LongTensor` of shape `(B,)`): First atlas row of the subject.
        subject_loop (`torch.LongTensor` of shape `(B, 2)`): 1 for a clip and 0 for a still; phase of the clip.
        motion (`torch.FloatTensor` of shape `(B, 8)`): x, y, scale, shift in x and y, log zoom, circle radius, bounce
            height; lengths in parts of the frame's side.
        place_row (`torch.LongTensor` of shape `(B,)`): Panorama.
        view (`torch.FloatTensor` of shape `(B, 4)`): yaw, angle swept to the right, field of view, pitch; in degrees.
        reference_kind (`torch.LongTensor` of shape `(B, K)`): `WHITE` (unused), `SPRITE`, `CROP`, `FIRST_FRAME`.
        reference_row (`torch.LongTensor` of shape `(B, K)`): Atlas row of a sprite, panorama of a crop, 0 otherwise.
        reference_sprite (`torch.FloatTensor` of shape `(B, K, 3)`): rotation in degrees, scale, brightness.
        reference_view (`torch.FloatTensor` of shape `(B, K, 3)`): yaw, field of view, pitch of a crop; in degrees.
    """

    subject_row: torch.Tensor
    subject_loop: torch.Tensor
    motion: torch.Tensor
    place_row: torch.Tensor
    view: torch.Tensor
    reference_kind: torch.Tensor
    reference_row: torch.Tensor
    reference_sprite: torch.Tensor
    reference_view: torch.Tensor

    def to(self, device: str | torch.device, non_blocking: bool = True) -> "RenderBatch":
        """Moves every tensor to `device`."""
        return RenderBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    @classmethod
    def from_samples(
        cls, samples: Sequence[Sample], index: WorldIndex, num_reference_slots: int = MAX_REFERENCES
    ) -> "RenderBatch":
        """
        Collects the parameters of `samples`.

        Raises:
            `ValueError`: If a sample shows more images than there are slots, or images that the world lacks.
        """
        rows, slots = [], []
        for sample in samples:
            rows.append(_video_parameters(sample, index))
            if len(sample.context) > num_reference_slots:
                raise ValueError(
                    f"Sample {sample.id} shows {len(sample.context)} images, but there are {num_reference_slots} "
                    "slots: give more."
                )
            slots += [_reference_parameters(reference, index) for reference in sample.context]
            slots += [_UNUSED] * (num_reference_slots - len(sample.context))
        video = torch.from_numpy(np.array(rows, dtype=np.float64))
        reference = torch.from_numpy(np.array(slots, dtype=np.float64)).view(len(rows), num_reference_slots, -1)
        return cls(
            subject_row=video[:, 0].long(),
            subject_loop=video[:, 1:3].long(),
            motion=video[:, 3:11].float(),
            place_row=video[:, 11].long(),
            view=video[:, 12:16].float(),
            reference_kind=reference[..., 0].long(),
            reference_row=reference[..., 1].long(),
            reference_sprite=reference[..., 2:5].float(),
            reference_view=reference[..., 5:8].float(),
        )


_UNUSED = (WHITE, 0, 0.0, 1.0, 1.0, 0.0, FIXED_FOV, 0.0)


def _video_parameters(sample: Sample, index: WorldIndex) -> tuple[float, ...]:
    recipe: Recipe = sample.video.recipe
    animated = recipe.kind == "anim"
    image = f"clips/{sample.concept}@0" if animated else f"memory/{recipe.style}/{sample.concept}"
    if sample.place not in index.place_rows:
        raise ValueError(f"The emoji world in {index.root} has no panorama {sample.place!r}.")
    dx, dy, zoom, circle, bounce = TRAJECTORIES[recipe.move]
    motion = (recipe.x, recipe.y, recipe.scale, dx * recipe.dist, dy * recipe.dist, zoom, circle, bounce)
    view = (recipe.yaw, recipe.cam * recipe.pan, recipe.fov, recipe.pitch)
    return (
        index.image_row(image), float(animated), recipe.phase, *motion, index.place_rows[sample.place], *view
    )  # fmt: skip


def _reference_parameters(reference: Reference, index: WorldIndex) -> tuple[float, ...]:
    kind, _, name = reference.image.partition("/")
    if kind == "frame":
        return (FIRST_FRAME, *_UNUSED[1:])
    if kind == "places":
        if name not in index.place_rows:
            raise ValueError(f"The emoji world in {index.root} has no panorama {name!r}.")
        crop = (reference.yaw, reference.fov, reference.pitch)
        return (CROP, index.place_rows[name], *_UNUSED[2:5], *crop)
    augmentation = (reference.rotation or 0.0, reference.scale or 1.0, reference.brightness or 1.0)
    return (SPRITE, index.image_row(reference.image), *augmentation, *_UNUSED[5:])


def _premultiplied(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA")).copy()
    alpha = rgba[..., 3:].astype(np.uint16)
    rgba[..., :3] = (rgba[..., :3] * alpha + 127) // 255
    return rgba


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read ({error}): build the emoji world again.") from error


@dataclass
class EmojiWorldAssets:
    """
    The pixels of an emoji world.

    Attributes:
        index ([`WorldIndex`]): Its tables, which say what lies in which row.
        sprites (`torch.ByteTensor` of shape `(R, size, 4, size)`): Memory images and clip frames: row, y, channel, x;
            RGB premultiplied by alpha. This order makes resampling along x, then y, two plain matrix products.
        panoramas (`torch.ByteTensor` of shape `(P, 3, height, width)`): Panoramas.
    """

    index: WorldIndex
    sprites: torch.Tensor
    panoramas: torch.Tensor

    @classmethod
    def load(
        cls, root: str | Path | WorldIndex, device: str | torch.device = "cpu", num_threads: int = 8
    ) -> "EmojiWorldAssets":
        """
        Decodes every image of a world once.

        Args:
            root (`str`, `Path` or [`WorldIndex`]): A folder written by `vimi emoji-world build`, or its tables.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the pixels go.
            num_threads (`int`, *optional*, defaults to `8`): Threads that decode.

        Raises:
            `ValueError`: If an image cannot be read or has another size than the tables say.
        """
        index = root if isinstance(root, WorldIndex) else WorldIndex.load(root)
        size = index.size
        num_rows = len(index.memory_rows) + CLIP_FRAMES * len(index.clip_rows)
        sprites = np.empty((num_rows, size, 4, size), dtype=np.uint8)
        files = [(index.root / "memory" / e.file_name, index.memory_rows[e.id], 1) for e in index.memory.values()]
        files += [(index.root / "clips" / f"{c}.webp", row, CLIP_FRAMES) for c, row in index.clip_rows.items()]

        def load_sprites(file: tuple[Path, int, int]) -> None:
            path, row, frames = file
            rgba = _premultiplied(_open(path))
            if rgba.shape != (frames * size, size, 4):
                raise ValueError(f"{path} is {rgba.shape[1]}x{rgba.shape[0]} pixels, not {size}x{frames * size}.")
            sprites[row : row + frames] = rgba.reshape(frames, size, size, 4).transpose(0, 1, 3, 2)

        paths = [index.root / place.file_name for place in index.places.values()]
        with ThreadPoolExecutor(num_threads) as pool:
            panoramas = list(pool.map(lambda path: np.asarray(_open(path).convert("RGB")), paths))
            list(pool.map(load_sprites, files, chunksize=32))
        for path, panorama in zip(paths, panoramas):
            if panorama.shape != panoramas[0].shape:
                raise ValueError(f"{path} has shape {panorama.shape}, not {panoramas[0].shape} like {paths[0]}.")
        stacked = torch.from_numpy(np.stack(panoramas)).permute(0, 3, 1, 2).contiguous()
        return cls(index, torch.from_numpy(sprites).to(device), stacked.to(device))


class EmojiWorldRenderer:
    """
    Renders batches of samples.

    Args:
        assets ([`EmojiWorldAssets`]): The world's pixels; their device is where rendering happens.
        num_frames (`int`, *optional*, defaults to `16`): T. Any number shows the same motion, over the same time.
        size (`int`, *optional*, defaults to `64`): Side of the videos.
        reference_size (`int`, *optional*): Side of the reference images; `size` by default.
    """

    def __init__(
        self,
        assets: EmojiWorldAssets,
        num_frames: int = CLIP_FRAMES,
        size: int = 64,
        reference_size: int | None = None,
    ):
        for name, value in (("num_frames", num_frames), ("size", size), ("reference_size", reference_size or size)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}: give a number of at least 1.")
        self.num_frames, self.size, self.reference_size = num_frames, size, reference_size or size
        self.sprites = assets.sprites
        self.device = assets.sprites.device
        sides = {self.size, self.reference_size}
        self.textures = {side: self._panorama_texture(assets.panoramas, side) for side in sides}
        self.num_places = len(assets.panoramas)
        frames = torch.arange(num_frames, device=self.device)
        self.time = frames / max(num_frames - 1, 1)
        self.clip_frame = frames * CLIP_FRAMES // num_frames

    @staticmethod
    def _panorama_texture(panoramas: torch.Tensor, size: int) -> torch.Tensor:
        """
        All panoramas above each other, each going on around for `MARGIN` of its width at both sides: one `grid_sample`
        reads any of them, and a view across the seam needs no wrap-around of its own.
        """
        reduce = max(1, 64 // size)  # a frame of 64 pixels shows about 1.6 of a 512-pixel panorama's pixels in one
        texture = panoramas.float() / 255
        if reduce > 1:
            texture = F.avg_pool2d(texture, reduce)
        margin = int(texture.shape[-1] * MARGIN)
        texture = F.pad(texture, (margin, margin, 0, 0), mode="circular")
        return texture.transpose(0, 1).reshape(1, 3, -1, texture.shape[-1]).contiguous()

    @torch.no_grad()
    def videos(self, batch: RenderBatch) -> torch.Tensor:
        """
        Renders the videos.

        Args:
            batch ([`RenderBatch`]): B samples, on the assets' device.

        Returns:
            `torch.FloatTensor` of shape `(B, 3, T, size, size)`, in [-1, 1].
        """
        return self._frames(batch, self.time, self.clip_frame)

    @torch.no_grad()
    def references(self, batch: RenderBatch, videos: torch.Tensor | None = None) -> torch.Tensor:
        """
        Renders the reference images, RGB; unused slots are white.

        Args:
            batch ([`RenderBatch`]): B samples with K slots, on the assets' device.
            videos (`torch.Tensor`, *optional*): What [`~EmojiWorldRenderer.videos`] returned for them, if at hand:
                spares rendering the first frames.

        Returns:
            `torch.FloatTensor` of shape `(B * K, 3, reference_size, reference_size)`, in [-1, 1], slot after slot.
        """
        num_slots = batch.reference_kind.shape[1]
        kind, row = batch.reference_kind.flatten(), batch.reference_row.flatten()
        if videos is None:
            videos = self._frames(batch, self.time[:1], self.clip_frame[:1])
        first = videos[:, :, 0]
        if self.size != self.reference_size:
            first = F.interpolate(first, (self.reference_size,) * 2, mode="bilinear", antialias=True)
        first = first.repeat_interleave(num_slots, 0)
        augmentation = batch.reference_sprite.flatten(0, 1)
        sprite = self._sprites_on_white(torch.where(kind == SPRITE, row, 0), augmentation)
        yaw, fov, pitch = batch.reference_view.flatten(0, 1).unbind(1)
        place = torch.where(kind == CROP, row, 0)
        crop = self._background(place, yaw[:, None], fov, pitch, self.reference_size)[:, :, 0].mul_(2).sub_(1)
        kind = kind[:, None, None, None]
        image = torch.where(kind == SPRITE, sprite, torch.where(kind == CROP, crop, first))
        return image.masked_fill_(kind == WHITE, 1.0)

    def _frames(self, batch: RenderBatch, time: torch.Tensor, clip_frame: torch.Tensor) -> torch.Tensor:
        x, y, scale, dx, dy, zoom, circle, bounce = batch.motion[:, :, None].unbind(1)
        turn = 2 * math.pi * time
        x = x + dx * (time - 0.5) + circle * turn.cos()
        y = y + dy * (time - 0.5) + circle * turn.sin() + bounce * (0.5 - turn.sin().abs())
        scale = scale * torch.exp(zoom * (2 * time - 1))
        animated, phase = batch.subject_loop[:, :, None].unbind(1)
        rows = batch.subject_row[:, None] + animated * ((clip_frame + phase) % CLIP_FRAMES)
        subject = self._place_sprites(rows.flatten(), x.flatten(), y.flatten(), scale.flatten())
        subject = subject.unflatten(0, rows.shape).permute(0, 3, 1, 2, 4)  # B, channel, T, y, x

        yaw, sweep, fov, pitch = batch.view.unbind(1)
        yaw = yaw[:, None] + sweep[:, None] * (time - 0.5)
        frames = self._background(batch.place_row, yaw, fov, pitch, self.size)
        frames.addcmul_(frames, subject[:, 3:], value=-1).add_(subject[:, :3])
        return frames.mul_(2).sub_(1)

    def _place_sprites(
        self, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """N sprites on transparent frames: `(N, size, 4, size)` (y, channel, x), premultiplied, in [0, 1]."""
        texture = self.sprites[rows].float()
        resolution = texture.shape[1]
        across = self._resampling(x, scale, resolution)
        down = self._resampling(y, scale, resolution).div_(255)
        frame = torch.bmm(texture.flatten(1, 2), across.transpose(1, 2))  # N, texture y and channel, x
        frame = torch.bmm(down, frame.view(len(rows), resolution, -1))
        return frame.unflatten(2, (4, self.size))

    def _resampling(self, centre: torch.Tensor, scale: torch.Tensor, resolution: int) -> torch.Tensor:
        """
        Weights of texels in pixels along one axis, `(N, size, resolution)`, for sprites `scale` wide around `centre`.

        A pixel is the exact mean of the sprite over a window as wide as the pixel; where the sprite is enlarged the
        window stays one texel wide, which is linear interpolation. Both are exact for any part of a pixel, and outside
        the sprite is nothing.
        """
        texel = torch.arange(resolution, device=self.device)
        pixel = (torch.arange(self.size, device=self.device) + 0.5) / self.size
        per_frame = (resolution / scale)[:, None]  # texels in one frame's side
        position = (pixel - centre[:, None]) * per_frame + (resolution - 1) / 2
        window = (per_frame / self.size).clamp(min=1.0)[:, :, None]
        distance = (position[:, :, None] - texel).abs_()
        return distance.neg_().add_((window + 1) / 2).clamp_(0, 1).div_(window)

    def _background(
        self, place: torch.Tensor, yaw: torch.Tensor, fov: torch.Tensor, pitch: torch.Tensor, size: int
    ) -> torch.Tensor:
        """Perspective views `(N, 3, T, size, size)` in [0, 1] for directions `yaw` of shape `(N, T)`; in degrees."""
        texture = self.textures[size]
        height = texture.shape[2] // self.num_places
        offset = (torch.arange(size, device=self.device) + 0.5 - size / 2) / (size / 2)
        offset = offset * torch.tan(torch.deg2rad(fov) / 2)[:, None]
        ray_x, ray_y = offset[:, None, :], offset[:, :, None]
        pitch = torch.deg2rad(pitch)[:, None, None]
        ray_y, ray_z = ray_y * pitch.cos() + pitch.sin(), pitch.cos() - ray_y * pitch.sin()
        turn = torch.atan2(ray_x, ray_z) / (2 * math.pi)
        latitude = torch.atan2(ray_y, torch.hypot(ray_x, ray_z))

        # `grid_sample` coordinates run from -1 to 1, edge to edge (align_corners=False). The rays of a view are the
        # same in all its frames; panning adds a shift.
        start = (yaw / 360 + 0.5).remainder(1)
        shift = (start + MARGIN) * 2 / (1 + 2 * MARGIN) - 1
        v = ((latitude / math.pi + 0.5) * height).clamp(0.5, height - 0.5) + place[:, None, None] * height
        grid = torch.empty(*yaw.shape, size, size, 2, device=self.device)
        torch.add((turn * 2 / (1 + 2 * MARGIN))[:, None], shift[:, :, None, None], out=grid[..., 0])
        grid[..., 1] = (v * 2 / texture.shape[2] - 1)[:, None]
        views = F.grid_sample(
            texture.expand(len(yaw), -1, -1, -1), grid.flatten(1, 2), padding_mode="border", align_corners=False
        )
        return views.unflatten(2, (yaw.shape[1], size))

    def _sprites_on_white(self, rows: torch.Tensor, augmentation: torch.Tensor) -> torch.Tensor:
        """Sprites rotated (counter-clockwise), scaled and brightened, on white: `(N, 3, ref, ref)` in [-1, 1]."""
        texture = self.sprites[rows].permute(0, 2, 1, 3).float() / 255
        rotation, scale, brightness = augmentation.unbind(1)
        rotation = torch.deg2rad(rotation)
        cosine, sine, zero = rotation.cos() / scale, rotation.sin() / scale, torch.zeros_like(scale)
        theta = torch.stack((cosine, -sine, zero, sine, cosine, zero), dim=1).view(-1, 2, 3)
        oversampling = max(1, texture.shape[-1] // self.reference_size)
        side = self.reference_size * oversampling
        grid = F.affine_grid(theta, [len(rows), 4, side, side], align_corners=False)
        image = F.grid_sample(texture, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if oversampling > 1:
            image = F.avg_pool2d(image, oversampling)
        color, alpha = image[:, :3] * brightness[:, None, None, None], image[:, 3:]
        return torch.minimum(color, alpha).sub_(alpha).mul_(2).add_(1)
