# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The measures that a protocol can name, each with what it needs, checked before anything is generated."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .results import HIGHER, LOWER, NEITHER, MetricValue, wilson_interval
from .sources import EvaluationSample, SampleSet


if TYPE_CHECKING:
    import torch

    from .protocols import Protocol, View

FILES = {
    "i3d": "i3d_torchscript.pt of StyleGAN-V (TorchScript)",
    "c3d": "c3d_ucf101.pt of StyleGAN-V (TorchScript)",
}
LITE, APPEARANCE_MOTION = "efficientnet-lite0", "appearance-motion"


@dataclasses.dataclass
class Setting:
    """
    What a measure works with.

    Args:
        protocol ([`Protocol`]): The protocol.
        view ([`View`]): The size that it measures.
        samples ([`SampleSet`]): Samples and real videos.
        extractors (`dict[str, Any]`): Feature networks by role.
        statistics (`Path`): Folder that keeps statistics of real videos.
        state (`accelerate.PartialState`): The processes.
        batch_size (`int`): Videos that are read together.
    """

    protocol: "Protocol"
    view: "View"
    samples: SampleSet
    extractors: Mapping[str, Any]
    statistics: Path
    state: Any
    batch_size: int


class Measure(ABC):
    """
    A measure of videos in one view. Every process adds its part of the videos; `finish` is called by all of them.

    Class attributes:
        name (`str`): What protocols call it.
        about (`str`): What it is, in a line.
        direction (`str`): Which figures are better.
        role (`str`, *optional*): Role of the extractor that it needs.
        default (`str`, *optional*): Extractor of that role, if the protocol names none.
        sources (`tuple[str]`): Kinds of sources that it works on; empty for all.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    direction: ClassVar[str] = HIGHER
    role: ClassVar[str | None] = None
    default: ClassVar[str | None] = None
    sources: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setting: Setting):
        self.setting = setting
        self.extractor = setting.extractors.get(self.role) if self.role else None
        self.check()

    def check(self) -> None:
        """
        Raises:
            `ValueError`: If the measure cannot work on these samples.
        """

    def wants(self, sample: EvaluationSample) -> bool:
        """Whether a sample counts."""
        return not sample.control

    @abstractmethod
    def update(self, numbers: Sequence[int], videos: "torch.Tensor") -> None:
        """Adds videos `(B, T, 3, H, W)` in [0, 1] of the samples with these numbers, all of which it wants."""

    @abstractmethod
    def finish(self) -> list[MetricValue]:
        """The figures of all processes' videos; the same in every process."""

    @property
    def per_sample(self) -> dict[int, float]:
        """Figures of single samples by number, after `finish`."""
        return {}

    def value(self, value: float, count: int, **other: Any) -> MetricValue:
        """A figure of this measure."""
        network = extractor_facts(self.extractor.identity) if self.extractor is not None else {}
        other = {"name": self.name, "direction": self.direction, **network, **other}
        return MetricValue(view=self.setting.view.name, value=float(value), count=count, **other)

    def _texts(self, numbers: Sequence[int]) -> list[str]:
        return [self.setting.samples.samples[number].text for number in numbers]


class ValueMeasure(Measure):
    """A measure that gives every video a value; the figure is their mean."""

    def __init__(self, setting: Setting):
        self._values: dict[int, float] = {}
        super().__init__(setting)

    @abstractmethod
    def measure(self, numbers: Sequence[int], videos: "torch.Tensor") -> "torch.Tensor":
        """Values `(B,)`."""

    def update(self, numbers: Sequence[int], videos: "torch.Tensor") -> None:
        self._values |= zip(numbers, map(float, self.measure(numbers, videos)), strict=True)

    def finish(self) -> list[MetricValue]:
        import torch

        from .metrics import ScalarStatistics

        self._values = gather_dict(self._values, self.setting.state)
        samples = self.setting.samples.samples
        own = [value for number, value in self._values.items() if not samples[number].control]
        statistics = ScalarStatistics(self.name).update(torch.tensor(own, dtype=torch.float64))
        controls = [value for number, value in self._values.items() if samples[number].control]
        floor = sum(controls) / len(controls) if controls else None
        return [self.value(statistics.mean, statistics.count, interval=self.interval(statistics), floor=floor)]

    def interval(self, statistics: Any) -> tuple[float, float] | None:
        """95 % interval of the mean."""
        if statistics.count < 2:
            return None
        half = 1.959964 * statistics.standard_error
        return statistics.mean - half, statistics.mean + half

    @property
    def per_sample(self) -> dict[int, float]:
        return self._values


