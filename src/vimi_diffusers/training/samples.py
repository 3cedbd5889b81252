# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Sample videos of a run at intervals, from fixed prompts and fixed noise: files, and entries of the trackers."""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.utils import logging
from PIL import Image
from torch.distributed.fsdp import FSDPModule
from transformers import ProcessorMixin

from ..media import DEFAULT_FPS, write_strip, write_video
from ..vimi.pipeline_base import VIMIPipelineBase
from ..vimi.pipeline_vimi import VIMIPipeline
from ..vimi.scheduling_edm_video import EDMVideoScheduler
from .objective import GENERATOR_INPUTS, VIMITrainingModel
from .step import is_sharded
from .upscale import reduce


logger = logging.get_logger(__name__)

SHOWN_SIZE = 256  # small videos are enlarged to about this many pixels for viewing


@dataclass
class SampleRequest:
    """
    What one sample video is made from.

    Attributes:
        title (`str`): The prompt, as text.
        references (`list[tuple[str, PIL.Image.Image]]`): What else the strip shows.
        call (`dict`): Arguments of the pipeline.
        batch (`dict`, *optional*): Instead of a prompt: the conditioner's inputs of a held-out batch.
        row (`int`, *optional*, defaults to `0`): Which sample of the batch.
    """

    title: str
    references: list[tuple[str, Image.Image]] = field(default_factory=list)
    call: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, torch.Tensor] | None = None
    row: int = 0


