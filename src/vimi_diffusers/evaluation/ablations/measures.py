# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures of one trained cell: each takes a [`Trained`] and returns figures by name."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ...emoji_world.recipes import Sample
from ...emoji_world.render import RenderBatch
from ...emoji_world.world_index import WorldIndex
from ...training.config import TrainingConfig
from ...training.data import without_images
from ...training.objective import VIMITrainingModel
from ...training.validation import held_out_errors
from ...vimi.pipeline_vimi import VIMIPipeline
from ..colours import crossing_samples, identify, reference_colours, subject_colours
from ..held_out import HeldOutEvaluation, HeldOutSettings
from .options import EvaluationOptions, WorldOptions
from .world import build_collator, held_out_samples, is_emoji_world, render_shown


@dataclasses.dataclass
class Trained:
    """
    A trained cell, for its measures.

    Args:
        config ([`TrainingConfig`]): What it was trained with.
        options ([`WorldOptions`]): How its samples were shown.
        evaluation ([`EvaluationOptions`]): What to measure.
        pipeline (`Path`): Folder of its weights.
        device (`str`): Where to run.
    """

    config: TrainingConfig
    options: WorldOptions
    evaluation: EvaluationOptions
    pipeline: Path
    device: str = "cpu"

    @cached_property
    def pipe(self) -> VIMIPipeline:
        """The weights, on the device."""
        pipe = VIMIPipeline.from_pretrained(self.pipeline, dtype=torch.float32).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def world(self) -> "ShownWorld":
        """
        Held-out concepts of emoji world as the cell shows them.

        Raises:
            ValueError: If the cell was trained on other data.
        """
        if not is_emoji_world(self.config.train_data_dir):
            raise ValueError("This measure needs cells that are trained on an emoji world.")
        return ShownWorld(self)