# ------------------------------------------------------------------ sets of videos
class FrechetMeasure(Measure):
    """Frechet distance to the real videos."""

    direction = LOWER

    def check(self) -> None:
        real, needed = self.setting.samples.real, self.extractor.dimension + 1
        if not real:
            raise ValueError(f"Metric {self.name!r} needs real videos, the source has none: leave it out.")
        generated = sum(map(self.wants, self.setting.samples.samples))
        if min(len(real), generated) < needed:
            raise ValueError(
                f"Metric {self.name!r} with {self.extractor.name!r} needs at least {needed} videos for its "
                f"covariance; {generated} would be generated, {len(real)} are real."
            )

    def __init__(self, setting: Setting):
        from .metrics import FeatureStatistics

        super().__init__(setting)
        self._generated = FeatureStatistics(self.extractor.identity)

    def update(self, numbers: Sequence[int], videos: "torch.Tensor") -> None:
        self._generated.update(self.features(videos))

    @abstractmethod
    def features(self, videos: "torch.Tensor") -> "torch.Tensor":
        """Features `(N, D)`."""

    def finish(self) -> list[MetricValue]:
        from .metrics import frechet_distance

        generated = self._generated.gather(self.setting.state)
        real = self._real()
        note = f"{real.count} real samples"
        return [self.value(frechet_distance(generated, real), generated.count, note=note)]

    def _real(self) -> Any:
        """Statistics of the real videos, kept for the next time."""
        from .metrics import FeatureStatistics, VideoFiles

        setting = self.setting
        told = [*map(str, setting.samples.real), setting.protocol.num_frames, setting.view.real]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
        path = setting.statistics / f"real-{setting.view.name}-{self.name}-{key}.safetensors"
        known = path.is_file()
        setting.state.wait_for_everyone()
        if known:
            return FeatureStatistics.load(path, self.extractor.identity)
        real = FeatureStatistics(self.extractor.identity)
        own = setting.samples.real[setting.state.process_index :: setting.state.num_processes]
        if own:
            files = VideoFiles(own, setting.protocol.num_frames, setting.view.real, setting.batch_size)
            for _, videos in files:
                real.update(self.features(videos))
        real = real.gather(setting.state)
        if setting.state.is_main_process:
            real.save(path)
        return real


class FVD(FrechetMeasure):
    name, about = "fvd", "Frechet video distance to the real videos"
    role, default = "fvd", "i3d"

    def features(self, videos: "torch.Tensor") -> "torch.Tensor":
        return self.extractor(videos)


class FID(FrechetMeasure):
    name, about = "fid", "Frechet distance of single frames to those of the real videos"
    role, default = "fid", LITE

    def features(self, videos: "torch.Tensor") -> "torch.Tensor":
        return self.extractor.frames(videos).flatten(0, 1)


class InceptionScore(Measure):
    name, about = "inception_score", "Inception score of videos, 10 splits, shuffled with the seed 42"
    role, default = "inception_score", "c3d"
    SPLITS, SHUFFLE_SEED = 10, 42

    def __init__(self, setting: Setting):
        self._outputs: dict[int, Any] = {}
        super().__init__(setting)

    def check(self) -> None:
        number = sum(map(self.wants, self.setting.samples.samples))
        if number < self.SPLITS:
            raise ValueError(f"Metric {self.name!r} needs at least {self.SPLITS} videos, there would be {number}.")
        if self.extractor.output == "features":
            raise ValueError(f"Metric {self.name!r} needs a classifier, {self.extractor.name!r} gives features.")

    def update(self, numbers: Sequence[int], videos: "torch.Tensor") -> None:
        self._outputs |= zip(numbers, self.extractor(videos).cpu(), strict=True)

    def finish(self) -> list[MetricValue]:
        import torch

        from .metrics import InceptionStatistics

        outputs = gather_dict(self._outputs, self.setting.state)
        count = len(outputs)
        statistics = InceptionStatistics(self.extractor.identity, count, min(self.SPLITS, count), self.SHUFFLE_SEED)
        mean, std = statistics.update(torch.stack([*outputs.values()]), torch.arange(count)).score()
        return [self.value(mean, count, note=f"standard deviation over splits {std:.4g}")]


