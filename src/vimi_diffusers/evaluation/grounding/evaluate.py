# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether generated videos show what they should: the same measures on them, on real clips and without images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from ...emoji_world.captions import MOVES
from ..metrics.extractor import check_batch_size, check_videos
from ..metrics.frames import psnr
from .camera import CAMERAS, estimate_pan
from .geometry import working_copy
from .intervals import mean, share
from .motion import Motions, estimate_motions
from .recognition import PlaceRecognizer, SubjectRecognizer, default_extractor
from .samples import GroundingSample, check_known
from .subject import subject_crops


Videos = torch.Tensor | Iterable[torch.Tensor]
FLICKER_POOL = 2  # pixels, so that single noisy pixels count less than what blinks


@dataclass
class _Observed:
    """What the videos of one set show, sample by sample; `None` where a measure does not apply."""

    ranks: list[int | None] = field(default_factory=list)
    places: list[str | None] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    psnr: list[float | None] = field(default_factory=list)


def evaluate_grounding(
    samples: Sequence[GroundingSample],
    videos: Videos,
    references: Mapping[str, torch.Tensor] | None = None,
    places: Mapping[str, torch.Tensor] | None = None,
    real: Videos | None = None,
    withheld: Videos | None = None,
    extractor: Any = None,
    batch_size: int = 16,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """
    Measures how well videos are grounded in words and images.

    The same function measures each set: `videos`, and where they are given the real clips of the same samples (the
    ceiling) and what was generated with the images withheld (the floor). Only one batch of a set is held at a time.

    Args:
        samples (`Sequence[GroundingSample]`): What each video should show.
        videos (`torch.Tensor` of shape `(N, T, 3, H, W)`, or an iterable of such batches): RGB in [0, 1].
        references (`Mapping[str, torch.Tensor]`, *optional*):
            Images of all concepts that a subject is told from, of [`held_out_references`]; needed by samples with a
            concept.
        places (`Mapping[str, torch.Tensor]`, *optional*): Views of all places, of [`place_views`]; likewise.
        real, withheld (as `videos`, *optional*): The real clips; videos made without images.
        extractor (*optional*):
            Tells subjects apart, any image extractor of [`vimi_diffusers.evaluation.metrics`] or
            [`ColourFeatures`]. EfficientNet-Lite0 by default, or colours where its weights are not installed: the
            result's `extractor` says which.
        batch_size (`int`, *optional*, defaults to `16`): Videos that are measured together.
        report (`Callable`, *optional*): Called as `report(set, done, total)`.

    Returns:
        `dict`: `samples`, `extractor`, `references`, `places`, `chance`, and for each set (`generated`, `real`,
        `withheld`) named values, each with `count` and a 95 % interval (`low`, `high`): `identification_top_1`,
        `identification_top_5`, `subject_found`, `place_accuracy`, `motion_compliance`, `camera_compliance`, `flicker`
        and `first_frame_psnr`; also `motion_confusion` and `camera_confusion`, asked to seen. With real clips
        `flicker_relative_to_real` of the other sets. The same input gives the same result.

    Raises:
        `ValueError`: If videos and samples differ in number, videos have other sizes than the first ones, or a sample
            shows something that there is no reference for.
    """
    check_batch_size(batch_size)
    references, places = references or {}, places or {}
    if not len(samples):
        raise ValueError("There is no sample to measure.")
    check_known(samples, references, places)
    recognizer = None
    if any(sample.concept is not None for sample in samples):
        extractor = default_extractor() if extractor is None else extractor
        recognizer = SubjectRecognizer(references, extractor)
    find_place = PlaceRecognizer(places) if any(sample.place is not None for sample in samples) else None
    sets = {"generated": videos, "real": real, "withheld": withheld}
    for name, each in sets.items():
        if isinstance(each, torch.Tensor) and len(each) != len(samples):
            raise ValueError(f"There are {len(samples)} samples, but {len(each)} {name} videos.")
    result: dict[str, Any] = {
        "samples": len(samples),
        "extractor": getattr(extractor, "name", None) if recognizer else None,
        "references": len(references),
        "places": len(places),
        "chance": {
            "identification_top_1": 1 / len(references) if references else None,
            "identification_top_5": min(1.0, 5 / len(references)) if references else None,
            "place_accuracy": 1 / len(places) if places else None,
        },
    }
    observed = {}
    for name, each in sets.items():
        if each is not None:
            observed[name] = _observe(name, samples, each, recognizer, find_place, batch_size, report)
            result[name] = _summarise(samples, observed[name])
    for name in ("generated", "withheld"):
        if name in observed and "real" in observed:
            result[name]["flicker_relative_to_real"] = mean(observed[name].flicker, observed["real"].flicker)
    return result


def _batches(videos: Videos, number: int, name: str, batch_size: int) -> Iterator[torch.Tensor]:
    """Batches of at most `batch_size`; of one shape and `number` in all, or an error."""
    shape, done = None, 0
    for part in [videos] if isinstance(videos, torch.Tensor) else videos:
        for batch in part.split(batch_size):
            check_videos(batch)
            shape = shape or batch.shape[1:]
            if batch.shape[1:] != shape:
                raise ValueError(f"The {name} videos have the shapes {tuple(shape)} and {tuple(batch.shape[1:])}.")
            done += len(batch)
            if done > number:
                raise ValueError(f"There are {number} samples, but more than {number} {name} videos.")
            yield batch
    if done != number:
        raise ValueError(f"There are {number} samples, but {done} {name} videos.")


def _observe(
    name: str,
    samples: Sequence[GroundingSample],
    videos: Videos,
    recognizer: SubjectRecognizer | None,
    find_place: PlaceRecognizer | None,
    batch_size: int,
    report: Callable[[str, int, int], None],
) -> _Observed:
    observed, done = _Observed(), 0
    for batch in _batches(videos, len(samples), name, batch_size):
        asked = samples[done : done + len(batch)]
        frames = working_copy(batch)
        pan = estimate_pan(frames)
        motions = estimate_motions(frames, pan)
        observed.moves += motions.moves
        observed.cameras += [int(turn.sign()) for turn in pan]
        observed.places += find_place(frames) if find_place else [None] * len(batch)
        observed.ranks += _ranks(asked, frames, pan, motions, recognizer)
        observed.flicker += flicker(frames).tolist()
        observed.psnr += [_first_frame_psnr(sample, video) for sample, video in zip(asked, batch)]
        done += len(batch)
        report(name, done, len(samples))
    return observed


def _ranks(
    samples: Sequence[GroundingSample],
    frames: torch.Tensor,
    pan: torch.Tensor,
    motions: Motions,
    recognizer: SubjectRecognizer | None,
) -> list[int | None]:
    rows = [number for number, sample in enumerate(samples) if sample.concept is not None]
    ranks: list[int | None] = [None] * len(samples)
    if recognizer is not None and rows:
        own = Motions([motions.moves[row] for row in rows], motions.trajectory[rows], motions.gains[rows])
        crops, found = subject_crops(frames[rows], pan[rows], own)
        of_rows = recognizer.ranks(crops, found, [str(samples[row].concept) for row in rows])
        for row, rank in zip(rows, of_rows):
            ranks[row] = rank
    return ranks


def flicker(videos: torch.Tensor) -> torch.Tensor:
    """
    How much brightness jumps to and fro: the mean absolute second difference in time, after 2x2 pooling.

    Args:
        videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): RGB in [0, 1], at least 3 frames.

    Returns:
        `torch.Tensor` of shape `(B,)`: 0 for a still picture. Motion of textures counts too, so compare it with real
        clips of the same samples alone.
    """
    pooled = F.avg_pool2d(videos.float().flatten(0, 1), FLICKER_POOL).unflatten(0, videos.shape[:2])
    second = pooled[:, 2:] - 2 * pooled[:, 1:-1] + pooled[:, :-2]
    return second.abs().flatten(1).mean(dim=1)


def _first_frame_psnr(sample: GroundingSample, video: torch.Tensor) -> float | None:
    if sample.first_frame is None:
        return None
    if sample.first_frame.shape != video.shape[1:]:
        raise ValueError(
            f"A first frame has the shape {tuple(sample.first_frame.shape)}, its video's frames "
            f"{tuple(video.shape[1:])}: resize one of them."
        )
    return float(psnr(video[:1], sample.first_frame[None]))


def _summarise(samples: Sequence[GroundingSample], observed: _Observed) -> dict[str, Any]:
    ranks = [rank for sample, rank in zip(samples, observed.ranks) if sample.concept is not None]
    places = [(s.place, seen) for s, seen in zip(samples, observed.places) if s.place is not None]
    moves = [(s.move, seen) for s, seen in zip(samples, observed.moves) if s.move is not None]
    cameras = [
        (CAMERAS[s.camera], CAMERAS[seen]) for s, seen in zip(samples, observed.cameras) if s.camera is not None
    ]
    return {
        "identification_top_1": share([rank is not None and rank <= 1 for rank in ranks]),
        "identification_top_5": share([rank is not None and rank <= 5 for rank in ranks]),
        "subject_found": share([rank is not None for rank in ranks]),
        "place_accuracy": share([asked == seen for asked, seen in places]),
        "motion_compliance": share([asked == seen for asked, seen in moves]),
        "camera_compliance": share([asked == seen for asked, seen in cameras]),
        "flicker": mean(observed.flicker),
        "first_frame_psnr": mean([value for value in observed.psnr if value is not None]),
        "motion_confusion": _confusion(moves, MOVES),
        "camera_confusion": _confusion(cameras, tuple(CAMERAS.values())),
    }


def _confusion(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    return {asked: {seen: pairs.count((asked, seen)) for seen in names} for asked in names}
