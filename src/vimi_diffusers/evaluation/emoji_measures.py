# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures of emoji world, where the true clips and controls are known: colours, first frames, grounding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .emoji_source import COLOURS, EmojiWorldSource
from .measures import Measure, ValueMeasure, extractor_facts, gather_dict
from .results import HIGHER, LOWER, MetricValue, wilson_interval
from .sources import EvaluationSample


if TYPE_CHECKING:
    import torch


class WholeSetMeasure(Measure):
    """A measure that wants all its videos at once, which the main process gets."""

    sources = (EmojiWorldSource.kind,)

    def __init__(self, setting: Any):
        self._videos: dict[int, np.ndarray] = {}
        super().__init__(setting)

    def wants(self, sample: EvaluationSample) -> bool:
        return True

    def update(self, numbers: Sequence[int], videos: "torch.Tensor") -> None:
        frames = (videos * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        self._videos |= zip(numbers, frames, strict=True)

    def _pairs(self, wanted: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Ids of the originals that are wanted, their videos and those of their controls, where both were read."""
        samples = self.setting.samples
        by_id = {samples.samples[number].id: video for number, video in self._videos.items()}
        ids = [
            id
            for id, control in samples.control_of.items()
            if id in by_id and control in by_id and wanted(id, samples.drawn[id])
        ]
        if not ids:
            raise ValueError(f"Metric {self.name!r} has no video left to measure.")
        own = np.stack([by_id[id] for id in ids]) / np.float32(255)
        return ids, own, np.stack([by_id[samples.control_of[id]] for id in ids]) / np.float32(255)

    def finish(self) -> list[MetricValue]:
        from accelerate.utils import broadcast_object_list

        state = self.setting.state
        self._videos = gather_dict(self._videos, state)
        values = self.calculate() if state.is_main_process else None
        if state.num_processes > 1:
            values = broadcast_object_list([values])[0]
        return values

    def calculate(self) -> list[MetricValue]:
        """The figures of all videos."""
        raise NotImplementedError


class ColourIdentification(WholeSetMeasure):
    name, about = "colour_identification", "share of subjects nearest to their own reference by mean colour"

    def check(self) -> None:
        if not any(id.startswith(COLOURS) for id in self.setting.samples.control_of):
            raise ValueError(f"Metric {self.name!r} needs source.colours of at least 1.")

    def wants(self, sample: EvaluationSample) -> bool:
        return COLOURS in sample.id

    def calculate(self) -> list[MetricValue]:
        from .colours import identify, reference_colours, subject_colours

        samples = self.setting.samples
        ids, own, controls = self._pairs(lambda id, _: id.startswith(COLOURS))
        references = reference_colours([samples.drawn[id] for id in ids], samples.assets)
        true_clips = samples.render(ids)[0]
        measured, floor, ceiling = (identify(subject_colours(one), references) for one in (own, controls, true_clips))
        values = []
        for number in (1, 5):
            key = f"top_{number}"
            values.append(
                self.value(
                    measured[key],
                    len(ids),
                    name=f"colour_{key}",
                    interval=wilson_interval(measured[key], len(ids)),
                    floor=floor[key],
                    ceiling=ceiling[key],
                    chance=min(number, len(ids)) / len(ids),
                )
            )
        if measured["distance"] is not None:
            distances = {"floor": floor["distance"], "ceiling": ceiling["distance"]}
            found = len(ids) - measured["not_found"]
            values.append(
                self.value(measured["distance"], found, name="colour_distance", direction=LOWER, **distances)
            )
        return values


class FirstFrameMeasure(ValueMeasure):
    """Likeness of the first frame to the one that a prediction should begin with; the floor is of controls."""

    sources = (EmojiWorldSource.kind,)

    def __init__(self, setting: Any):
        super().__init__(setting)
        samples = setting.samples
        originals = {id: control for id, control in samples.control_of.items() if id.startswith("prediction")}
        if not originals:
            raise ValueError(f"Metric {self.name!r} needs source.concepts of at least 1.")
        self._target = {id: id for id in originals} | {control: id for id, control in originals.items()}

    def wants(self, sample: EvaluationSample) -> bool:
        return sample.id in self._target

    def measure(self, numbers: Sequence[int], videos: "torch.Tensor") -> "torch.Tensor":
        import torch

        samples = self.setting.samples
        images = samples.render([self._target[samples.samples[number].id] for number in numbers])[0][:, 0]
        return self.likeness(videos[:, 0], torch.from_numpy(images).permute(0, 3, 1, 2))


class FirstFramePSNR(FirstFrameMeasure):
    name, about, direction = "first_frame_psnr", "PSNR of a prediction's first frame to the given one, in dB", HIGHER

    def likeness(self, frames: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        from .metrics import psnr

        return psnr(frames, targets)


class FirstFrameSSIM(FirstFrameMeasure):
    name, about, direction = "first_frame_ssim", "SSIM of a prediction's first frame to the given one", HIGHER

    def likeness(self, frames: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        from .metrics import ssim

        return ssim(frames, targets)


class Grounding(WholeSetMeasure):
    name, about = "grounding", "by task: identification of subject and place, motion and camera, flicker"
    LOWER_IS_BETTER = ("flicker", "flicker_relative_to_real")

    def check(self) -> None:
        from .grounding import default_extractor
        from .grounding.geometry import MIN_FRAMES

        if self.setting.protocol.num_frames < MIN_FRAMES:
            raise ValueError(
                f"Metric {self.name!r} estimates motion in at least {MIN_FRAMES} frames: raise num_frames."
            )
        if not self._tasks():
            raise ValueError(f"Metric {self.name!r} needs source.concepts of at least 1.")
        self._network = default_extractor()  # says which one it is

    def wants(self, sample: EvaluationSample) -> bool:
        return COLOURS not in sample.id

    def _tasks(self) -> list[str]:
        return list(
            dict.fromkeys(id.rpartition("-")[0] for id in self.setting.samples.control_of if COLOURS not in id)
        )

    def calculate(self) -> list[MetricValue]:
        from .grounding import held_out_references, place_views

        assets = self.setting.samples.assets
        references, places = held_out_references(assets), place_views(assets)
        return [value for task in self._tasks() for value in self._of_task(task, references, places)]

    def _of_task(self, task: str, references: dict[str, Any], places: dict[str, Any]) -> list[MetricValue]:
        import torch

        from .grounding import GroundingSample, evaluate_grounding

        samples = self.setting.samples
        ids, *videos = self._pairs(lambda id, _: id.startswith(task))
        own, controls, true_clips = (
            torch.from_numpy(one).permute(0, 1, 4, 2, 3).float() for one in (*videos, samples.render(ids)[0])
        )
        firsts = list(true_clips[:, 0]) if task == "prediction" else [None] * len(ids)
        asked = [GroundingSample.from_emoji_world(samples.drawn[id], first) for id, first in zip(ids, firsts)]
        found = evaluate_grounding(asked, own, references, places, true_clips, controls, self._network)
        identity = getattr(self._network, "identity", {"name": self._network.name})
        values = []
        for name, one in found["generated"].items():
            if one.get("value") is None:  # confusions, and what this task has none of
                continue
            around = {
                "floor": found["withheld"].get(name, {}).get("value"),
                "ceiling": found["real"].get(name, {}).get("value") if name != "first_frame_psnr" else None,
                "chance": found["chance"].get(name),
            }
            interval = None if one["low"] is None or one["high"] is None else (one["low"], one["high"])
            direction = LOWER if name in self.LOWER_IS_BETTER else HIGHER
            label = f"{task}/{name}"
            network = extractor_facts(identity) if name.startswith("identification") else {}
            value, count = one["value"], one["count"]
            values.append(
                self.value(value, count, name=label, interval=interval, direction=direction, **around, **network)
            )
        return values
