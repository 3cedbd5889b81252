# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a video should show, and what it is told from: the references of all held-out concepts, views of all places."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...emoji_world.captions import MOVES
from ...emoji_world.recipes import Sample
from ...emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer
from ...emoji_world.world_index import CLIP_FRAMES
from .camera import CAMERAS
from .geometry import FIELD_OF_VIEW, SIDE
from .subject import crop_on_white


STYLE = "fluent3d"  # of the videos; other drawings of a concept are no reference for what a video shows
CLIP_VIEWS = (0, 5, 10)  # frames of a clip
NUM_YAWS = 24


@dataclass(frozen=True)
class GroundingSample:
    """
    What one video should show. What is `None` is not measured in that video.

    Args:
        concept (`str`, *optional*): The subject, one of the references' names.
        place (`str`, *optional*): One of the places' names.
        move (`str`, *optional*): One of emoji world's moves.
        camera (`int`, *optional*): -1, 0 or 1: the camera pans left, stays, pans right.
        first_frame (`torch.Tensor` of shape `(3, H, W)`, *optional*): RGB in [0, 1] that a prediction starts from.

    Raises:
        `ValueError`: If the move or the camera is unknown.
    """

    concept: str | None = None
    place: str | None = None
    move: str | None = None
    camera: int | None = None
    first_frame: torch.Tensor | None = None

    def __post_init__(self):
        if self.move is not None and self.move not in MOVES:
            raise ValueError(f"Unknown motion {self.move!r}: choose from {', '.join(MOVES)}.")
        if self.camera is not None and self.camera not in CAMERAS:
            raise ValueError(f"Unknown camera {self.camera!r}: -1 pans left, 0 stays, 1 pans right.")

    @classmethod
    def from_emoji_world(cls, sample: Sample, first_frame: torch.Tensor | None = None) -> "GroundingSample":
        """What a sample of emoji world asks for."""
        recipe = sample.video.recipe
        return cls(sample.concept, sample.place, recipe.move, recipe.cam, first_frame)


def held_out_references(assets: EmojiWorldAssets) -> dict[str, torch.Tensor]:
    """
    Drawings of every held-out concept in the style of the videos, also of those that have no clip and no video shows.

    Args:
        assets ([`EmojiWorldAssets`]): The world's pixels.

    Returns:
        `dict[str, torch.Tensor]`: For each concept up to four crops on white, `(n, 3, 64, 64)` in [0, 1].
    """
    index, references = assets.index, {}
    for name, concept in index.concepts.items():
        rows = [index.clip_rows[name] + frame % CLIP_FRAMES for frame in CLIP_VIEWS] if concept.clip else []
        rows += [index.memory_rows[f"{STYLE}/{name}"]] if STYLE in concept.styles else []
        if concept.split != "held_out" or not rows:
            continue
        sprites = assets.sprites[rows].cpu().permute(0, 2, 1, 3).float() / 255
        colours = (sprites[:, :3] / sprites[:, 3:].clamp(min=1 / 255)).clamp(0, 1)  # were premultiplied
        references[name] = torch.stack([crop_on_white(*pair) for pair in zip(colours, sprites[:, 3])])
    return references


def place_views(assets: EmojiWorldAssets) -> dict[str, torch.Tensor]:
    """Views of every panorama in 24 directions, `(24, 3, 64, 64)` in [0, 1] each."""
    renderer = EmojiWorldRenderer(assets, num_frames=NUM_YAWS, size=SIDE)
    names, device = list(assets.index.places), renderer.device
    yaw = (torch.arange(NUM_YAWS, device=device) * 360 / NUM_YAWS).expand(len(names), -1)
    level, fov = (torch.full((len(names),), value, device=device) for value in (0.0, FIELD_OF_VIEW))
    views = renderer._background(torch.arange(len(names), device=device), yaw, fov, level, SIDE)
    return {name: view.transpose(0, 1).cpu() for name, view in zip(names, views)}


def check_known(samples: Sequence[GroundingSample], references: dict, places: dict) -> None:
    """
    Raises:
        `ValueError`: If a sample shows a concept without references or an unknown place, or there is too little to
            tell one from another.
    """
    for what, field, known in (("concept", "concept", references), ("place", "place", places)):
        asked = {getattr(sample, field) for sample in samples} - {None}
        if asked and len(known) < 2:
            raise ValueError(f"A {what} is told from others: give images of at least 2, got {len(known)}.")
        missing = sorted(asked - set(known))
        if missing:
            raise ValueError(f"There is no image of the {what} {missing[0]!r} among the {len(known)} given.")
