# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The one schema of training data, and the error that names a sample which does not keep to it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..prompting import TASKS, check_unused_images, has_tags, tagged_indices
from ..prompting.prompts import NAMED_TAG_PATTERN, TAG_PATTERN


REASONS = {
    "bad_record": "the record does not keep to the schema",
    "missing_caption": "no caption",
    "missing_file": "a file is not there",
    "bad_reference": "references and caption do not fit each other",
    "unreadable_shard": "a tar shard cannot be read",
    "unreadable_video": "a video cannot be opened or decoded",
    "zero_frames": "a video without frames",
    "truncated": "a video or shard ends before its header says",
    "too_short": "a video too short for every bucket",
    "too_slow": "a video of too few frames per second for every bucket",
    "unreadable_image": "an image cannot be decoded",
    "bad_prompt": "a text that the model's processor cannot take",
}


class BadSample(ValueError):
    """
    A sample that cannot be used. It is counted, named in the report and skipped.

    Args:
        reason (`str`): One of [`REASONS`].
        detail (`str`): What exactly is wrong.
        key (`str`, *optional*, defaults to `""`): Which sample, in the data set's own terms.
    """

    def __init__(self, reason: str, detail: str, key: str = ""):
        super().__init__(reason, detail, key)
        self.reason, self.detail, self.key = reason, " ".join(str(detail).split()), key

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}: {self.detail}" if self.key else f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class TarMember:
    """
    A file inside an uncompressed tar archive, read without its neighbours.

    Args:
        shard (`Path`): The archive.
        name (`str`): Name of the member.
        offset (`int`): Where its data begin, in bytes.
        size (`int`): Length of its data in bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The member's data."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Media = Path | bytes | TarMember  # an encoded video or image, where it lies


@dataclass(frozen=True)
class Reference:
    """
    An image of something that a clip shows.

    Args:
        image (`Media`): The encoded image.
        name (`str`, *optional*):
            The caption's word or words for it, which the image replaces in the prompt of the subject task (paper
            section 1.3), or the tag that stands for it. Several references of one name are views of one subject.
    """

    image: Media
    name: str | None = None


@dataclass(frozen=True)
class ContextPair:
    """
    A retrieved image and its text.

    Args:
        image (`Media`): The encoded image.
        text (`str`): Its caption.
    """

    image: Media
    text: str


@dataclass(frozen=True)
class VideoRecord:
    """
    One sample: a clip or an image, its caption, and what grounds it. Only `video` and `caption` are required.

    Args:
        video (`Media`): An encoded video, or an image, which counts as a still video of infinite frame rate.
        caption (`str`):
            What the video shows. Where `references` stand in it is told by their names, or by tags: `<image_1>` counts
            references from 1, `<dog>` is the reference of that name.
        fps (`float`, *optional*):
            True frames per second, if the file's rate is not true (a time lapse, a slowed-down copy). Defaults to the
            file's.
        task (`str`, *optional*):
            The only task of this sample. By default all that the sample allows are drawn by the task weights:
            text-to-video, prediction (from the clip's own first frame; not for images), and subject with references.
        instruction (`str`, *optional*):
            Task instruction. By default one of [`~vimi_diffusers.prompting.TRAINING_INSTRUCTIONS`] is drawn each time.
        references (`tuple[Reference]`, *optional*): Images of what the clip shows.
        context (`tuple[ContextPair]`, *optional*): Retrieved pairs, best first, for text-to-video.
        key (`str`, *optional*, defaults to `""`): Name of the sample in reports.

    Raises:
        BadSample: If a field has no usable value, or references and caption do not fit each other.
    """

    video: Media
    caption: str
    fps: float | None = None
    task: str | None = None
    instruction: str | None = None
    references: tuple[Reference, ...] = ()
    context: tuple[ContextPair, ...] = ()
    key: str = ""

    def __post_init__(self):
        if self.fps is not None and not (0 < self.fps < math.inf):
            raise BadSample("bad_record", f"`fps` must be positive and finite, got {self.fps!r}.", self.key)
        if self.task is not None and self.task not in TASKS:
            raise BadSample("bad_record", f"Unknown `task` {self.task!r}; known are {list(TASKS)}.", self.key)
        if self.task == "subject" and not self.references:
            raise BadSample("bad_record", 'Task "subject" needs `references`.', self.key)
        try:
            prompt, words = place_references(self.caption, [reference.name for reference in self.references])
        except ValueError as error:
            raise BadSample("bad_reference", str(error), self.key) from None
        object.__setattr__(self, "_texts", (prompt, words))

    @property
    def prompt(self) -> str:
        """`str`: The caption with a numbered tag where each reference stands."""
        return self._texts[0]

    @property
    def words(self) -> str:
        """`str`: The caption wholly in words."""
        return self._texts[1]

    @property
    def default_task(self) -> str:
        """`str`: `task`, or else `"subject"` with references and `"text-to-video"` without."""
        return self.task or ("subject" if self.references else "text-to-video")

    def tasks(self, is_image: bool) -> tuple[str, ...]:
        """
        The tasks that this sample can be trained on.

        Args:
            is_image (`bool`): Whether `video` is an image, whose first frame leaves nothing to predict.

        Raises:
            BadSample: If its one `task` is prediction and it is an image.
        """
        allowed = [task for task in TASKS if task != "subject" or self.references]
        if is_image:
            allowed.remove("prediction")
        if self.task is not None and self.task not in allowed:
            raise BadSample("bad_record", f'Task "{self.task}" needs a video, this is an image.', self.key)
        return (self.task,) if self.task else tuple(allowed)


def place_references(caption: str, names: Sequence[str | None]) -> tuple[str, str]:
    """
    Find where references stand in a caption.

    Args:
        caption (`str`): A caption with numbered, plain or named tags, or with the names as words.
        names (`Sequence[str]`): Name of each reference, `None` for one that has none.

    Returns:
        `tuple[str, str]`: the caption with a tag for each reference, and the caption wholly in words.

    Raises:
        `ValueError`: if a reference stands nowhere, or a tag has no reference.

    Example:
        ```python
        >>> place_references("A dog runs through a park", ["dog"])
        ('A <image_1> runs through a park', 'A dog runs through a park')
        ```
    """
    if has_tags(caption):
        check_unused_images(caption, len(names))
        order = iter(tagged_indices(caption, len(names)))
        words = TAG_PATTERN.sub(lambda _: _spoken(names[next(order)]), caption)
        return caption, " ".join(words.split())
    names = list(names)
    if None in names:
        raise ValueError(f"Reference {names.index(None) + 1} has no `name` and the caption no tag for it.")
    prompt = words = caption
    for name in sorted(set(names), key=lambda name: (-len(name), name)):  # "dog house" before "dog"
        tags = "".join(f"<image_{number}>" for number, other in enumerate(names, 1) if other == name)
        if f"<{name}>" in prompt:
            prompt = prompt.replace(f"<{name}>", tags)
            words = words.replace(f"<{name}>", _spoken(name))
            continue
        prompt, found = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", tags, prompt, count=1, flags=re.IGNORECASE)
        if not found:
            raise ValueError(f"The caption {caption!r} has no {name!r} for the reference of that name.")
    if names and (tag := NAMED_TAG_PATTERN.search(words)):  # without references it is just text
        raise ValueError(f"Tag {tag[0]} of the caption {caption!r} has no reference.")
    return prompt, words


def _spoken(name: str | None) -> str:
    return re.sub("[_-]", " ", name) if name else ""


def parse_record(
    row: Any,
    resolve: Callable[[Any], Media],
    key: str,
    video_column: str = "video",
    caption_column: str = "caption",
) -> VideoRecord:
    """
    A record from one row of a data set. Absent fields and nulls are the same; columns beside the schema are ignored.

    Args:
        row (`Mapping`): The row.
        resolve (`Callable`): Turns the row's own way of naming a file into [`Media`], or raises [`BadSample`].
        key (`str`): Name of the sample in reports.
        video_column (`str`, *optional*, defaults to `"video"`): Key of the video.
        caption_column (`str`, *optional*, defaults to `"caption"`): Key of the caption.

    Raises:
        BadSample: If the row does not keep to the schema.
    """
    try:
        if not isinstance(row, Mapping):
            raise BadSample("bad_record", f"A record must be an object, got {type(row).__name__}.")
        caption = _field(row, caption_column, str)
        if caption is None or not caption.strip():
            raise BadSample("missing_caption", f"`{caption_column}` is missing or empty.")
        if row.get(video_column) is None:
            raise BadSample("missing_file", f"`{video_column}` is missing.")
        fps = row.get("fps")
        if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float))):
            raise BadSample("bad_record", f"`fps` must be a number, got {fps!r}.")
        return VideoRecord(
            video=resolve(row[video_column]),
            caption=caption.strip(),
            fps=fps,
            task=_field(row, "task", str),
            instruction=_field(row, "instruction", str),
            references=tuple(
                Reference(resolve(_field(item, "image", object, required=True)), _field(item, "name", str) or None)
                for item in _items(row, "references")
            ),
            context=tuple(
                ContextPair(
                    resolve(_field(item, "image", object, required=True)), _field(item, "text", str, required=True)
                )
                for item in _items(row, "context")
            ),
            key=key,
        )
    except BadSample as bad:
        raise BadSample(bad.reason, bad.detail, key) from None


def _field(row: Mapping[str, Any], name: str, kind: type, required: bool = False) -> Any:
    value = row.get(name)
    if value is None and not required:
        return None
    if value is None or not isinstance(value, kind):
        wanted = "is missing" if value is None else f"must be of type {kind.__name__}, got {value!r}"
        raise BadSample("bad_record", f"`{name}` {wanted}.")
    return value


def _items(row: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = _field(row, name, list) or []
    for item in items:
        if not isinstance(item, Mapping):
            raise BadSample("bad_record", f"`{name}` must be a list of objects, got {item!r}.")
    return items
