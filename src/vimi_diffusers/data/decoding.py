# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Encoded videos and images to pixels: seek to a clip, take frames by time, resize and crop."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import PIL.Image
from PIL import Image

from ..media import load_image
from .schema import BadSample, Media, TarMember


av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is said once, by `BadSample`

_MOVING = ("GIF", "MPEG")  # formats that Pillow knows and PyAV should read


@dataclass(frozen=True)
class MediaInfo:
    """
    What a file's header says.

    Args:
        is_image (`bool`): Whether it is a still image.
        height (`int`): Height in pixels, upright.
        width (`int`): Width in square pixels.
        fps (`float`): Frames per second; infinite for an image.
        duration (`float`): Seconds from the first to the last frame; 0 for an image.
    """

    is_image: bool
    height: int
    width: int
    fps: float
    duration: float


@dataclass
class Clip:
    """
    Frames of a video at the size of a bucket.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): The pixels, uint8.
        first (`PIL.Image.Image`): The first frame in its own resolution, cropped alike.
    """

    frames: np.ndarray
    first: Image.Image


def name_of(media: Media) -> str:
    """How messages call a file."""
    if isinstance(media, TarMember):
        return f"{media.shard.name}/{media.name}"
    return str(media) if isinstance(media, Path) else f"{len(media)} bytes"


