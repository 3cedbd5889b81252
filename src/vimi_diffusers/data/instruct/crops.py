# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Reference images from frames: subjects without what is around them, backgrounds without subjects."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


MARGIN = 0.05  # around a subject, of its longer side
DILATION = 0.02  # of what is occupied, of the frame's longer side: masks end a little early
LEAST_FREE = 0.2  # of the frame that a crop without subjects must have
GREATEST_ASPECT = 16 / 9
MOST_FILLED = 0.6  # of the frame that may be made up
GRID = 64  # cells along the longer side in which a free crop is looked for


def cut_subject(frame: Image.Image, mask: np.ndarray) -> Image.Image:
    """
    A subject in the middle of a transparent square.

    Args:
        frame (`PIL.Image.Image`): The frame, RGB.
        mask (`np.ndarray` of shape `(height, width)`): Its pixels, bool, at least one.

    Returns:
        `PIL.Image.Image`: mode `"RGBA"`.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = np.zeros((bottom - top, right - left, 4), np.uint8)
    cut[..., :3] = np.asarray(frame)[top:bottom, left:right]
    cut[..., 3] = mask[top:bottom, left:right] * np.uint8(255)
    cut[cut[..., 3] == 0] = 0
    height, width = cut.shape[:2]
    side = round(max(height, width) * (1 + 2 * MARGIN))
    square = Image.new("RGBA", (side, side))
    square.paste(Image.fromarray(cut), ((side - width) // 2, (side - height) // 2))
    return square


def on_white(image: Image.Image) -> Image.Image:
    """A transparent image on white."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def fit(image: Image.Image, longest: int) -> Image.Image:
    """The image, made smaller if its longer side has over `longest` pixels."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    return image.resize(tuple(max(round(side * scale), 1) for side in image.size), Image.Resampling.LANCZOS)


def crop_background(frames: Sequence[Image.Image], occupied: Sequence[np.ndarray]) -> Image.Image | None:
    """
    The largest part of any frame, of an aspect ratio up to 16:9, that shows nothing of what is occupied.

    Args:
        frames (`Sequence[PIL.Image.Image]`): The frames, of one size.
        occupied (`Sequence[np.ndarray]`): Where subjects are in each: `(height, width)`, bool.

    Returns:
        `PIL.Image.Image`: the part; `None` if it would be too small a part of the frame.
    """
    found = [_largest_free(mask) for mask in occupied]
    best = max(range(len(frames)), key=lambda number: found[number][0])
    area, box = found[best]
    return frames[best].crop(box) if area >= LEAST_FREE * occupied[best].size else None


def fill_background(frames: Sequence[Image.Image], occupied: Sequence[np.ndarray]) -> Image.Image | None:
    """
    The frame with the fewest occupied pixels, these filled smoothly from what is around them.

    Args:
        frames (`Sequence[PIL.Image.Image]`): The frames, RGB, of one size.
        occupied (`Sequence[np.ndarray]`): Where subjects are in each: `(height, width)`, bool.

    Returns:
        `PIL.Image.Image`: the filled frame; `None` if too much of it would be made up.
    """
    best = min(range(len(frames)), key=lambda number: occupied[number].sum())
    hole = _dilated(occupied[best])
    if hole.mean() > MOST_FILLED:
        return None
    pixels = np.asarray(frames[best], np.float32)
    filled = _fill(pixels * ~hole[..., None], (~hole).astype(np.float32))
    return Image.fromarray(np.where(hole[..., None], filled, pixels).round().clip(0, 255).astype(np.uint8))


def _dilated(mask: np.ndarray) -> np.ndarray:
    """The mask grown by a square."""
    radius = max(round(DILATION * max(mask.shape)), 1)
    for _ in range(2):  # along each axis
        before = np.pad(mask, ((radius + 1, radius), (0, 0))).cumsum(0)
        mask = (before[2 * radius + 1 :] > before[: -2 * radius - 1]).T
    return mask


def _largest_free(occupied: np.ndarray) -> tuple[int, tuple[int, int, int, int]]:
    """Area and left, top, right, bottom of the largest free rectangle, in whole cells of a grid."""
    height, width = occupied.shape
    cell = -(-max(height, width) // GRID)
    blocked = np.pad(_dilated(occupied), ((0, -height % cell), (0, -width % cell)), constant_values=True)
    blocked = blocked.reshape(blocked.shape[0] // cell, cell, blocked.shape[1] // cell, cell).any((1, 3))
    columns = np.arange(blocked.shape[1])
    widths = (columns - columns[:, None] + 1).clip(0)  # of a rectangle by its first and last column
    best, place = 0, (0, 0, 0, 0)
    heights = np.zeros(len(columns), int)
    for bottom, row in enumerate(blocked, 1):
        heights = np.where(row, 0, heights + 1)
        lowest = np.minimum.accumulate(np.where(widths > 0, heights, bottom), axis=1)
        across = np.minimum(widths, GREATEST_ASPECT * lowest).astype(int)
        high = np.minimum(lowest, GREATEST_ASPECT * widths).astype(int)
        first, last = np.unravel_index((across * high).argmax(), widths.shape)
        wide, tall = across[first, last], high[first, last]
        if wide * tall > best:
            left = first + (widths[first, last] - wide) // 2
            best, place = wide * tall, (left, bottom - tall, left + wide, bottom)
    return int(best) * cell * cell, tuple(int(side) * cell for side in place)


def _fill(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Push-pull: holes take the mean of what is known around them, at the finest scale at which anything is."""
    if weight.all() or max(weight.shape) == 1:
        return pixels / np.maximum(weight, 1e-6)[..., None]
    height, width = weight.shape
    even = ((0, height % 2), (0, width % 2))
    sums = np.pad(pixels, (*even, (0, 0))).reshape(-(-height // 2), 2, -(-width // 2), 2, 3).sum((1, 3))
    weights = np.pad(weight, even).reshape(-(-height // 2), 2, -(-width // 2), 2).sum((1, 3))
    scale = np.maximum(weights, 1)
    coarse = _fill(sums / scale[..., None], weights / scale)
    channels = [
        Image.fromarray(np.ascontiguousarray(coarse[..., channel])).resize((width, height), Image.Resampling.BILINEAR)
        for channel in range(3)
    ]
    return pixels + (1 - weight)[..., None] * np.stack([np.asarray(channel) for channel in channels], -1)
