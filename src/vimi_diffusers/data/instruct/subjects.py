# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a clip's caption names, found in its frames: entity words, boxes, masks, and the filters between them."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .plugins import Detections, Detector, Entity, EntityExtractor, Extraction, Segmenter


ENTITY_REASONS = {
    "bad_answer": "the language model's answer is not what it was asked for",
    "not_in_caption": "the extractor's words do not stand in the caption",
    "repeated": "its words stand in the caption more than once",
    "overlapping": "its words are part of another entity's",
    "plural": "its words name several things",
    "second_background": "the caption names another place before it",
    "not_found": "no box scores enough",
    "several": "another box scores nearly as much",
    "too_small": "its box is too small a part of the frame",
    "too_large": "its box is too large a part of the frame",
    "thin_mask": "its mask fills too little of its box",
    "leaves_view": "it is not to be seen in enough of the frames",
    "duplicate": "its boxes are those of another entity",
    "no_room": "no large enough part of the frame shows the place without subjects",
}


SAME_BOX = 0.5  # boxes of one phrase that overlap more are the same thing found twice


@dataclass(frozen=True)
class SubjectSettings:
    """
    What counts as a subject.

    Args:
        min_score (`float`, *optional*, defaults to `0.35`): Least score of a box.
        max_rival (`float`, *optional*, defaults to `0.75`):
            Another box of the same words, elsewhere, may score this share of the best one's score at most.
        min_area (`float`, *optional*, defaults to `0.02`): Least share of the frame that a box covers.
        max_area (`float`, *optional*, defaults to `0.9`): Greatest share.
        min_mask (`float`, *optional*, defaults to `0.2`): Least share of its box that a mask fills.
        min_visible (`float`, *optional*, defaults to `1.0`): Least share of the clip's frames that must show it.
        max_overlap (`float`, *optional*, defaults to `0.8`):
            Entities whose boxes overlap more (intersection over union) are one; the better scored word is kept.

    Raises:
        ValueError: If a value is no share.
    """

    min_score: float = 0.35
    max_rival: float = 0.75
    min_area: float = 0.02
    max_area: float = 0.9
    min_mask: float = 0.2
    min_visible: float = 1.0
    max_overlap: float = 0.8

    def __post_init__(self):
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {value!r}.")


@dataclass(frozen=True)
class ClipFrames:
    """
    Frames of a clip and its caption, wholly in words.

    Args:
        caption (`str`): The caption.
        frames (`list[PIL.Image.Image]`): RGB frames in order of time, at least one; `info` as of [`Detector`].
    """

    caption: str
    frames: list[Image.Image]


@dataclass(frozen=True)
class View:
    """
    An entity in one frame.

    Args:
        box (`np.ndarray` of shape `(4,)`): Left, top, right, bottom, in pixels.
        score (`float`): Score of the box.
        mask (`np.ndarray` of shape `(height, width)`): Its pixels, bool.
    """

    box: np.ndarray
    score: float
    mask: np.ndarray


@dataclass
class Subject:
    """
    An entity and the frames that show it.

    Args:
        entity ([`Entity`]): Its words.
        views (`dict[int, View]`): By number of the frame.
        hidden (`list[str]`): For each other frame, one of [`ENTITY_REASONS`].
    """

    entity: Entity
    views: dict[int, View] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """`float`: Mean score of its boxes."""
        return float(np.mean([view.score for view in self.views.values()]))


@dataclass
class ClipSubjects:
    """
    What was found in a clip.

    Args:
        subjects (`list[Subject]`): In the order of the caption.
        background ([`Entity`], *optional*): The words that name the place.
        occupied (`list[np.ndarray]`):
            For each frame a bool array `(height, width)`: where anything that the caption names is, kept or not.
        dropped (`list[tuple[str, str]]`): Words that are no subject, each with one of [`ENTITY_REASONS`].
    """

    subjects: list[Subject] = field(default_factory=list)
    background: Entity | None = None
    occupied: list[np.ndarray] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)


