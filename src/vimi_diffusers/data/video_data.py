# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Videos and images of a data set as the training loop's batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.utils import logging
from torch.utils.data import DataLoader

from ..media import DEFAULT_FPS
from ..prompting import TASKS
from ..prompting.paraphrases import PARAPHRASES
from .buckets import Bucket, choose_bucket
from .clips import MAX_TRIES, ClipDataset, LoadedBatch
from .index import SampleInfo, examine_all, load_index, save_index
from .order import BatchOrder
from .prompts import PromptEncoder, PromptSettings
from .readers import Source, open_source
from .report import BadSampleReport
from .schema import BadSample


logger = logging.get_logger(__name__)

SYNC_STEPS = 32  # between two exchanges of the processes' bad samples
TOKENIZER_SAMPLES = 20_000
INDEX_FILE, REPORT_FILE = "data_index.parquet", "bad_samples.jsonl"


@dataclass(frozen=True)
class VideoDataSettings:
    """
    How a data set becomes batches; the fields of [`TrainingConfig`] that have to do with it.

    Args:
        buckets (`Sequence[str]`, *optional*):
            Shapes such as `"16x64x64@5.333"`, see [`Bucket`]. Defaults to the model's own, at the frame rate that the
            pipeline has by default.
        prompts ([`PromptSettings`], *optional*): Task mix, context and dropout.
        batch_size (`int`, *optional*, defaults to `1`): Samples of each process and step.
        max_sequence_length (`int`, *optional*, defaults to `192`): Tokens of a prompt, images included.
        num_workers (`int`, *optional*, defaults to `0`): Loader processes.
        seed (`int`, *optional*, defaults to `0`): Seed of order and of all that is drawn.
        num_held_out (`int`, *optional*, defaults to `0`):
            Samples kept from training for the held-out loss; at most a tenth of the data set. They are chosen by their
            names, so that all stages keep the same.
        max_bad_share (`float`, *optional*, defaults to `0.05`): Share of bad samples at which a run stops.
        output_dir (`str`, *optional*): Where the index and the report of bad samples are written.
        resume (`bool`, *optional*, defaults to `False`):
            Whether a run goes on: the data set must be the one it had, and the same samples stay held out.
        raw_prompts (`bool`, *optional*, defaults to `False`):
            Whether training batches hold `texts` and `images`, for a condition cache, in place of tokens.
    """

    buckets: Sequence[str] | None = None
    prompts: PromptSettings = field(default_factory=PromptSettings)
    batch_size: int = 1
    max_sequence_length: int = 192
    num_workers: int = 0
    seed: int = 0
    num_held_out: int = 0
    max_bad_share: float = 0.05
    output_dir: str | None = None
    resume: bool = False
    raw_prompts: bool = False