class ShownWorld(HeldOutEvaluation):
    """[`HeldOutEvaluation`] with the prompts, and the number of images, of a cell."""

    def __init__(self, trained: Trained):
        evaluation = trained.evaluation
        settings = HeldOutSettings(
            num_inference_steps=evaluation.num_inference_steps,
            guidance_scale=evaluation.guidance_scale,
            image_guidance_scale=None,  # words and images together, so that cells without images compare
            batch_size=evaluation.video_batch_size,
            seed=evaluation.seed,
        )
        super().__init__(trained.pipe, WorldIndex.load(trained.config.train_data_dir), settings)
        self.options, self.slots = trained.options, trained.config.num_images

    def samples(self, task: str, number: int, phrasing: str = "plain") -> list[Sample]:
        return held_out_samples(self.index, task, number, self.options, phrasing, self.settings.seed, self.shape)

    def movers(self, task: str, number: int) -> list[Sample]:
        """Samples of different concepts, as many as there are."""
        clips = [c for c in self.index.concepts.values() if c.split == "held_out" and c.clip]
        return self.samples(task, min(number, len(clips)))

    @torch.no_grad()
    def render(self, samples: Sequence[Sample]) -> tuple[np.ndarray, list[np.ndarray]]:
        batch = RenderBatch.from_samples(samples, self.index, self.slots).to(self.renderer.device)
        videos = self.renderer.videos(batch)
        images = self.renderer.references(batch, videos).unflatten(0, (len(samples), self.slots))
        images = ((images + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        videos = (videos / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).cpu().numpy()
        return videos, [own[: len(sample.context)] for own, sample in zip(images, samples)]


# ---------------------------------------------------------------------- held-out loss
def held_out_loss(trained: Trained) -> dict[str, float]:
    """
    The error in F space on held-out samples: `loss/{task}`, `loss/{task}_without_images`, and
    `loss/{task}/{phrasing}` for phrasings other than `"plain"`. Samples, noise levels and noise are the same in all
    cells.
    """
    pipe = trained.pipe
    model = VIMITrainingModel(pipe.text_encoder, pipe.transformer, pipe.scheduler, "snap").eval()
    batches = _world_batches(trained) if is_emoji_world(trained.config.train_data_dir) else _video_batches(trained)
    errors = held_out_errors(model, batches)
    return {name.replace("held_out/", "loss/", 1): value for name, value in errors.items()}


def _world_batches(trained: Trained) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    options, world = trained.evaluation, trained.world
    config = trained.config
    collator = build_collator(trained.pipe.text_processor, world.index, config.max_sequence_length, config.num_images)
    pixels = trained.pipe.transformer.config.reference_patch_size is not None
    for task in options.tasks:
        sets: dict[str, list[Sample]] = {}
        for phrasing in options.phrasings:
            sets[task if phrasing == "plain" else f"{task}/{phrasing}"] = world.samples(
                task, options.num_samples, phrasing
            )
        sets[f"{task}_without_images"] = [without_images(sample) for sample in next(iter(sets.values()))]
        for name, samples in sets.items():
            for start in range(0, len(samples), options.batch_size):
                batch = collator(samples[start : start + options.batch_size])
                yield name, render_shown(batch, world.renderer, pixels)


def _video_batches(trained: Trained) -> Iterable[tuple[str, dict[str, torch.Tensor]]]:
    """Of a data set of videos: the samples that its training held out."""
    from accelerate import Accelerator

    from ...data import VideoData

    options = trained.evaluation
    data = VideoData.from_config(trained.config, Accelerator())
    chat = trained.pipe.text_encoder.config.crop_start > 0
    data.bind(trained.pipe.text_processor, trained.pipe.transformer, chat, warn=False)
    wanted = {name for task in options.tasks for name in (task, f"{task}_without_images")}
    held_out = data.held_out(options.num_samples, options.batch_size)
    return (named for named in held_out if named[0] in wanted)


# ---------------------------------------------------------------------- generated videos
def identification(trained: Trained) -> dict[str, float]:
    """
    The share of held-out subjects whose generated colour is nearest to their own reference's, see [`colours`]:
    `identification/top_1`, `/top_5`, the same `_without_images`, and the ceiling `_true_clips`.
    """
    world = trained.world
    samples = crossing_samples(world.movers("subject", trained.evaluation.num_videos), world.index)
    references = reference_colours(samples, world.assets)
    videos = {
        "": world.generate(samples),
        "_without_images": world.generate([without_images(sample) for sample in samples]),
        "_true_clips": world.render(samples)[0],
    }
    figures = {}
    for suffix, shown in videos.items():
        found = identify(subject_colours(shown), references)
        figures |= {f"identification/{name}{suffix}": found[name] for name in ("top_1", "top_5")}
    return figures


def grounding(trained: Trained) -> dict[str, float]:
    """
    What [`evaluate_grounding`] finds in generated videos of the tasks of `evaluation.tasks` that show images:
    `grounding/{task}/{measure}`, and `{measure}_without_images`.
    """
    from ..grounding import GroundingSample, evaluate_grounding, held_out_references, place_views

    world, figures = trained.world, {}
    references, places = held_out_references(world.assets), place_views(world.assets)
    for task in trained.evaluation.tasks:
        samples = world.movers(task, trained.evaluation.num_videos)
        truth = _channels_first(world.render(samples)[0])
        result = evaluate_grounding(
            [GroundingSample.from_emoji_world(sample) for sample in samples],
            _channels_first(world.generate(samples)),
            references,
            places,
            real=truth,
            withheld=_channels_first(world.generate([without_images(sample) for sample in samples])),
        )
        for name, suffix in (("generated", ""), ("withheld", "_without_images"), ("real", "_true_clips")):
            for measure, value in result[name].items():
                if isinstance(value, dict) and isinstance(value.get("value"), (int, float)):
                    figures[f"grounding/{task}/{measure}{suffix}"] = float(value["value"])
    return figures


def _channels_first(videos: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(videos)).permute(0, 1, 4, 2, 3).float()