def read_image(media: Media) -> Image.Image:
    """
    An image, upright and in RGB, transparency on white.

    Raises:
        BadSample: If it is missing or cannot be decoded.
    """
    try:
        with _opened(media) as file, Image.open(file) as image:
            return load_image(image)
    except FileNotFoundError:
        raise BadSample("missing_file", f"no file {name_of(media)}.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample("unreadable_image", f"{name_of(media)}: {error}") from None


def probe(media: Media, fps: float | None = None) -> MediaInfo:
    """
    Reads a file's header, and of a video the first frame.

    Args:
        media (`Media`): A video or an image.
        fps (`float`, *optional*): The true frame rate, if the file's is not.

    Raises:
        BadSample: If the file is missing, cannot be read or has no frame.
    """
    size = _still_size(media)
    if size:
        return MediaInfo(True, *size, math.inf, 0.0)
    with _video(media) as (container, stream):
        frames = _decoded(container, stream, media)
        _, frame = next(frames, (0, None))
        if frame is None:
            raise BadSample("zero_frames", f"{name_of(media)} has no frames.")
        rate = _rate(stream, media)
        length = _length(container, stream, rate)
        if length is None:  # the header does not say: count
            length = (1 + sum(1 for _ in frames)) / rate
        true_rate = fps or rate
        duration = max(length - 1 / rate, 0.0) * rate / true_rate
        return MediaInfo(False, *_upright_size(frame, stream), true_rate, duration)


def probe_image(media: Media) -> None:
    """
    Reads an image's header.

    Raises:
        BadSample: If the file is missing or no image.
    """
    if not _still_size(media):
        raise BadSample("unreadable_image", f"{name_of(media)} is not an image.")


def read_clip(
    media: Media,
    num_frames: int,
    height: int,
    width: int,
    start: float = 0.0,
    step: float = 0.0,
    fps: float | None = None,
) -> Clip:
    """
    Frames of a video at equal steps of time, the nearest to each by timestamp, resized to cover `height` x `width` and
    cropped around the centre. An image gives the same frame `num_frames` times.

    Args:
        media (`Media`): A video or an image.
        num_frames (`int`): How many frames.
        height (`int`): Their height in pixels.
        width (`int`): Their width in pixels.
        start (`float`, *optional*, defaults to `0.0`): Time of the first frame, in seconds after the video's first.
        step (`float`, *optional*, defaults to `0.0`): Seconds between frames.
        fps (`float`, *optional*): The true frame rate, if the file's is not.

    Raises:
        BadSample: If the file is missing or broken, or ends before the last frame's time.
    """
    target = height, width
    if _still_size(media):
        image = read_image(media)
        scaled = image.resize(_cover(image.size, (width, height)), Image.Resampling.BICUBIC)
        frames = np.repeat(_crop(np.asarray(scaled), target)[None], num_frames, axis=0)
        return Clip(frames, Image.fromarray(_crop(np.asarray(image), _window(image.size[::-1], target))))
    with _video(media) as (container, stream):
        rate = _rate(stream, media)
        scale = (fps or rate) / rate  # of true time to the file's
        times = [(start + number * step) * scale for number in range(num_frames)]
        picked = _nearest(_from(container, stream, media, times[0], rate), times, 1.5 / rate, media)
        size = _upright_size(picked[0], stream)
        pixels: dict[int, np.ndarray] = {}
        for frame in picked:
            if id(frame) not in pixels:
                pixels[id(frame)] = _crop(_pixels(frame, _cover(size, target)), target)
        first = _crop(_pixels(picked[0], size), _window(size, target))
        return Clip(np.stack([pixels[id(frame)] for frame in picked]), Image.fromarray(np.ascontiguousarray(first)))


def check_whole(media: Media) -> int:
    """
    Decodes a whole video or image.

    Returns:
        `int`: the number of frames.

    Raises:
        BadSample: If something in it cannot be decoded, or it ends before its header says.
    """
    if _still_size(media):
        read_image(media)
        return 1
    with _video(media) as (container, stream):
        last, count = 0.0, 0
        for last, _ in _decoded(container, stream, media):
            count += 1
        if not count:
            raise BadSample("zero_frames", f"{name_of(media)} has no frames.")
        rate = _rate(stream, media)
        length = _length(container, stream, rate)
        if length is not None and last < length - 2.5 / rate:
            raise BadSample(
                "truncated", f"{name_of(media)} ends after {last:.2f} s, its header promises {length:.2f} s."
            )
        return count


# ------------------------------------------------------------------ opening
@contextmanager
def _opened(media: Media) -> Iterator[io.BufferedIOBase]:
    if isinstance(media, Path):
        with open(media, "rb") as file:
            yield file
    else:
        yield io.BytesIO(media.read() if isinstance(media, TarMember) else media)


def _still_size(media: Media) -> tuple[int, int] | None:
    """Upright height and width if Pillow knows the file as one still image."""
    try:
        with _opened(media) as file, Image.open(file) as image:
            if image.format in _MOVING or getattr(image, "n_frames", 1) > 1:
                return None
            turned = image.getexif().get(0x0112, 1) >= 5
            return image.size if turned else image.size[::-1]
    except FileNotFoundError:
        raise BadSample("missing_file", f"no file {name_of(media)}.") from None
    except Image.DecompressionBombError as error:
        raise BadSample("unreadable_image", f"{name_of(media)}: {error}") from None
    except PIL.UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSample("unreadable_image", f"{name_of(media)}: {error}") from None


@contextmanager
def _video(media: Media) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    data = media.read() if isinstance(media, TarMember) else media
    if not (data.stat().st_size if isinstance(data, Path) else len(data)):
        raise BadSample("zero_frames", f"{name_of(media)} is empty.")
    try:
        container = av.open(str(data) if isinstance(data, Path) else io.BytesIO(data), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadSample("unreadable_video", f"{name_of(media)}: {_short(error)}") from None
    with container:
        if not container.streams.video:
            raise BadSample("zero_frames", f"{name_of(media)} has no video stream.")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the loader's processes share the cores
        yield container, stream


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# ------------------------------------------------------------------ time
def _rate(stream: av.VideoStream, media: Media) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise BadSample("zero_frames", f"{name_of(media)} has no frame rate, so no frames.")
    return float(rate)


def _length(container: av.container.InputContainer, stream: av.VideoStream, rate: float) -> float | None:
    """Seconds that the video stream lasts by the header, `None` if it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if stream.frames:
        return stream.frames / rate
    clock = stream.metadata.get("DURATION", "").split(":")
    if len(clock) == 3:
        end = 3600 * float(clock[0]) + 60 * float(clock[1]) + float(clock[2])  # Matroska counts from 0
        return end - float((stream.start_time or 0) * stream.time_base)
    alone = len(container.streams) == 1  # else it may be the sound that lasts so long
    return container.duration / av.time_base if container.duration and alone else None


Timed = tuple[float, av.VideoFrame]  # seconds after the video's first frame


def _decoded(container: av.container.InputContainer, stream: av.VideoStream, media: Media) -> Iterator[Timed]:
    offset = stream.start_time or 0
    try:
        for frame in container.decode(stream):
            if frame.pts is None:
                raise BadSample("unreadable_video", f"{name_of(media)} has frames without a timestamp.")
            yield float((frame.pts - offset) * stream.time_base), frame
    except av.FFmpegError as error:
        raise BadSample("unreadable_video", f"{name_of(media)}: {_short(error)}") from None


def _from(
    container: av.container.InputContainer, stream: av.VideoStream, media: Media, start: float, rate: float
) -> Iterator[Timed]:
    """Decoded frames, the first of them at or before `start`: from the nearest key frame if the file can seek."""
    offset = stream.start_time or 0
    if start > 1 / rate:
        try:
            container.seek(offset + int(start / stream.time_base), stream=stream)
            frames = _decoded(container, stream, media)
            first = next(frames, None)
            if first is not None and first[0] <= start:
                yield first
                yield from frames
                return
            container.seek(offset, stream=stream)  # the file's index is wrong: decode from its beginning
        except av.FFmpegError as error:
            raise BadSample("unreadable_video", f"{name_of(media)}: {_short(error)}") from None
    yield from _decoded(container, stream, media)


def _nearest(frames: Iterator[Timed], times: list[float], tolerance: float, media: Media) -> list[av.VideoFrame]:
    """The frame nearest to each of the ascending `times`."""
    picked: list[av.VideoFrame] = []
    before: Timed | None = None
    for now, frame in frames:
        while len(picked) < len(times) and now >= times[len(picked)]:
            closer = before is not None and times[len(picked)] - before[0] <= now - times[len(picked)]
            picked.append(before[1] if closer else frame)
        if len(picked) == len(times):
            return picked
        before = now, frame
    if before is None:
        raise BadSample("zero_frames", f"{name_of(media)} has no frames.")
    if times[-1] - before[0] > tolerance:
        raise BadSample(
            "truncated", f"{name_of(media)} ends after {before[0]:.2f} s, its header promises {times[-1]:.2f} s."
        )
    return picked + [before[1]] * (len(times) - len(picked))


# ------------------------------------------------------------------ pixels
def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns, counter-clockwise, that put a frame upright."""
    return round(frame.rotation / 90) % 4


def _upright_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Height and width in square pixels."""
    height, width = frame.height, max(1, round(frame.width * float(stream.sample_aspect_ratio or 1)))
    return (width, height) if _turns(frame) % 2 else (height, width)


def _pixels(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """The frame as RGB of an upright `size` (height, width)."""
    height, width = size[::-1] if _turns(frame) % 2 else size
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC", threads=1)
    return np.rot90(scaled.to_ndarray(), _turns(frame))


def _cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the aspect ratio of `size` that covers `target`."""
    scale = max(wanted / given for wanted, given in zip(target, size))
    return tuple(max(wanted, round(given * scale)) for wanted, given in zip(target, size))


def _crop(pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    top, left = ((given - wanted) // 2 for given, wanted in zip(pixels.shape, target))
    return pixels[top : top + target[0], left : left + target[1]]


def _window(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the aspect ratio of `target` inside `size`."""
    scale = min(given / wanted for wanted, given in zip(target, size))
    return tuple(max(1, min(given, round(wanted * scale))) for wanted, given in zip(target, size))