class VideoData:
    """
    A data set of videos and images as the training loop's batches: folder with `metadata.jsonl`, `datasets` or
    webdataset shards.

    All that it yields is a function of seed, step, rank and number of processes, so that a resumed run sees what the
    uninterrupted one would have seen. Every method must be called by all processes.

    Args:
        source ([`Source`]): The data set, from [`open_source`].
        accelerator (`Accelerator`): Device and processes.
        settings ([`VideoDataSettings`], *optional*): Shapes, prompts, batch.
        infos (`list[SampleInfo]`, *optional*): The index, if it is known; else all samples are opened.

    Raises:
        TooManyBadSamples: If more of the data set cannot be used than `max_bad_share`.
        ValueError: If a run is to go on with another data set than it had.
    """

    def __init__(
        self,
        source: Source,
        accelerator: Accelerator,
        settings: VideoDataSettings | None = None,
        infos: list[SampleInfo] | None = None,
    ):
        self.source, self.accelerator = source, accelerator
        self.settings = settings = settings or VideoDataSettings()
        self.buckets = [Bucket.parse(text) for text in settings.buckets or ()]
        if not len(source) and not source.problems:
            raise ValueError(f"The data set of kind {source.kind!r} has no samples.")
        self.num_held_out, self.identity = settings.num_held_out, f"{source.kind} {source.identity()}"
        self.index_path = Path(settings.output_dir) / INDEX_FILE if settings.output_dir else None
        self.infos = infos or self._index()
        path = Path(settings.output_dir) / REPORT_FILE if settings.output_dir and accelerator.is_main_process else None
        total = len(source) + len(source.problems)
        self.report = BadSampleReport(total, settings.max_bad_share, path, keep=settings.resume)
        self.report.add_opened([*source.problems, *(info.bad for info in self.infos if info.bad)])

    @classmethod
    def from_config(cls, config: Any, accelerator: Accelerator) -> "VideoData":
        """
        The data of a training run.

        Args:
            config ([`TrainingConfig`]): `dataset_name` or `train_data_dir`, and the fields of [`VideoDataSettings`].
            accelerator (`Accelerator`): Device and processes.
        """
        name = config.dataset_name or config.train_data_dir
        if not name:
            raise ValueError("There is no data to train on: give `dataset_name` or `train_data_dir`.")
        prompts = PromptSettings(
            config.task_weights,
            config.max_context,
            config.condition_dropout,
            config.image_dropout,
            config.num_paraphrases,
        )
        buckets = config.video_buckets
        if config.cuda_graph and (set(config.task_weights) != {"text-to-video"} or config.max_context or
                                  len(buckets or ()) > 1):  # fmt: skip
            raise ValueError(
                "`cuda_graph` needs batches of one shape, but these have several buckets or numbers of images: set it "
                "to false."
            )
        settings = VideoDataSettings(
            buckets=buckets,
            prompts=prompts,
            batch_size=config.train_batch_size,
            max_sequence_length=config.max_sequence_length,
            num_workers=config.dataloader_num_workers,
            seed=config.seed,
            num_held_out=config.validation_samples if config.validation_steps else 0,
            max_bad_share=config.max_bad_share,
            output_dir=config.output_dir,
            resume=bool(config.resume_from_checkpoint),
            raw_prompts=bool(config.condition_cache_dir),
        )
        columns = {"video_column": config.video_column, "caption_column": config.caption_column}
        return cls(open_source(name, config.dataset_config_name, **columns), accelerator, settings)

    # ------------------------------------------------------------------ before training
    def _index(self) -> list[SampleInfo]:
        """The index: of a run that goes on the one it wrote, else made by all processes, each a part."""
        accelerator = self.accelerator
        known, stale = [None], [False]
        if self.settings.resume and self.index_path and accelerator.is_main_process:
            known = [load_index(self.index_path, self.identity)]
            stale = [known[0] is None and self.index_path.is_file()]
        if accelerator.num_processes > 1:
            broadcast_object_list(known)
            broadcast_object_list(stale)
        if stale[0]:
            raise ValueError(
                f"The data set is not the one that {self.index_path} was made from: a resumed run would see other "
                "samples. Give back the old one, or start a run in another `output_dir`."
            )
        if known[0] is not None:
            infos, self.num_held_out = known[0]  # whatever its validation is set to now, its training stays the same
            return infos
        numbers = range(accelerator.process_index, len(self.source), accelerator.num_processes)
        found = examine_all(self.source, numbers, max(self.settings.num_workers, 4), show=accelerator.is_main_process)
        parts = gather_object(list(zip(numbers, found))) if accelerator.num_processes > 1 else zip(numbers, found)
        return [info for _, info in sorted(parts, key=lambda part: part[0])]

    def texts(self) -> Iterator[str]:
        """Captions, texts of retrieved pairs and instructions, for a new tokenizer."""
        for sentences in PARAPHRASES.values():
            yield from sentences
        good = [number for number, info in enumerate(self.infos) if info.bad is None]
        order = np.random.default_rng([self.settings.seed, 2]).permutation(len(good))[:TOKENIZER_SAMPLES]
        for place in order:
            record = self.source.record(good[place])
            yield record.words
            yield from (pair.text for pair in record.context)

    def bind(self, processor: Any, transformer: Any, chat: bool = False, warn: bool = True) -> None:
        """
        Assigns the samples to buckets and makes the loaders' data set.

        Args:
            processor (`ProcessorMixin`): The pipeline's `text_processor`.
            transformer ([`VIMITransformer3DModel`]): Decides which shapes are possible.
            chat (`bool`, *optional*, defaults to `False`):
                Whether prompts go through the chat template: `text_encoder.config.crop_start > 0`.
            warn (`bool`, *optional*, defaults to `True`): Whether to log what cannot be used.

        Raises:
            TooManyBadSamples: If too many videos are too short or too slow for every bucket.
            ValueError: If a bucket does not fit the model, or no sample any bucket and task.
        """
        config, prompts = transformer.config, self.settings.prompts
        if not self.buckets:
            fps = DEFAULT_FPS if config.num_frames > 1 else None
            self.buckets = [Bucket(config.num_frames, config.height, config.width, fps)]
        for bucket in self.buckets:
            transformer.check_sample_size(bucket.num_frames, bucket.height, bucket.width)
        usable, assigned, unfit = [], {}, []
        for number, info in enumerate(self.infos):
            if info.bad or not prompts.tasks(info.tasks, info.default_task):
                continue
            try:
                assigned[number] = choose_bucket(info.media, self.buckets)
                usable.append(number)
            except BadSample as bad:
                unfit.append(BadSample(bad.reason, bad.detail, info.key))
        self.report.add_opened(unfit)
        if not usable:
            raise ValueError(
                f"None of the {len(self.infos)} samples allows a task of {dict(prompts.task_weights or {})}: change "
                "`task_weights`, or give the samples `references`."
            )
        self.held_out_numbers = self._choose_held_out(usable)
        kept = set(self.held_out_numbers)
        self.assigned = assigned
        self.members = [
            np.array(
                [number for number in usable if assigned[number] == bucket and number not in kept], dtype=np.int64
            )
            for bucket in range(len(self.buckets))
        ]
        if self.report.bad and warn:
            self._warn(f"{len(self.report.bad)} samples cannot be used:\n{self.report.summary()}")
        left_out = len(self.infos) - len(usable) - len(self.report.bad) + len(self.source.problems)
        if left_out and warn:
            self._warn(f"{left_out} of {len(self.infos)} samples allow no task of {dict(prompts.task_weights or {})}.")
        encoder = PromptEncoder(processor, self.settings.max_sequence_length, chat)
        self.dataset = ClipDataset(
            self.source,
            self.infos,
            self.buckets,
            self.members,
            encoder,
            prompts,
            self.settings.seed,
            resolution=bool(config.get("resolution_token")),
            raw=self.settings.raw_prompts,
        )
        if self.index_path and self.accelerator.is_main_process:
            save_index(self.index_path, self.infos, self.identity, self.num_held_out)

    def _choose_held_out(self, usable: list[int]) -> list[int]:
        count = min(self.num_held_out, len(usable) // 10)
        if self.num_held_out and not count:
            raise ValueError(f"{len(usable)} samples are too few to hold out a tenth: set `validation_steps` to 0.")
        if self.settings.num_held_out and not count:
            self._warn("This run held out no samples when it began: there is no held-out loss.")

        def digest(number: int) -> bytes:
            return hashlib.sha256(self.infos[number].key.encode()).digest()

        return sorted(sorted(usable, key=digest)[:count])

    # ------------------------------------------------------------------ batches
    def order(self, start_step: int = 0) -> BatchOrder:
        """The draws of this process."""
        return BatchOrder(
            [len(members) for members in self.members],
            self.settings.batch_size,
            self.settings.seed,
            start_step,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

    def batches(self, start_step: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """
        Endless batches on the device, from `start_step` on.

        Raises:
            TooManyBadSamples: On all processes at the same step, if the samples met so far let expect more bad ones
                than `max_bad_share`.
        """
        accelerator, workers = self.accelerator, self.settings.num_workers
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.order(start_step),
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # else each start of a loader draws from the stream of the noise
        )
        bad, drawn = [], 0
        for step, loaded in enumerate(loader, start_step):
            bad += loaded.bad
            drawn += loaded.drawn
            if loaded.tensors is None:
                self.report.add_drawn(bad, drawn)
                raise ValueError(f"{MAX_TRIES} samples in a row cannot be used.\n{self.report.summary()}")
            if accelerator.num_processes == 1 or (step + 1) % SYNC_STEPS == 0:
                self._exchange(bad, drawn)
                bad, drawn = [], 0
            yield self.to_device(loaded.tensors)

    def _exchange(self, bad: list[BadSample], drawn: int) -> None:
        """Counts what all processes met; all see the same counts and stop at the same step."""
        parts = [(bad, drawn)]
        if self.accelerator.num_processes > 1:
            parts = gather_object(parts)
        if self.report.add_drawn([each for part in parts for each in part[0]], sum(part[1] for part in parts)):
            count = len(self.report.bad)
            self._warn(f"{count} of {self.report.total} samples cannot be used so far, see {self.report.path}.")

    def _warn(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.warning(message)

    def to_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Moves a batch to the device, its video as floats in [-1, 1] with channels before frames."""
        device = self.accelerator.device
        batch = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in tensors.items()
        }
        batch["video"] = batch["video"].permute(0, 4, 1, 2, 3).contiguous().float().div_(127.5).sub_(1.0)
        return batch

    def held_out(self, num_samples: int, batch_size: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """
        Fixed batches of samples that are not trained on, the same on all processes: of each task by its name, and with
        all images withheld as `"{task}_without_images"`. A name comes once for each batch.

        Args:
            num_samples (`int`): Samples of each name, at most.
            batch_size (`int`): Samples of a batch, at most.
        """
        for task in TASKS:
            numbers = [number for number in self.held_out_numbers if task in self._tasks(number)][:num_samples]
            for bucket in range(len(self.buckets)):
                own = [number for number in numbers if self.assigned[number] == bucket]
                for start in range(0, len(own), batch_size):
                    chunk = own[start : start + batch_size]
                    for images in (True, False):
                        loaded = self.dataset.fixed_batch(chunk, bucket, task, images)
                        for bad in loaded.bad if images else ():
                            self._warn(f"A held-out sample is left out: {bad}")
                        if loaded.tensors is not None:
                            yield task if images else f"{task}_without_images", self.to_device(loaded.tensors)

    def _tasks(self, number: int) -> dict[str, float]:
        info = self.infos[number]
        return self.settings.prompts.tasks(info.tasks, info.default_task)


def _as_it_is(loaded: LoadedBatch) -> LoadedBatch:
    return loaded
