# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Video files as batches of tensors; what cannot be read is named, skipped and counted."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch


class VideoFiles:
    """
    The first frames of video files, in the order of the files, in batches.

    A file that is missing, damaged or too short is skipped: `skipped` says which and why. Videos of another size than
    the first one are an error unless `size` is given, for a set with several sizes is mostly a mistake.

    Args:
        paths (`Sequence[str | Path]`): The files.
        num_frames (`int`): Consecutive frames from the beginning; a video with fewer is skipped as too short.
        size (`tuple[int, int]`, *optional*):
            Height and width to resize to, so that the video is covered, and to crop around the centre.
        batch_size (`int`, *optional*, defaults to `8`): Videos that come together.

    Attributes:
        skipped (`dict[str, str]`): Reason of each file that was skipped in the last iteration.

    Raises:
        `ImportError`: if PyAV is not installed.
        `ValueError`: if there is no file, or (while reading) sizes differ or no file can be read.

    Example:
        >>> files = VideoFiles(sorted(folder.glob("*.mp4")), num_frames=16)
        >>> for numbers, videos in files:
        ...     statistics.update(extractor(videos))
        >>> print(files.summary())
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        num_frames: int,
        size: tuple[int, int] | None = None,
        batch_size: int = 8,
    ):
        if not len(paths):
            raise ValueError("There is no video file to read.")
        if num_frames < 1 or batch_size < 1:
            raise ValueError(f"`num_frames` and `batch_size` must be at least 1, not {num_frames} and {batch_size}.")
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError('Reading videos needs PyAV: pip install "vimi_diffusers[eval]".') from error
        self.paths, self.num_frames = [Path(path) for path in paths], num_frames
        self.size, self.batch_size = size, batch_size
        self.skipped: dict[str, str] = {}
        self._reasons: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """
        Yields:
            `tuple`: numbers of the files `(B,)`, and their frames `(B, num_frames, 3, H, W)` in [0, 1].
        """
        self.skipped, self._reasons = {}, Counter()
        batch: list[tuple[int, np.ndarray]] = []
        shape = None
        for number, frames in self._clips():
            shape = shape or frames.shape
            if frames.shape != shape:
                raise ValueError(
                    f"{self.paths[number]} has {frames.shape[2]}x{frames.shape[1]} pixels, videos before it "
                    f"{shape[2]}x{shape[1]}: give `size=(height, width)` to bring all to one size."
                )
            batch.append((number, frames))
            if len(batch) == self.batch_size:
                yield _tensors(batch)
                batch = []
        if batch:
            yield _tensors(batch)
        if len(self.skipped) == len(self.paths):
            first, reason = next(iter(self.skipped.items()))
            raise ValueError(f"None of {len(self.paths)} videos could be read, first {first}: {reason}")

    def _clips(self) -> Iterator[tuple[int, np.ndarray]]:
        from ...data.decoding import probe, read_clip
        from ...data.schema import BadSample

        for number, path in enumerate(self.paths):
            try:
                info = probe(path)
                height, width = self.size or (info.height, info.width)
                if info.is_image and self.num_frames > 1:
                    raise BadSample("unreadable_video", f"{path} is a still image.")
                step = 0.0 if info.is_image else 1 / info.fps
                yield number, read_clip(path, self.num_frames, height, width, step=step).frames
            except BadSample as bad:
                self.skipped[str(path)] = bad.detail
                self._reasons[bad.reason] += 1

    def summary(self) -> str:
        """How many videos were read, and how many skipped for which reason, after an iteration."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
        read = len(self.paths) - len(self.skipped)
        return f"{read} of {len(self.paths)} videos read" + (f"; skipped: {reasons}" if reasons else "")


def _tensors(batch: list[tuple[int, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    numbers, clips = zip(*batch)
    return torch.tensor(numbers), torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255
