# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What `vimi data validate` finds: damage, shapes, tasks, token lengths, and the first prompts of a training run."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .buckets import Bucket
from .decoding import check_whole, read_image
from .index import SampleInfo, examine_all
from .prompts import plain_prompt
from .readers import Source
from .report import BadSampleReport
from .schema import BadSample
from .video_data import VideoData, VideoDataSettings


TOKEN_SAMPLES = 500  # whose prompts are tokenised


@dataclass
class TrainingSample:
    """
    A sample as a training run would see it.

    Args:
        key (`str`): Its name.
        bucket (`str`): Its bucket.
        task (`str`): Its task.
        text (`str`): The whole text as the multimodal model's processor gets it.
        images (`list[tuple[int, int]]`): Width and height of the images in it.
    """

    key: str
    bucket: str
    task: str
    text: str
    images: list[tuple[int, int]]


@dataclass
class Findings:
    """
    What is known of a data set.

    Args:
        kind (`str`): Its layout.
        total (`int`): Number of samples.
        report ([`BadSampleReport`]): What cannot be used.
        max_bad_share (`float`): The share of that which training would bear.
        buckets (`dict[str, tuple[int, int]]`): Videos and images in each bucket.
        ranges (`dict[str, tuple[float, float, float]]`):
            Least, median and greatest length (seconds), frame rate, height and width of the videos.
        tasks (`dict[str, int]`): How many samples allow each task, under the task weights.
        references (`dict[int, int]`): How many samples have how many references.
        context (`dict[int, int]`): How many have how many retrieved pairs.
        tokens (`dict[str, tuple[int, int, int]]`): Least, median and greatest number of tokens for each task.
        cut (`int`): How many of those prompts lose words.
        max_sequence_length (`int`): Over which they do.
        samples (`list[TrainingSample]`): The first of a training run.
    """

    kind: str
    total: int
    report: BadSampleReport
    max_bad_share: float
    buckets: dict[str, tuple[int, int]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    references: dict[int, int] = field(default_factory=dict)
    context: dict[int, int] = field(default_factory=dict)
    tokens: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    cut: int = 0
    max_sequence_length: int = 0
    samples: list[TrainingSample] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """`bool`: Whether training would start: not too many bad samples, and some good ones."""
        bad = len(self.report.bad)
        return bad <= self.max_bad_share * self.total and bad < self.total


def validate(
    source: Source,
    processor: Any,
    transformer: Any,
    settings: VideoDataSettings,
    chat: bool = False,
    decode: bool = True,
    num_samples: int = 4,
    report_path: Path | None = None,
    show: bool = False,
) -> Findings:
    """
    Checks a data set as training would use it.

    Args:
        source ([`Source`]): From [`open_source`].
        processor (`ProcessorMixin`): A pipeline's `text_processor`.
        transformer ([`VIMITransformer3DModel`]): Its generator; the configuration is enough, on the meta device.
        settings ([`VideoDataSettings`]): Of the training.
        chat (`bool`, *optional*, defaults to `False`): Whether its conditioner crops a chat template.
        decode (`bool`, *optional*, defaults to `True`): Decode every video and image wholly, not the headers alone.
        num_samples (`int`, *optional*, defaults to `4`): Training samples to show.
        report_path (`Path`, *optional*): JSON lines file for all bad samples.
        show (`bool`, *optional*, defaults to `False`): Whether to show progress bars.

    Raises:
        ValueError: If the data set is empty or a bucket does not fit the model.
    """
    for text in settings.buckets or ():
        bucket = Bucket.parse(text)
        transformer.check_sample_size(bucket.num_frames, bucket.height, bucket.width)
    workers = max(settings.num_workers, 1)
    infos = examine_all(source, range(len(source)), workers, show)
    if decode:
        infos = _decode_all(source, infos, workers, show)
    limit = settings.max_bad_share
    settings = dataclasses.replace(settings, max_bad_share=1.0, output_dir=None, num_held_out=0, num_workers=0)
    data = VideoData(source, _OneProcess(), settings, infos=infos)
    total = data.report.total
    report = BadSampleReport(total, 1.0, report_path)
    findings = Findings(source.kind, total, report, limit, max_sequence_length=settings.max_sequence_length)
    try:
        data.bind(processor, transformer, chat, warn=False)
    except BadSample:
        raise
    except ValueError:
        if len(data.report.bad) < total:
            raise
    report.add_opened(data.report.bad.values())
    if len(report.bad) < total:
        _describe(findings, data)
        _count_tokens(findings, data)
        findings.samples = _first_samples(data, num_samples)
    return findings


@dataclass(frozen=True)
class _OneProcess:
    """What [`VideoData`] asks of an accelerator, without the state that one sets up for the whole process."""

    device: torch.device = torch.device("cpu")
    process_index: int = 0
    num_processes: int = 1
    is_main_process: bool = True


def _decode_all(source: Source, infos: Sequence[SampleInfo], workers: int, show: bool) -> list[SampleInfo]:
    def decode(number: int) -> SampleInfo:
        info = infos[number]
        if info.bad:
            return info
        try:
            record = source.record(number)
            check_whole(record.video)
            for item in (*record.references, *record.context):
                read_image(item.image)
            return info
        except BadSample as bad:
            return SampleInfo(info.key, bad=BadSample(bad.reason, bad.detail, info.key))

    with ThreadPoolExecutor(workers) as pool:
        decoded = pool.map(decode, range(len(infos)))
        return list(tqdm(decoded, "Decoding samples", len(infos), disable=not show, mininterval=2.0))


def _describe(findings: Findings, data: VideoData) -> None:
    infos = [data.infos[number] for members in data.members for number in members]
    for bucket, members in zip(data.buckets, data.members):
        images = sum(data.infos[number].media.is_image for number in members)
        findings.buckets[str(bucket)] = len(members) - images, images
    videos = [info.media for info in infos if not info.media.is_image]
    if videos:
        findings.ranges = {
            "length (s)": _spread(video.duration + 1 / video.fps for video in videos),
            "frames/s": _spread(video.fps for video in videos),
        }
    findings.ranges |= {
        "height": _spread(info.media.height for info in infos),
        "width": _spread(info.media.width for info in infos),
    }
    prompts = data.settings.prompts
    findings.tasks = dict(Counter(task for info in infos for task in prompts.tasks(info.tasks, info.default_task)))
    findings.references = dict(sorted(Counter(info.num_references for info in infos).items()))
    findings.context = dict(sorted(Counter(info.num_context for info in infos).items()))


def _count_tokens(findings: Findings, data: VideoData) -> None:
    encoder, prompts = data.dataset.encoder, data.settings.prompts
    lengths: dict[str, list[int]] = {}
    numbers = [number for members in data.members for number in members]
    for number in numbers[:: max(1, len(numbers) // TOKEN_SAMPLES)]:
        record, info = data.source.record(number), data.infos[number]
        for task in prompts.tasks(info.tasks, info.default_task):
            try:
                clip = data.dataset.clip(record, info.media, data.assigned[number], 0.0)
                token = encoder.processor.image_token
                prompt = plain_prompt(record, task, clip.first, prompts.max_context, image_token=token)
                lengths.setdefault(task, []).append(encoder.length(prompt.text, prompt.images))
            except BadSample:  # by its headers alone it looked good
                continue
    findings.tokens = {task: tuple(map(int, _spread(values))) for task, values in lengths.items()}
    findings.cut = sum(length > encoder.max_length for values in lengths.values() for length in values)


def _first_samples(data: VideoData, count: int) -> list[TrainingSample]:
    samples = []
    for draws in islice(data.order(), count):  # a sample of each of the first steps
        try:
            number = int(data.members[draws[0].bucket][draws[0].member])
            _, prompt = data.dataset.read(number, draws[0])
            encoder = data.dataset.encoder
            if encoder.length(prompt.text, prompt.images) > encoder.max_length:
                prompt = dataclasses.replace(prompt, text=encoder.cut(prompt.text, prompt.images))
            text = encoder.whole_text(prompt.text)
            sizes = [image.size for image in prompt.images]
            bucket = str(data.buckets[draws[0].bucket])
            samples.append(TrainingSample(data.source.key(number), bucket, prompt.task, text, sizes))
        except BadSample:
            continue
    return samples


def _spread(values: Any) -> tuple[float, float, float]:
    values = torch.tensor(list(values), dtype=torch.float64)
    return values.min().item(), values.median().item(), values.max().item()