# ------------------------------------------------------------------ single videos
class ClipSim(ValueMeasure):
    name, about = "clipsim", "mean cosine of frames and prompt by a CLIP (CLIP-T)"
    role, default = "clip", "openai/clip-vit-base-patch32"

    def measure(self, numbers: Sequence[int], videos: "torch.Tensor") -> "torch.Tensor":
        from .metrics import text_similarity

        return text_similarity(self.extractor.frames(videos), self.extractor.texts(self._texts(numbers)))


class ReferenceMeasure(ValueMeasure):
    """Cosine of frames and the subject's pictures."""

    def check(self) -> None:
        if not any(sample.references for sample in self.setting.samples.samples):
            raise ValueError(f"Metric {self.name!r} needs pictures of subjects, the source has none: leave it out.")
        self._references: dict[tuple[str, ...], Any] = {}

    def wants(self, sample: EvaluationSample) -> bool:
        return bool(sample.references)

    def measure(self, numbers: Sequence[int], videos: "torch.Tensor") -> "torch.Tensor":
        from .metrics import reference_similarity

        own = [self.setting.samples.samples[number].references for number in numbers]
        for files in own:
            if files not in self._references:
                self._references[files] = self.extractor.images(files)
        return reference_similarity(self.extractor.frames(videos), [self._references[files] for files in own])


class ClipI(ReferenceMeasure):
    name, about = "clip_i", "mean cosine of frames and the subject's pictures by a CLIP"
    role, default = "clip", "openai/clip-vit-base-patch32"


class DinoI(ReferenceMeasure):
    name, about = "dino_i", "mean cosine of frames and the subject's pictures by a DINO"
    role, default = "dino", "facebook/dino-vits16"


class TemporalConsistency(ValueMeasure):
    name, about = "temporal_consistency", "mean cosine of neighbouring frames; a still video has 1"
    role, default = "frames", LITE

    def measure(self, numbers: Sequence[int], videos: "torch.Tensor") -> "torch.Tensor":
        from .metrics import temporal_consistency

        return temporal_consistency(self.extractor.frames(videos))


class DynamicDegree(ValueMeasure):
    name, about, direction = "dynamic_degree", "share of videos that move, by OpenCV's optical flow", NEITHER

    def check(self) -> None:
        from .metrics.motion import flow_speeds

        flow_speeds(_zeros(self.setting), self.setting.protocol.fps)  # says what is missing or too small

    def measure(self, numbers: Sequence[int], videos: "torch.Tensor") -> "torch.Tensor":
        from .metrics import flow_speeds, is_dynamic

        return is_dynamic(flow_speeds(videos, self.setting.protocol.fps))

    def interval(self, statistics: Any) -> tuple[float, float]:
        return wilson_interval(statistics.mean, statistics.count)


def _registry() -> dict[str, type[Measure]]:
    from .emoji_measures import ColourIdentification, FirstFramePSNR, FirstFrameSSIM, Grounding

    general = (FVD, FID, InceptionScore, ClipSim, ClipI, DinoI, TemporalConsistency, DynamicDegree)
    return {cls.name: cls for cls in (*general, ColourIdentification, FirstFramePSNR, FirstFrameSSIM, Grounding)}


def measures() -> dict[str, type[Measure]]:
    """All measures by name."""
    return _registry()


