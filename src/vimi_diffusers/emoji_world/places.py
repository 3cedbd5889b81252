# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Places of emoji world: panoramas and photos, their phrases, and the views that the memory shows of them."""

import math
from dataclasses import dataclass

import numpy as np


PANORAMA_WIDTH, PANORAMA_HEIGHT = 512, 256
MEMORY_YAWS = (0, 60, 120, 180, 240, 300)
MEMORY_FIELD_OF_VIEW = 75.0


@dataclass(frozen=True)
class Place:
    """A background.

    Attributes:
        name (`str`): Name in the memory and, unless `file` says otherwise, of the source file.
        phrase (`str`): Place phrase of captions, e.g. `"in a grassy park"`.
        text (`str`): Text of its memory pairs, e.g. `"A grassy park"`.
        split (`str`): `"train"` or `"held_out"`.
        file (`str`, *optional*, defaults to `""`): File name in the photo package; empty for panoramas.
        licence (`str`, *optional*, defaults to `"CC-BY-4.0"`): Licence of a photo.
    """

    name: str
    phrase: str
    text: str
    split: str = "train"
    file: str = ""
    licence: str = "CC-BY-4.0"

    @property
    def kind(self) -> str:
        return "photo" if self.file else "panorama"


# The phrases say what a panorama shows: the names of the files mislead ("bridge" is the inside of a footbridge).
PANORAMAS = (
    Place("apartment", "in an empty sunlit room", "An empty sunlit room"),
    Place("bridge", "in a glass footbridge", "A glass footbridge"),
    Place("city", "on a grey city square", "A grey city square with tall buildings"),
    Place("dawn", "in a rocky desert at dawn", "A rocky desert at dawn", "held_out"),
    Place("esplanade", "in a shopping mall", "A shopping mall"),
    Place("forest", "in a pine forest", "A pine forest"),
    Place("hall", "in a ballroom", "A ballroom with a stage"),
    Place("lab", "in an old laboratory", "An old laboratory"),
    Place("lobby", "in a bright lobby", "A bright lobby", "held_out"),
    Place("night", "on a savanna at night", "A savanna at night"),
    Place("park", "in a grassy park", "A grassy park"),
    Place("sky", "over a calm sea", "A calm sea"),
    Place("studio", "in a photo studio", "A photo studio with black curtains"),
    Place("sunrise", "in a misty meadow at sunrise", "A misty meadow at sunrise"),
    Place("sunset", "on an old stone square at sunset", "An old stone square at sunset"),
    Place("venice", "on a quay at dusk", "A quay at dusk", "held_out"),
    Place("warehouse", "in an empty warehouse", "An empty warehouse"),
    Place("workshop", "in a factory workshop", "A factory workshop"),
)
PHOTOS = (
    Place(
        "aitzgorri",
        "in a green meadow below mountains",
        "A green meadow below mountains",
        file="aitzgorri_by_Aitzol_Berasategi.jpg",
    ),
    Place("hilltop", "on a hilltop at sunset", "A hilltop at sunset", file="sunset_by_Aitzol_Berasategi.jpg"),
    Place(
        "life", "by a rocky stream in the woods", "A rocky stream in the woods", file="life_by_Aitzol_Berasategi.jpg"
    ),
    Place(
        "picosdeeuropa",
        "on a mountain path",
        "A mountain path",
        "held_out",
        file="picosdeeuropa_by_Aitzol_Berasategi.jpg",
    ),
    Place(
        "seeding",
        "in a field of dandelions",
        "A field of dandelions",
        file="seeding_by_Clements_Engelhardt.jpg",
        licence="CC0-1.0",
    ),
)


def tone_map(radiance: np.ndarray) -> np.ndarray:
    """Map a high-dynamic-range panorama to display values.

    The panoramas were stored with a lossy codec that rings around highlights; the negative values that it left are
    painted over from their surroundings.

    Args:
        radiance (`np.ndarray` of shape `(height, width, 3)`): Linear light.

    Returns:
        `np.ndarray` of shape `(height, width, 3)` and type `uint8`: sRGB-like values.
    """
    import cv2

    ringing = cv2.dilate((radiance < 0).any(-1).astype(np.uint8), np.ones((3, 3), np.uint8))
    light = radiance.astype(np.float64).clip(0, 6e4)
    exposed = np.tanh(light / np.percentile(light, 90) * 0.8)
    image = (exposed ** (1 / 2.2) * 255).round().astype(np.uint8)
    return cv2.inpaint(image, ringing, 3, cv2.INPAINT_TELEA)


def panorama_view(panorama: np.ndarray, yaw: float, fov: float, size: int) -> np.ndarray:
    """Look into a panorama: a square perspective view at the level of the horizon.

    Args:
        panorama (`np.ndarray` of shape `(height, width, 3)`): Equirectangular picture.
        yaw (`float`): Direction of view in degrees; larger is further right.
        fov (`float`): Horizontal field of view in degrees.
        size (`int`): Side of the view in pixels.

    Returns:
        `np.ndarray` of shape `(size, size, 3)`: The view, in the panorama's type.
    """
    import cv2

    height, width = panorama.shape[:2]
    # Two samples a pixel and side, averaged: small views would otherwise skip pixels of the panorama.
    samples = 2 * size
    focal = samples / 2 / math.tan(math.radians(fov) / 2)
    axis = (np.arange(samples) + 0.5 - samples / 2) / focal
    x, y = np.meshgrid(axis, axis)
    longitude = np.arctan2(x, 1.0) + math.radians(yaw)
    latitude = np.arctan2(y, np.hypot(x, 1.0))
    # Column and row of the panorama for each sample.
    u = (longitude / (2 * math.pi) + 0.5) % 1 * width - 0.5
    v = (latitude / math.pi + 0.5) * height - 0.5
    view = cv2.remap(
        panorama, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)