class SubjectFinder:
    """
    Finds the subjects of clips: entity words, then boxes, then masks (paper section 7.1).

    Args:
        extractor ([`EntityExtractor`]): Finds words.
        detector ([`Detector`]): Finds boxes of them in every frame.
        segmenter ([`Segmenter`]): Finds what is in a box.
        settings ([`SubjectSettings`], *optional*): The filters.
    """

    def __init__(
        self,
        extractor: EntityExtractor,
        detector: Detector,
        segmenter: Segmenter,
        settings: SubjectSettings | None = None,
    ):
        self.extractor, self.detector, self.segmenter = extractor, detector, segmenter
        self.settings = settings or SubjectSettings()

    def __call__(self, clips: Sequence[ClipFrames]) -> list[ClipSubjects]:
        """
        Args:
            clips (`Sequence[ClipFrames]`): The clips; each model sees all of them in batches.

        Returns:
            `list[ClipSubjects]`: one for each clip.
        """
        extractions = self.extractor([clip.caption for clip in clips])
        found = [usable_entities(clip.caption, words) for clip, words in zip(clips, extractions, strict=True)]
        looks = [
            (result, number, frame)
            for clip, result in zip(clips, found)
            for number, frame in enumerate(clip.frames if result.subjects else ())
        ]
        if not looks:
            return found
        phrases = [[subject.entity.text for subject in result.subjects] for result, _, _ in looks]
        detections = self.detector([frame for _, _, frame in looks], phrases)
        boxes = [self._pick_boxes(look, each) for look, each in zip(looks, detections, strict=True)]
        asked = [(look, each) for look, each in zip(looks, boxes) if each]
        stacks = [np.stack([box for _, box, _ in each]) for _, each in asked]
        masks = self.segmenter([frame for (_, _, frame), _ in asked], stacks) if asked else []
        for ((result, number, _), each), of_frame in zip(asked, masks, strict=True):
            for (subject, box, score), mask in zip(each, of_frame, strict=True):
                self._add_view(result, subject, number, View(box, score, mask))
        for clip, result in zip(clips, found):
            self._keep_visible(result, len(clip.frames))
            self._drop_duplicates(result)
        return found

    def _pick_boxes(
        self, look: tuple[ClipSubjects, int, Image.Image], detections: Mapping[str, Detections]
    ) -> list[tuple[Subject, np.ndarray, float]]:
        """The best box of each entity in a frame, if it is good enough and the only one."""
        result, _, frame = look
        occupied = np.zeros(frame.size[::-1], bool)
        result.occupied.append(occupied)
        picked = []
        for subject in result.subjects:
            found = detections.get(subject.entity.text, Detections())
            boxes, scores = found.boxes[found.scores >= self.settings.min_score], found.scores
            scores = scores[scores >= self.settings.min_score]
            if not len(scores):
                subject.hidden.append("not_found")
                continue
            best = scores.argmax()
            elsewhere = box_iou(boxes[best], boxes) < SAME_BOX
            rivals = elsewhere & (scores > self.settings.max_rival * scores[best])
            if rivals.any():
                subject.hidden.append("several")
                for left, top, right, bottom in boxes[elsewhere | (np.arange(len(boxes)) == best)]:
                    occupied[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = True
            else:
                picked.append((subject, boxes[best], float(scores[best])))
        return picked

    def _add_view(self, result: ClipSubjects, subject: Subject, number: int, view: View) -> None:
        left, top, right, bottom = view.box
        inside = np.zeros_like(view.mask)
        inside[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
        mask = view.mask & inside
        result.occupied[number] |= mask
        area = (right - left) * (bottom - top)
        share, settings = area / mask.size, self.settings
        if share < settings.min_area:
            subject.hidden.append("too_small")
        elif share > settings.max_area:
            subject.hidden.append("too_large")
        elif mask.sum() < max(settings.min_mask * area, 1):
            subject.hidden.append("thin_mask")
        else:
            subject.views[number] = View(view.box, view.score, mask)

    def _keep_visible(self, result: ClipSubjects, num_frames: int) -> None:
        kept = []
        for subject in result.subjects:
            if subject.views and len(subject.views) >= self.settings.min_visible * num_frames:
                kept.append(subject)
                continue
            reason = Counter(subject.hidden).most_common(1)[0][0]
            if subject.views and reason == "not_found":
                reason = "leaves_view"
            result.dropped.append((subject.entity.text, reason))
        result.subjects = kept

    def _drop_duplicates(self, result: ClipSubjects) -> None:
        kept: list[Subject] = []
        for subject in sorted(result.subjects, key=lambda each: -each.score):
            if any(_overlap(subject, other) > self.settings.max_overlap for other in kept):
                result.dropped.append((subject.entity.text, "duplicate"))
            else:
                kept.append(subject)
        result.subjects = sorted(kept, key=lambda each: each.entity.start)


def usable_entities(caption: str, found: Extraction) -> ClipSubjects:
    """
    Those of an extractor's words that a reference can replace without doubt.

    Args:
        caption (`str`): The caption.
        found ([`Extraction`]): What the extractor made of it.

    Raises:
        ValueError: If an entity's `start` does not point at its words, which is a mistake of the extractor.
    """
    result = ClipSubjects(dropped=list(found.dropped))
    taken: list[Entity] = []
    for entity in sorted(found.entities, key=lambda each: (-len(each.text), each.start)):
        if not entity.text or caption[entity.start : entity.end] != entity.text:
            there = caption[entity.start : entity.end]
            raise ValueError(f"The extractor says {entity.text!r} where the caption {caption!r} has {there!r}.")
        whole = rf"(?<!\w){re.escape(entity.text)}(?!\w)"
        reason = None
        if any(entity.start < other.end and other.start < entity.end for other in taken):
            reason = "overlapping"
        elif len(re.findall(whole, caption, re.IGNORECASE)) != 1:
            reason = "repeated"
        elif entity.plural and not entity.background:
            reason = "plural"
        if reason:
            result.dropped.append((entity.text, reason))
        else:
            taken.append(entity)
    for entity in sorted(taken, key=lambda each: each.start):
        if not entity.background:
            result.subjects.append(Subject(entity))
        elif result.background is None:
            result.background = entity
        else:
            result.dropped.append((entity.text, "second_background"))
    return result


def box_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box `(4,)` with others `(N, 4)`; left, top, right, bottom."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = size.clip(0).prod(-1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - common
    return common / np.maximum(union, 1e-9)


def _overlap(one: Subject, other: Subject) -> float:
    """Mean overlap of the boxes in frames that show both."""
    both = one.views.keys() & other.views.keys()
    return float(np.mean([box_iou(one.views[n].box, other.views[n].box[None])[0] for n in both])) if both else 0.0
