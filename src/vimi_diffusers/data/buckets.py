# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Buckets: the few shapes that clips are brought to, so that each batch has one."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .decoding import MediaInfo
from .schema import BadSample


MIN_RATE = 0.75  # of a bucket's frame rate that a clip must have: below, frames would be shown twice
_PATTERN = re.compile(r"(\d+)x(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Bucket:
    """
    A shape of clips.

    Args:
        num_frames (`int`): Frames; 1 is an image.
        height (`int`): Height in pixels.
        width (`int`): Width in pixels.
        fps (`float`, *optional*): Frames per second; by default each clip's own. Images have infinitely many.
    """

    num_frames: int
    height: int
    width: int
    fps: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Bucket":
        """
        Reads `"16x64x64@5.333"`: frames x height x width @ frames per second. Without `@`, each clip's own rate.

        Raises:
            ValueError: If the text has another form or a number is zero.
        """
        match = _PATTERN.fullmatch(str(text).strip())
        if not match or any(float(number) == 0 for number in match.groups() if number):
            raise ValueError(f'A bucket is written as "16x64x64@5.333" (frames x height x width @ fps), got {text!r}.')
        frames, height, width = map(int, match.groups()[:3])
        fps = float(match[4]) if match[4] else None
        if frames == 1 and fps:
            raise ValueError(f"The bucket {text!r} is of images, which have no frame rate: leave '@{match[4]}' out.")
        return cls(frames, height, width, fps)

    def __str__(self) -> str:
        rate = "" if self.fps is None else f"@{self.fps:g}"
        return f"{self.num_frames}x{self.height}x{self.width}{rate}"

    def rate(self, info: MediaInfo) -> float:
        """Frames per second of a clip in this bucket; infinite for images."""
        if info.is_image or self.num_frames == 1:
            return math.inf
        return self.fps or info.fps

    def span(self, info: MediaInfo) -> float:
        """Seconds from the first to the last frame of a clip in this bucket."""
        return (self.num_frames - 1) / self.rate(info)


def choose_bucket(info: MediaInfo, buckets: Sequence[Bucket]) -> int:
    """
    Number of the bucket that a video or image goes to: of those it can fill, the nearest in aspect ratio; among equals
    the nearest in length, then in frame rate, then the largest that needs no enlargement (the smallest if all do).

    Images go to buckets of one frame if there are any, else to all: there their frame is repeated, the paper's joint
    batches. Videos go to buckets of one frame only if there are no others.

    Raises:
        BadSample: If there is no bucket that the video can fill.
    """
    still = [number for number, bucket in enumerate(buckets) if bucket.num_frames == 1]
    moving = [number for number in range(len(buckets)) if number not in still]
    numbers = (still or moving) if info.is_image else (moving or still)
    if not info.is_image and moving:
        fast = [n for n in numbers if info.fps >= MIN_RATE * buckets[n].rate(info)]
        if not fast:
            slowest = min(buckets[n].rate(info) for n in numbers)
            raise BadSample("too_slow", f"{info.fps:.3g} frames per second, the buckets want {slowest:.3g} or more.")
        numbers = [n for n in fast if buckets[n].span(info) <= info.duration + 0.5 / info.fps]
        if not numbers:
            shortest = min(buckets[n].span(info) + 1 / buckets[n].rate(info) for n in fast)
            length = info.duration + 1 / info.fps
            raise BadSample("too_short", f"{length:.2f} s long, the buckets want {shortest:.2f} s or more.")

    def distance(number: int) -> tuple[float, ...]:
        bucket = buckets[number]
        aspect = abs(math.log(bucket.width / bucket.height * info.height / info.width))
        enlarged = bucket.height > info.height or bucket.width > info.width
        area = bucket.height * bucket.width
        rate = 0.0 if info.is_image else abs(math.log(bucket.rate(info) / info.fps)) if bucket.num_frames > 1 else 0.0
        length = 0.0 if info.is_image else abs(info.duration - bucket.span(info))
        return round(aspect, 6), round(length, 6), round(rate, 6), enlarged, area if enlarged else -area

    return min(numbers, key=distance)
