# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether a generated subject has the colours of its own reference: identification by mean colour.

Every video shows its subject moving from left to right before one place, with a camera that stands still. So the right
half of the first frames and the left half of the last ones show the place alone; together they are a background plate,
taken from the video itself. In the middle of the video, whatever differs from the plate is the subject. Nothing of
the true clip enters: neither the subject's shape and position nor its colours. On true clips the measure finds nearly
what alpha would give, and still does under noise of 6% of the range.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from ..emoji_world.captions import canonical_plan
from ..emoji_world.recipes import Draws, Sample
from ..emoji_world.render import EmojiWorldAssets
from ..emoji_world.world_index import WorldIndex


THRESHOLD = 20.0  # CIELAB units between a subject's pixel and the plate
SMOOTHING = 1.0  # pixels, standard deviation


def crossing_samples(samples: Sequence[Sample], index: WorldIndex) -> list[Sample]:
    """
    The same concepts and images in videos that can be measured: from left to right, before the world's first training
    place, under a still camera.

    Args:
        samples (`Sequence[Sample]`): Canonical samples of the subject task with both images.
        index ([`WorldIndex`]): Their world.
    """
    place = next(place for place in index.places.values() if place.split == "train")
    plan = canonical_plan(Draws("crossing"), "right", 0, place.phrase)
    crossing = []
    for sample in samples:
        concept = index.concepts[sample.concept]
        recipe = dataclasses.replace(sample.video.recipe, move="right", cam=0, x=0.5)
        by_role = {reference.role: reference for reference in sample.context}
        by_role["place"] = dataclasses.replace(by_role["place"], image=f"places/{place.place}")
        crossing.append(
            dataclasses.replace(
                sample,
                prompt=plan.text(concept.phrase, concept.plural, True, True),
                caption=plan.text(concept.phrase, concept.plural),
                context=tuple(by_role[role] for role in plan.image_order(True, True)),
                place=place.place,
                video=dataclasses.replace(sample.video, recipe=recipe),
            )
        )
    return crossing


def subject_colours(videos: np.ndarray) -> np.ndarray:
    """
    Mean colours of subjects that move from left to right before a still background.

    Args:
        videos (`np.ndarray` of shape `(videos, frames, height, width, 3)`): RGB in [0, 1].

    Returns:
        `np.ndarray` of shape `(videos, 3)`: RGB, `nan` for a video in which nothing stands out from the background.
    """
    import cv2

    colours = np.full((len(videos), 3), np.nan)
    for colour, video in zip(colours, videos):
        lab = to_lab(video)
        smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), SMOOTHING) for frame in lab])
        # The raw difference is sharp at the subject's edge, the smoothed one is blind to single noisy pixels.
        differences = np.minimum(_difference_from_plate(lab), _difference_from_plate(smooth))
        subject = differences > THRESHOLD
        if subject.any():
            colour[:] = video[_middle(video)][subject].mean(axis=0)
    return colours


def _middle(video: np.ndarray) -> slice:
    return slice(len(video) // 4, len(video) - len(video) // 4)


def _difference_from_plate(lab: np.ndarray) -> np.ndarray:
    ends, half = max(1, len(lab) // 8), lab.shape[2] // 2
    plate = np.concatenate([lab[-ends:, :, :half].mean(axis=0), lab[:ends, :, half:].mean(axis=0)], axis=1)
    return np.linalg.norm(lab[_middle(lab)] - plate, axis=-1)


def reference_colours(samples: Sequence[Sample], assets: EmojiWorldAssets) -> np.ndarray:
    """
    Mean colours of the subjects' reference images as the prompt shows them, weighted by alpha.

    Args:
        samples (`Sequence[Sample]`): Samples with an image in the role `"subject"`.
        assets ([`EmojiWorldAssets`]): The pixels.

    Returns:
        `np.ndarray` of shape `(samples, 3)`: RGB in [0, 1].
    """
    colours = []
    for sample in samples:
        reference = next(reference for reference in sample.context if reference.role == "subject")
        sprite = assets.sprites[assets.index.image_row(reference.image)].float() / 255  # premultiplied
        alpha = sprite[:, 3:]
        shown = torch.minimum(sprite[:, :3] * (reference.brightness or 1.0), alpha)
        colours.append((shown.sum(dim=(0, 2)) / alpha.sum()).cpu().numpy())
    return np.stack(colours)


def identify(measured: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """
    How often a measured colour finds its own reference among all references, by distance in CIELAB.

    Args:
        measured (`np.ndarray` of shape `(n, 3)`): RGB; `nan` finds nothing.
        references (`np.ndarray` of shape `(n, 3)`): RGB.

    Returns:
        `dict`: `top_1` and `top_5` (shares of n), `distance` (mean CIELAB distance to the own reference, over what was
        found) and `not_found` (number of `nan` rows).
    """
    found = ~np.isnan(measured).any(axis=1)
    if not found.any():
        return {"top_1": 0.0, "top_5": 0.0, "distance": None, "not_found": len(measured)}
    distances = np.linalg.norm(to_lab(measured[found])[:, None] - to_lab(references)[None], axis=-1)
    own = distances[np.arange(len(distances)), np.flatnonzero(found)]
    rank = (distances <= own[:, None]).sum(axis=1)  # a tie is no success
    return {
        "top_1": round(float((rank <= 1).sum() / len(measured)), 4),
        "top_5": round(float((rank <= 5).sum() / len(measured)), 4),
        "distance": round(float(own.mean()), 3),
        "not_found": int((~found).sum()),
    }


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to CIELAB (D65), on the last axis of any array."""
    import cv2

    flat = np.ascontiguousarray(rgb, dtype=np.float32).reshape(-1, 1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(rgb.shape)