# ------------------------------------------------------------------ before generation
def check_metrics(protocol: "Protocol") -> None:
    """
    Raises:
        `ValueError`: If the protocol names a metric that there is not, twice, or not for its source, or an extractor
            for a role that no metric has.
    """
    known = measures()
    if not protocol.metrics:
        raise ValueError(f"`metrics` must name at least one of {', '.join(known)}.")
    for name in protocol.metrics:
        if name not in known:
            raise ValueError(f"There is no metric {name!r}: take of {', '.join(known)}.")
        sources = known[name].sources
        if sources and protocol.source.kind not in sources:
            raise ValueError(f"Metric {name!r} is for the sources {', '.join(sources)}, not {protocol.source.kind}.")
    if len(set(protocol.metrics)) < len(protocol.metrics):
        raise ValueError(f"`metrics` names one twice: {', '.join(protocol.metrics)}.")
    roles = {cls.role for cls in known.values() if cls.role}
    if unknown := sorted(set(protocol.extractors) - roles):
        raise ValueError(f"`extractors` has no role {', '.join(unknown)}: there are {', '.join(sorted(roles))}.")


def required_inputs(protocol: "Protocol") -> dict[str, str]:
    """What the user must give by path, and what each is."""
    inputs = dict(protocol.source.inputs)
    for network in _networks(protocol).values():
        if network in FILES:
            inputs[network] = FILES[network]
    if protocol.retrieved_pairs:
        inputs["memory"] = f"a saved memory, for {protocol.retrieved_pairs} retrieved pairs (or set retrieved_pairs=0)"
    return inputs


def _networks(protocol: "Protocol") -> dict[str, str]:
    known = measures()
    roles = {known[name].role: known[name].default for name in protocol.metrics if known[name].role}
    return {role: protocol.extractors.get(role, default) for role, default in roles.items()}


def load_extractors(protocol: "Protocol", paths: Mapping[str, Path], device: str = "cpu") -> dict[str, Any]:
    """
    The feature networks of a protocol by role, each tried on an empty video of every view.

    Raises:
        `ValueError`: If one cannot be had or does not work, naming it and what to do.
    """
    import torch

    extractors = {}
    for role, network in _networks(protocol).items():
        try:
            extractors[role] = _load_extractor(role, network, paths, device)
            for view in protocol.views:
                height, width = view.generated or protocol.size
                extractors[role](torch.zeros(1, protocol.num_frames, 3, height, width))
        except (OSError, ImportError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ValueError(
                f"The feature network {network!r} (role {role}) cannot be used: {text[:300]} Name another with "
                f"--set extractors.{role}=NAME, or leave its metrics out with --set metrics=[...]."
            ) from error
    return extractors


def _load_extractor(role: str, network: str, paths: Mapping[str, Path], device: str) -> Any:
    from . import metrics

    if network in FILES:
        build = metrics.TorchScriptExtractor.i3d if network == "i3d" else metrics.TorchScriptExtractor.c3d
        return build(paths[network], device=device)
    if network == LITE:
        return metrics.EfficientNetLite0("logits" if role == "inception_score" else "features", device=device)
    if network == APPEARANCE_MOTION:
        return metrics.default_video_extractor(device=device)
    if role == "fvd":
        return metrics.TransformersVideoExtractor(network, device=device)
    return metrics.TransformersImageExtractor(network, device=device)


def _zeros(setting: Setting) -> "torch.Tensor":
    import torch

    height, width = setting.view.generated or setting.protocol.size
    return torch.zeros(1, setting.protocol.num_frames, 3, height, width)


def extractor_facts(identity: Mapping[str, Any]) -> dict[str, str]:
    """What a figure says of the feature network behind it."""
    told = {key: value for key, value in identity.items() if key != "name"}
    text = json.dumps(told, sort_keys=True, default=str)
    return {"extractor": identity["name"], "extractor_sha256": hashlib.sha256(text.encode()).hexdigest()}


def gather_dict(values: dict[int, Any], state: Any) -> dict[int, Any]:
    """What all processes have, in the order of the samples' numbers."""
    if state.num_processes > 1:
        from accelerate.utils import gather_object

        values = dict(gather_object([*values.items()]))
    return dict(sorted(values.items()))
