# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Held-out concepts of emoji world as samples of a protocol, with the true clips and the controls beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..prompting import TASKS
from .sources import EvaluationSample, SampleSet, Source, sample_seed


if TYPE_CHECKING:
    from ..emoji_world.recipes import Sample
    from ..emoji_world.world_index import WorldIndex
    from ..vimi.pipeline_vimi import VIMIPipeline
    from .protocols import Protocol

COLOURS = "colours"


@dataclasses.dataclass(frozen=True)
class EmojiWorldSource(Source):
    """
    Concepts of emoji world that were never trained on: each with its images, and as a control with the same words and
    noise and its images withheld.

    Args:
        concepts (`int`, *optional*, defaults to `89`): Concepts in each of the three tasks; there are 89 that move.
        colours (`int`, *optional*, defaults to `60`):
            Concepts that cross the frame before one place, for the identification of subjects by colour.
    """

    kind: ClassVar[str] = "emoji-world"
    inputs: ClassVar[dict[str, str]] = {"world": "emoji world, as `vimi emoji-world build` writes it"}
    concepts: int = 89
    colours: int = 60

    def __post_init__(self):
        if min(self.concepts, self.colours) < 0 or not self.concepts + self.colours:
            raise ValueError(f"There is nothing to measure with {self.concepts} concepts and {self.colours} colours.")

    def open(self, protocol: "Protocol", paths: Mapping[str, Path]) -> "EmojiWorldSet":
        from ..emoji_world.world_index import WorldIndex
        from ..training.data import without_images
        from .colours import crossing_samples

        height, width = protocol.size
        if height != width:
            raise ValueError(f"Emoji world makes square videos, `size` is {list(protocol.size)}.")
        if protocol.num_samples is not None:
            raise ValueError("Emoji world takes no `num_samples`: change source.concepts and source.colours.")
        index = WorldIndex.load(paths["world"])
        drawn = {}
        for task in TASKS:
            drawn |= {(task, n): sample for n, sample in enumerate(self._draw(index, protocol, task, self.concepts))}
        crossing = (
            crossing_samples(self._draw(index, protocol, "subject", self.colours), index) if self.colours else []
        )
        drawn |= {(COLOURS, n): sample for n, sample in enumerate(crossing)}

        originals: dict[str, Sample] = {}
        samples = []
        controls: dict[Sample, str] = {}  # samples of one number show the same video in each task: they share one
        control_of = {}
        for (part, number), sample in drawn.items():
            id, seed = f"{part}-{number:03d}", sample_seed(protocol.seed, sample.id.rpartition("/")[2])
            originals[id] = sample
            samples.append(_evaluation_sample(id, sample, seed, False))
            control = without_images(sample)
            if control not in controls:
                controls[control] = f"control-{'words' if part in TASKS else part}-{number:03d}"
                originals[controls[control]] = control
                samples.append(_evaluation_sample(controls[control], control, seed, True))
            control_of[id] = controls[control]
        facts = {"world_version": index.version, "world_size": index.size, "split": "val_concept"}
        return EmojiWorldSet(samples, facts=facts, index=index, drawn=originals, control_of=control_of)

    @staticmethod
    def _draw(index: "WorldIndex", protocol: "Protocol", task: str, number: int) -> list["Sample"]:
        from ..emoji_world.samples import EmojiWorldDataset

        if not number:
            return []
        dataset = EmojiWorldDataset(
            index,
            "val_concept",
            {task: 1.0},
            protocol.seed,
            length=number,
            canonical=True,
            num_frames=protocol.num_frames,
            size=protocol.size[0],
        )
        if len(dataset.drawer.clips) < number:
            raise ValueError(
                f"The emoji world in {index.root} has {len(dataset.drawer.clips)} held-out concepts that move, "
                f"{number} are needed: lower source.concepts and source.colours."
            )
        return list(dataset)


def _evaluation_sample(id: str, sample: "Sample", seed: int, control: bool) -> EvaluationSample:
    return EvaluationSample(id, sample.prompt, seed, sample.task, sample.caption, sample.concept, control=control)


@dataclasses.dataclass
class EmojiWorldSet(SampleSet):
    """
    Samples of emoji world.

    Args:
        index ([`WorldIndex`]): The world.
        drawn (`dict[str, Sample]`): What is shown, by the sample's id.
        control_of (`dict[str, str]`): Id of each original's control.
    """

    index: Any = None
    drawn: dict[str, Any] = dataclasses.field(default_factory=dict)
    control_of: dict[str, str] = dataclasses.field(default_factory=dict)

    def bind(self, pipe: "VIMIPipeline") -> None:
        from .held_out import HeldOutEvaluation, HeldOutSettings

        self._held_out = HeldOutEvaluation(pipe, self.index, HeldOutSettings())
        videos = {(sample.video.num_frames, sample.video.height) for sample in self.drawn.values()}
        if videos != {(pipe.transformer.config.num_frames, pipe.transformer.config.height)}:
            frames, size = next(iter(videos))
            raise ValueError(
                f"The protocol has {frames} frames of {size}x{size}, the pipeline makes "
                f"{pipe.transformer.config.num_frames} of {pipe.transformer.config.height}x"
                f"{pipe.transformer.config.width}: change num_frames and size."
            )

    def fingerprint(self, sample: EvaluationSample) -> str:
        return f"{self.index.version} {self.index.size} {self.drawn[sample.id]}"

    def render(self, ids: Sequence[str], batch_size: int = 16) -> tuple[np.ndarray, list[np.ndarray]]:
        """The true clips, `(n, frames, size, size, 3)` in [0, 1], and each sample's images as bytes."""
        videos, images = [], []
        for start in range(0, len(ids), batch_size):
            drawn = [self.drawn[id] for id in ids[start : start + batch_size]]
            part = self._held_out.render(drawn)
            videos.append(part[0])
            images += part[1]
        return np.concatenate(videos), images

    @property
    def assets(self) -> Any:
        """The world's pixels."""
        return self._held_out.assets

    def pipeline_inputs(self, samples: Sequence[EvaluationSample]) -> dict[str, Any]:
        from .held_out import pipeline_inputs

        ids = [sample.id for sample in samples]
        return pipeline_inputs([self.drawn[id] for id in ids], self.render(ids)[1])
