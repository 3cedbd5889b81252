# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Stage-2 samples of a clip: task, wording, references and their augmentation, drawn by seed, clip and number."""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ...prompting import TASKS
from ...prompting.paraphrases import PARAPHRASES
from ..decoding import MediaInfo, read_clip
from ..schema import BadSample, Reference, VideoRecord
from .augmentations import augment
from .crops import crop_background, cut_subject, fill_background, fit, on_white
from .plugins import Entity
from .subjects import ClipFrames, ClipSubjects, SubjectSettings


FRAME_TIMES = (0.05, 0.5, 0.95)  # of the clip, where references are taken from
BACKGROUND_CHANCE = 0.5
SAMPLE_REASONS = {
    "no_entity": "the caption has no usable words for a subject",
    "no_subject": "no entity passed the filters",
    "still_image": "an image has no frames to predict",
    "bad_reference": "references and caption do not fit each other",
}


@dataclass(frozen=True)
class InstructionSettings:
    """
    What samples are made of a clip.

    Args:
        tasks (`dict[str, float]`, *optional*): Share of each task. Defaults to the paper's likely mix (section 1.6).
        num_per_clip (`int`, *optional*, defaults to `1`): Samples of each clip, each of a task of its own drawing.
        seed (`int`, *optional*, defaults to `0`): Seed.
        max_subjects (`int`, *optional*, defaults to `3`): Subjects of a sample, drawn from 1 to this with replacement.
        max_views (`int`, *optional*, defaults to `3`): Images of each subject, likewise.
        background (`str`, *optional*, defaults to `"crop"`):
            Reference of the place, in half of the samples that name one: `"crop"`, the largest part of a frame
            without anything that the caption names; `"fill"`, a frame with that filled from around it; `"none"`.
        subject_background (`str`, *optional*, defaults to `"white"`): `"white"` or `"alpha"` around subjects.
        reference_size (`int`, *optional*, defaults to `336`): Longest side of a reference in pixels.
        augment (`bool`, *optional*, defaults to `True`): Whether references are augmented.
        subjects ([`SubjectSettings`], *optional*): What counts as a subject.

    Raises:
        ValueError: If a value cannot be used.
    """

    tasks: dict[str, float] = field(default_factory=lambda: {"subject": 0.4, "prediction": 0.2, "text-to-video": 0.4})
    num_per_clip: int = 1
    seed: int = 0
    max_subjects: int = 3
    max_views: int = 3
    background: str = "crop"
    subject_background: str = "white"
    reference_size: int = 336
    augment: bool = True
    subjects: SubjectSettings = field(default_factory=SubjectSettings)

    def __post_init__(self):
        for task, weight in self.tasks.items():
            if task not in TASKS:
                raise ValueError(f"Unknown task {task!r}: choose from {', '.join(TASKS)}.")
            if not 0 <= weight < math.inf:
                raise ValueError(f"The share of task {task!r} must be a number of at least 0, got {weight!r}.")
        if not sum(self.tasks.values()) > 0:
            raise ValueError(f"`tasks` must hold a positive share, got {self.tasks}.")
        for name in ("num_per_clip", "max_subjects", "max_views", "reference_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name, known in (("background", ("crop", "fill", "none")), ("subject_background", ("white", "alpha"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    @property
    def needs_subjects(self) -> bool:
        """`bool`: Whether any sample can be of the subject task."""
        return self.tasks.get("subject", 0) > 0


def generator(seed: int, key: str, number: int) -> np.random.Generator:
    """The random numbers of one sample: a function of seed, clip and number alone."""
    digest = hashlib.sha256(f"{seed}:{number}:{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def draw_task(settings: InstructionSettings, key: str, number: int) -> str:
    """Task of a clip's sample."""
    tasks = [task for task, weight in settings.tasks.items() if weight > 0]
    weights = np.array([settings.tasks[task] for task in tasks])
    return str(generator(settings.seed, f"task of {key}", number).choice(tasks, p=weights / weights.sum()))


def reference_frames(record: VideoRecord, info: MediaInfo) -> ClipFrames:
    """
    The frames that references are taken from, in the file's own resolution.

    Raises:
        BadSample: If the video cannot be decoded.
    """
    frames = []
    for share in FRAME_TIMES[: 1 if info.is_image else None]:
        time = 0.0 if info.is_image else round(share * info.duration * info.fps) / info.fps
        clip = read_clip(record.video, 1, info.height, info.width, start=time, fps=record.fps)
        frame = Image.fromarray(np.ascontiguousarray(clip.frames[0]))
        frame.info = {"sample": record.key, "time": time}
        frames.append(frame)
    return ClipFrames(record.words, frames)


@dataclass
class ClipReferences:
    """
    Reference images of a clip, before augmentation.

    Args:
        subjects (`list[tuple[Entity, list[PIL.Image.Image]]]`):
            Subjects in the order of the caption, each cut out of every frame that shows it, mode `"RGBA"`.
        background (`tuple[Entity, PIL.Image.Image]`, *optional*): The place, mode `"RGB"`.
        reason (`str`, *optional*, defaults to `""`): Without subjects, one of [`SAMPLE_REASONS`].
    """

    subjects: list[tuple[Entity, list[Image.Image]]] = field(default_factory=list)
    background: tuple[Entity, Image.Image] | None = None
    reason: str = ""


def cut_references(clip: ClipFrames, found: ClipSubjects, settings: InstructionSettings) -> ClipReferences:
    """
    Cuts subjects and background out of a clip's frames. A background without room is added to `found.dropped`.

    Args:
        clip ([`ClipFrames`]): The frames.
        found ([`ClipSubjects`]): What they show.
        settings ([`InstructionSettings`]): How large, and which kind of background.
    """
    if not found.subjects:
        return ClipReferences(reason="no_subject" if found.occupied else "no_entity")
    size = settings.reference_size
    cuts = [
        (subject.entity, [fit(cut_subject(clip.frames[n], view.mask), size) for n, view in subject.views.items()])
        for subject in found.subjects
    ]
    if found.background is None or settings.background == "none":
        return ClipReferences(cuts)
    make = crop_background if settings.background == "crop" else fill_background
    image = make(clip.frames, found.occupied)
    if image is None:
        found.dropped.append((found.background.text, "no_room"))
        return ClipReferences(cuts)
    return ClipReferences(cuts, (found.background, fit(image, size)))


def draw_sample(
    record: VideoRecord,
    info: MediaInfo,
    task: str,
    number: int,
    settings: InstructionSettings,
    references: ClipReferences | None = None,
) -> dict[str, Any]:
    """
    One sample: the fields of the training schema but for `video`, references as encoded images.

    Args:
        record ([`VideoRecord`]): The captioned clip.
        info ([`MediaInfo`]): What its header says.
        task (`str`): The task, from [`draw_task`].
        number (`int`): Which of the clip's samples.
        settings ([`InstructionSettings`]): How it is drawn.
        references ([`ClipReferences`], *optional*): For the subject task, what can be shown.

    Raises:
        BadSample: If the clip does not allow the task; its `reason` is one of [`SAMPLE_REASONS`].
    """
    rng = generator(settings.seed, record.key, number)
    row: dict[str, Any] = {"caption": record.words, "fps": record.fps, "task": task, "clip": record.key}
    row |= {"instruction": None, "references": [], "context": []}
    if task == "prediction" and info.is_image:
        raise BadSample("still_image", SAMPLE_REASONS["still_image"], record.key)
    if task == "text-to-video":
        # what its instruction says depends on how many retrieved pairs training shows with it, so training words it
        return row
    row["instruction"] = str(rng.choice(PARAPHRASES[task]))
    if task == "subject":
        row["references"] = _draw_references(references, settings, rng, record.key)
        _check_fit(row, record.key)
    return row


def _check_fit(row: dict[str, Any], key: str) -> None:
    references = tuple(Reference(each["image"], each["name"]) for each in row["references"])
    VideoRecord(b"", row["caption"], row["fps"], row["task"], references=references, key=key)


def _draw_references(
    available: ClipReferences, settings: InstructionSettings, rng: np.random.Generator, key: str
) -> list[dict[str, Any]]:
    if not available.subjects:
        raise BadSample(available.reason, SAMPLE_REASONS[available.reason], key)
    shown = [
        (entity, image)
        for entity, cuts in _some(available.subjects, settings.max_subjects, rng)
        for image in _some(cuts, settings.max_views, rng)
    ]
    if available.background and rng.random() < BACKGROUND_CHANCE:
        shown.append(available.background)
    references = []
    for entity, image in sorted(shown, key=lambda each: each[0].start):
        image = augment(image, rng) if settings.augment else image
        if image.mode == "RGBA" and settings.subject_background == "white":
            image = on_white(image)
        references.append({"image": _png(image), "name": entity.text})
    return references


def _some(items: Sequence[Any], most: int, rng: np.random.Generator) -> list[Any]:
    """From one to `most` draws with replacement, each item once, in order: fewer are likelier (paper section 7.1)."""
    count = int(rng.integers(1, most + 1))
    return [items[number] for number in sorted(set(rng.integers(len(items), size=count).tolist()))]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