class SampleLogger:
    """
    Makes sample videos with the weights that the model has at that moment, the averaged ones if the caller has put
    them in, and writes `samples/step-{step}/{number}.mp4` and a strip of references and frames as
    `samples/step-{step}/{number}.png`, whole or not at all. TensorBoard and wandb get them if the run reports to them.

    The same prompts, noise and settings each time, so that only the weights differ. The run is as it would be without:
    no random number is drawn from its streams, and modules and scheduler are left as they were.

    Args:
        model ([`VIMITrainingModel`]): Holds conditioner, generator and scheduler.
        processor (`ProcessorMixin`): The pipeline's `text_processor`.
        accelerator (`Accelerator`): Main process, precision and trackers.
        output_dir (`str` or `Path`): The run's folder.
        requests (`list[SampleRequest]`): From [`prompt_requests`] or [`held_out_requests`].
        pipeline_class (`type`, *optional*): [`VIMIPipeline`] by default, or [`VIMIUpscalePipeline`].
        num_inference_steps (`int`, *optional*, defaults to `16`): Noise levels of the sampler.
        seed (`int`, *optional*, defaults to `0`): Seed of the noise of the first video; each has the next one.
        autocast (`Callable`, *optional*): Makes the context in which the model runs; the accelerator's by default.
    """

    def __init__(
        self,
        model: VIMITrainingModel,
        processor: ProcessorMixin,
        accelerator: Accelerator,
        output_dir: str | Path,
        requests: Sequence[SampleRequest],
        pipeline_class: type[VIMIPipelineBase] = VIMIPipeline,
        num_inference_steps: int = 16,
        seed: int = 0,
        autocast: Callable[[], AbstractContextManager] | None = None,
    ):
        self.model, self.processor, self.accelerator = model, processor, accelerator
        self.folder, self.requests, self.seed = Path(output_dir) / "samples", list(requests), seed
        self.pipeline_class, self.num_inference_steps = pipeline_class, num_inference_steps
        self.autocast, self.has_moviepy = autocast or accelerator.autocast, _has_moviepy()

    def __call__(self, step: int) -> Path | None:
        """
        Makes the videos of a step. Every process must call it: the main process alone works, but with sharded weights
        all of them do, since no process could run the model alone.

        Returns:
            The folder, on the main process; elsewhere, and without requests, `None`.
        """
        main = self.accelerator.is_main_process
        if not self.requests or not (main or is_sharded(self.accelerator)):
            return None
        with self._undisturbed(), torch.no_grad():
            videos = [self._sample(number, request) for number, request in enumerate(self.requests)]
        if not main:
            return None
        folder = self._write(step, videos)
        self._log(step, folder, videos)
        return folder

    # ------------------------------------------------------------------ sampling
    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Evaluation mode, whole weights, no compiled graphs for odd shapes; everything is put back afterwards."""
        device, modes = self.accelerator.device, [(module, module.training) for module in self.model.modules()]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.autocast())
            self.model.eval()
            if isinstance(self.model, FSDPModule):  # weights outside the blocks are gathered by the whole model's call
                self.model.unshard()
            try:
                yield
            finally:
                if isinstance(self.model, FSDPModule):
                    self.model.reshard()
                for module, training in modes:
                    module.training = training

    def _pipeline(self) -> VIMIPipelineBase:
        pipeline = self.pipeline_class(
            text_encoder=self.model.text_encoder,
            text_processor=self.processor,
            transformer=self.model.transformer,
            scheduler=EDMVideoScheduler.from_config(self.model.scheduler.config),  # a sampler has state
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _sample(self, number: int, request: SampleRequest) -> np.ndarray:
        """Frames `(num_frames, height, width, 3)` in [0, 1]."""
        call = dict(request.call)
        if request.batch is not None:
            call |= self._embeds(request.batch, request.row)
        frames = self._pipeline()(
            **call,
            num_inference_steps=self.num_inference_steps,
            generator=torch.Generator().manual_seed(self.seed + number),
            output_type="np",
        ).frames
        return np.nan_to_num(frames[0])

    def _embeds(self, batch: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
        encoder = self.model.text_encoder
        embeds, mask = encoder(**batch), encoder.condition_mask(batch["attention_mask"])
        return {"prompt_embeds": embeds[row : row + 1].float(), "prompt_attention_mask": mask[row : row + 1]}

    # ------------------------------------------------------------------ results
    def _write(self, step: int, videos: Sequence[np.ndarray]) -> Path:
        final = self.folder / f"step-{step}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut off
        partial.mkdir(parents=True)
        for number, (request, frames) in enumerate(zip(self.requests, videos)):
            write_strip(partial / f"{number:02d}.png", request.references, frames, request.title)
            if len(frames) > 1:
                fps, scale = request.call.get("fps", DEFAULT_FPS), _viewing_scale(frames)
                write_video(frames, partial / f"{number:02d}.mp4", fps=fps, scale=scale)
        shutil.rmtree(final, ignore_errors=True)  # of a run that came this far before
        os.replace(partial, final)
        return final

    def _log(self, step: int, folder: Path, videos: Sequence[np.ndarray]) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                self._log_tensorboard(tracker.tracker, step, folder, videos)
            elif tracker.name == "wandb":
                self._log_wandb(tracker.tracker, step, folder)

    def _log_tensorboard(self, writer: Any, step: int, folder: Path, videos: Sequence[np.ndarray]) -> None:
        if not self.has_moviepy:
            logger.warning_once(
                "TensorBoard shows sample videos as pictures of their frames; for motion `pip install 'moviepy<2'`."
            )
        for number, (request, frames) in enumerate(zip(self.requests, videos)):
            strip = np.asarray(Image.open(folder / f"{number:02d}.png"))
            writer.add_image(f"samples/{number:02d}", strip, step, dataformats="HWC")
            if self.has_moviepy and len(frames) > 1:
                pixels = torch.from_numpy((frames * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)[None]
                fps = request.call.get("fps", DEFAULT_FPS)
                writer.add_video(f"samples/{number:02d}/video", pixels, step, fps=fps)
        writer.flush()

    def _log_wandb(self, run: Any, step: int, folder: Path) -> None:
        import wandb

        values: dict[str, Any] = {}
        for number, request in enumerate(self.requests):
            strip, video = folder / f"{number:02d}.png", folder / f"{number:02d}.mp4"
            values[f"samples/{number:02d}"] = wandb.Image(str(strip), caption=request.title)
            if video.is_file():
                values[f"samples/{number:02d}/video"] = wandb.Video(str(video), caption=request.title, format="mp4")
        run.log(values, step=step)


def prompt_requests(prompts: Sequence[str], num_videos: int) -> list[SampleRequest]:
    """Requests for the first `num_videos` of plain prompts."""
    return [SampleRequest(title=prompt, call={"prompt": prompt}) for prompt in prompts[:num_videos]]


def held_out_requests(
    batches: Iterator[tuple[str, dict[str, torch.Tensor]]],
    processor: ProcessorMixin,
    num_videos: int,
    base_size: tuple[int, int] | None = None,
) -> list[SampleRequest]:
    """
    Requests for held-out samples with their images: of each name in turn the first one, then the second ones, ...

    Args:
        batches (`Iterator`): A data source's `held_out(num_videos, num_videos)`; what is named `..._without_images`
            is passed over.
        processor (`ProcessorMixin`): The pipeline's `text_processor`, which reads the tokens back.
        num_videos (`int`): Requests at most.
        base_size (`tuple[int, int]`, *optional*):
            For an upscaler: height and width of the base, which is the true video reduced to it.
    """
    first: dict[str, dict[str, torch.Tensor]] = {}
    for name, batch in batches:
        if not name.endswith("_without_images"):
            first.setdefault(name, batch)
    places = [(row, name) for row in range(num_videos) for name in first if row < len(first[name]["video"])]
    return [_held_out_request(first[name], row, processor, base_size) for row, name in places[:num_videos]]


def _held_out_request(
    batch: dict[str, torch.Tensor],
    row: int,
    processor: ProcessorMixin,
    base_size: tuple[int, int] | None,
) -> SampleRequest:
    video = batch["video"][row : row + 1]
    fps = float(batch["fps"][row])
    call: dict[str, Any] = {"height": video.shape[3], "width": video.shape[4]}
    if math.isfinite(fps):
        call["fps"] = fps
    references = [("", image) for image in _images(batch, row, processor)]
    if base_size is None:
        call["num_frames"] = video.shape[2]
    else:
        base = (reduce(video, *base_size).clamp(-1, 1) + 1) / 2
        call["video"] = base.transpose(1, 2)
        references.insert(0, ("the base's first frame", _to_picture(base[0, :, 0])))
    inputs = {name: value for name, value in batch.items() if name not in ("video", "fps", *GENERATOR_INPUTS)}
    return SampleRequest(_text(batch, row, processor), references, call, inputs, row)


def _text(batch: dict[str, torch.Tensor], row: int, processor: ProcessorMixin) -> str:
    """The prompt, read back from its tokens."""
    tokenizer, image = processor.tokenizer, processor.image_token
    text = tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
    for token in tokenizer.all_special_tokens:
        if token != image:
            text = text.replace(token, "")
    return re.sub(rf"({re.escape(image)}\s*)+", f"{image} ", text).strip()


def _images(batch: dict[str, torch.Tensor], row: int, processor: ProcessorMixin) -> list[Image.Image]:
    """The images of a sample, where they are images still and no patches; empty slots are of one colour."""
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.ndim < 4:
        return []
    if pixels.ndim == 4:  # the slots of all samples behind each other
        pixels = pixels.unflatten(0, (len(batch["input_ids"]), -1))
    images = pixels[row].float().cpu()
    settings = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    return [_to_picture(image * std + mean) for image in images if image.std() > 0]


def _to_picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _viewing_scale(frames: np.ndarray) -> int:
    """A whole factor to a size good to look at, and even, as the codec needs it."""
    scale = max(1, SHOWN_SIZE // max(frames.shape[1:3]))
    odd = any(scale * side % 2 for side in frames.shape[1:3])
    return scale + 1 if odd else scale


def _has_moviepy() -> bool:
    """Whether TensorBoard can make moving pictures: it needs `moviepy.editor`, which version 2 has no more."""
    return find_spec("moviepy") is not None and find_spec("moviepy.editor") is not None
