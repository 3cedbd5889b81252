# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trained weights on concepts they have never seen, with the images that show them and with the images withheld."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..emoji_world.recipes import MAX_REFERENCES, Sample
from ..emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from ..emoji_world.samples import Collator, EmojiWorldDataset
from ..emoji_world.world_index import WorldIndex
from ..files import replacing
from ..prompting import TASKS
from ..training.data import without_images
from ..training.objective import VIMITrainingModel
from ..training.validation import HeldOutLoss
from ..vimi.pipeline_vimi import VIMIPipeline
from .colours import SMOOTHING, THRESHOLD, crossing_samples, identify, reference_colours, subject_colours
from .sheet import SheetRow, write_sheet


SPLIT = "val_concept"
NUM_ROWS, NUM_COLOURS, NUM_LOSS_SAMPLES = 24, 60, 256
LOSS_BATCH_SIZE = 128  # the training's own, as noise levels are stratified over a batch
TEXT_TOKENS = 160
SHOWN_FRAMES = 4
IMAGES_HEADING = {"text-to-video": "Retrieved pairs", "subject": "Given images", "prediction": "First frame"}

Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class HeldOutSettings:
    """
    Settings of [`evaluate_held_out`].

    Args:
        num_inference_steps (`int`, *optional*, defaults to `16`): Noise levels of the sampler.
        guidance_scale (`float`, *optional*, defaults to `3.0`):
            Weight of classifier-free guidance: of the controls, and without `image_guidance_scale` of all.
        image_guidance_scale (`float`, *optional*, defaults to `4.0`):
            Weight of the images, where the words have 1 (see [`default_guidance`]); `None` weighs both together.
        limit (`int`, *optional*): At most so many concepts in each part, for a quick look.
        batch_size (`int`, *optional*, defaults to `4`): Videos that are generated together.
        seed (`int`, *optional*, defaults to `0`): Seed of samples and noise.
    """

    num_inference_steps: int = 16
    guidance_scale: float = 3.0
    image_guidance_scale: float | None = 4.0
    limit: int | None = None
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self):
        for name in ("num_inference_steps", "limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def at_most(self, number: int) -> int:
        """`number`, or the limit where that is lower."""
        return number if self.limit is None else min(number, self.limit)


class HeldOutEvaluation:
    """
    A pipeline and an emoji world, brought to the same shapes.

    Args:
        pipe ([`VIMIPipeline`]): The weights, on their device.
        index ([`WorldIndex`]): The world.
        settings ([`HeldOutSettings`]): Sampler and sizes.
        report (`Callable`, *optional*): Called as `report(stage, done, total)`.

    Raises:
        `ValueError`: If the pipeline does not make square pixel videos.
    """

    def __init__(
        self, pipe: VIMIPipeline, index: WorldIndex, settings: HeldOutSettings, report: Report = lambda *_: None
    ):
        config = pipe.transformer.config
        if pipe.vae is not None:
            raise ValueError("Emoji world is measured on pixels, this pipeline has a VAE: take one without.")
        if config.height != config.width:
            raise ValueError(f"Emoji world makes square videos, this pipeline {config.height}x{config.width}.")
        self.pipe, self.index, self.settings, self.report = pipe, index, settings, report
        self.shape = {"num_frames": config.num_frames, "size": config.height}
        self.image_size = pipe.text_processor.image_processor.crop_size["height"]
        self.assets = EmojiWorldAssets.load(index, device=pipe.device)
        self.renderer = EmojiWorldRenderer(self.assets, reference_size=self.image_size, **self.shape)

    def samples(self, task: str, number: int) -> list[Sample]:
        """The first `number` held-out samples of a task, each of another concept: the order is the data set's."""
        dataset = EmojiWorldDataset(
            self.index, SPLIT, {task: 1.0}, self.settings.seed, length=number, canonical=True, **self.shape
        )
        if len(dataset.drawer.clips) < number:
            raise ValueError(
                f"The emoji world in {self.index.root} has {len(dataset.drawer.clips)} held-out concepts that move, "
                f"{number} are needed: lower the limit."
            )
        return list(dataset)

    # ------------------------------------------------------------------ pixels
    @torch.no_grad()
    def render(self, samples: Sequence[Sample]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The true clips, `(n, frames, size, size, 3)` in [0, 1], and each sample's images as bytes."""
        batch = RenderBatch.from_samples(samples, self.index).to(self.renderer.device)
        videos = self.renderer.videos(batch)
        images = self.renderer.references(batch, videos).unflatten(0, (len(samples), MAX_REFERENCES))
        images = ((images + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        videos = (videos / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).cpu().numpy()
        return videos, [own[: len(sample.context)] for own, sample in zip(images, samples)]

    def generate(self, samples: Sequence[Sample]) -> np.ndarray:
        """
        Videos of the pipeline for the samples' prompts and images, `(n, frames, size, size, 3)` in [0, 1]. The noise
        depends on the sample's number alone, so that a control starts from that of its original.
        """
        settings, videos = self.settings, {}
        with_images = {"guidance_scale": settings.guidance_scale}
        if settings.image_guidance_scale is not None:
            with_images = {"guidance_scale": 1.0, "image_guidance_scale": settings.image_guidance_scale}
        groups = (
            ([sample for sample in samples if sample.context], with_images),
            ([sample for sample in samples if not sample.context], {"guidance_scale": settings.guidance_scale}),
        )
        for group, guidance in groups:
            for start in range(0, len(group), settings.batch_size):
                batch = group[start : start + settings.batch_size]
                frames = self.pipe(
                    **pipeline_inputs(batch, self.render(batch)[1]),
                    fps=batch[0].video.fps,
                    num_inference_steps=settings.num_inference_steps,
                    generator=[self._noise(sample) for sample in batch],
                    **guidance,
                ).frames
                videos |= zip(batch, frames)
                self.report("videos", len(videos), len(samples))
        return np.stack([videos[sample] for sample in samples])

    def _noise(self, sample: Sample) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings.seed + int(sample.id.rpartition("/")[2]))

    # ------------------------------------------------------------------ figures
    def losses(self) -> dict[str, Any]:
        """The diffusion loss of each task, with the images and without."""
        processor = self.pipe.text_processor
        tokens_per_image = (self.image_size // processor.patch_size) ** 2
        length = TEXT_TOKENS + MAX_REFERENCES * tokens_per_image
        collator = Collator(
            processor.tokenizer, self.index, processor.image_token_id, tokens_per_image, length, MAX_REFERENCES
        )
        model = VIMITrainingModel(self.pipe.text_encoder, self.pipe.transformer, self.pipe.scheduler, "snap").eval()
        number, results = self.settings.at_most(NUM_LOSS_SAMPLES), {}
        for done, task in enumerate(TASKS, 1):
            held_out = HeldOutLoss(
                self.renderer, collator, [task], number, LOSS_BATCH_SIZE, self.settings.seed, SPLIT
            )(model)
            results[task] = {
                "with_images": round(held_out[f"held_out/{task}"], 5),
                "without_images": round(held_out[f"held_out/{task}_without_images"], 5),
            }
            self.report("held-out loss", done, len(TASKS))
        return {"samples_per_task": number, **results}

    def run(self, out: Path) -> dict[str, Any]:
        """Generates all videos, writes the pictures to `out` and returns the figures."""
        rows = {task: self.samples(task, self.settings.at_most(NUM_ROWS)) for task in TASKS}
        colours = crossing_samples(self.samples("subject", self.settings.at_most(NUM_COLOURS)), self.index)
        losses = self.losses()

        originals = [sample for samples in (*rows.values(), colours) for sample in samples]
        # Samples of one number show the same video in each task, so that they share a control.
        controls = dict.fromkeys(map(without_images, originals))
        requests = [*originals, *controls]
        videos = dict(zip(requests, self.generate(requests)))

        def pick(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
            with_images = np.stack([videos[sample] for sample in samples])
            return with_images, np.stack([videos[without_images(sample)] for sample in samples])

        for task, samples in rows.items():
            self._write_picture(out / picture_name(task), task, samples, *pick(samples))
        return {
            "held_out_loss": losses,
            "colour_identification": self._identification(colours, *pick(colours)),
            "pictures": {task: picture_name(task) for task in rows},
            "concepts_in_pictures": [sample.concept for sample in rows["subject"]],
        }

    def _identification(self, samples: list[Sample], generated: np.ndarray, without: np.ndarray) -> dict[str, Any]:
        references, number = reference_colours(samples, self.assets), len(samples)
        return {
            "concepts": number,
            "place": samples[0].place,
            "prompt": samples[0].prompt,
            "measure": {"threshold_cielab": THRESHOLD, "smoothing_pixels": SMOOTHING},
            "chance": {"top_1": round(1 / number, 4), "top_5": round(min(5, number) / number, 4)},
            "true_clips": identify(subject_colours(self.render(samples)[0]), references),
            "with_images": identify(subject_colours(generated), references),
            "without_images": identify(subject_colours(without), references),
        }

    def _write_picture(
        self, path: Path, task: str, samples: list[Sample], generated: np.ndarray, without: np.ndarray
    ) -> None:
        truth, images = self.render(samples)
        shown = np.linspace(0, truth.shape[1] - 1, min(SHOWN_FRAMES, truth.shape[1])).round().astype(int)
        rows = [
            SheetRow(
                self.index.concepts[sample.concept].label,
                sample.caption,
                [images[n], truth[n][shown], generated[n][shown], without[n][shown]],
            )
            for n, sample in enumerate(samples)
        ]
        settings = self.settings
        guidance = f"guidance {settings.guidance_scale:g}"
        if settings.image_guidance_scale is not None:
            guidance = f"guidance by the images {settings.image_guidance_scale:g}, without them by the words "
            guidance += f"{settings.guidance_scale:g}"
        title = (
            f"Task {task}: the first {len(rows)} held-out concepts, never trained on. "
            f"{settings.num_inference_steps} steps, {guidance}, seed {settings.seed}."
        )
        headings = (
            IMAGES_HEADING[task],
            "True clip",
            "Generated with the images",
            "Generated without them (same words and noise)",
        )
        write_sheet(path, title, headings, rows)


def evaluate_held_out(
    model: str | Path,
    world: str | Path,
    out: str | Path,
    settings: HeldOutSettings = HeldOutSettings(),
    device: str = "cpu",
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """
    Measures a pipeline on held-out concepts and writes `results.json` and one picture for each task.

    The pictures show the first concepts in the order of the data set, which depends on the seed alone. The figures:

    - `held_out_loss`: the diffusion loss with the images, and with the images withheld from the same words and noise;
    - `colour_identification`: the share of subjects whose mean colour is nearest to their own reference among all
      references (see [`colours`]), for the true clips (the measure's ceiling), for what was generated with the images,
      and without them (the floor).

    Text-to-video samples come with the right retrieved pairs: another drawing of the subject, another view of the
    place. The quality of retrieval is not part of these figures.

    Args:
        model (`str` or `Path`): Folder of a [`VIMIPipeline`].
        world (`str` or `Path`): A folder written by `vimi emoji-world build`.
        out (`str` or `Path`): Folder for the files; made if missing.
        settings ([`HeldOutSettings`], *optional*): Sampler and sizes.
        device (`str`, *optional*, defaults to `"cpu"`): Where the model runs.
        report (`Callable`, *optional*): Called as `report(stage, done, total)`.

    Returns:
        `dict`: what `results.json` holds. The same settings on the same device and versions give the same figures.

    Raises:
        `FileNotFoundError`: If `model` or `world` is not such a folder.
        `ValueError`: If the world has too few held-out concepts or the pipeline makes other than square pixel videos.
    """
    model, out = Path(model), Path(out)
    if not (model / "model_index.json").is_file():
        raise FileNotFoundError(f"The folder {str(model)!r} holds no pipeline: it has no model_index.json.")
    index = WorldIndex.load(world)
    pipe = VIMIPipeline.from_pretrained(model, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "settings": {"split": SPLIT, **dataclasses.asdict(settings)},
        "world": {"version": index.version, "size": index.size},
        "weights_sha256": {
            path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(model.rglob("*.safetensors"))
        },
        "versions": {
            "vimi_diffusers": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
        },
        "device": torch.device(device).type,
        **HeldOutEvaluation(pipe, index, settings, report).run(out),
    }
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


def picture_name(task: str) -> str:
    """File name of a task's picture."""
    return f"held_out_{task.replace('-', '_')}.png"


def pipeline_inputs(samples: Sequence[Sample], images: Sequence[np.ndarray]) -> dict[str, Any]:
    """
    The arguments with which [`VIMIPipeline`] is called for samples of any tasks.

    Args:
        samples (`Sequence[Sample]`): Canonical samples; their instruction is the pipeline's own.
        images (`Sequence[np.ndarray]`): Each sample's images `(k, height, width, 3)`, in the order of its text.
    """
    inputs: dict[str, list] = {"prompt": [], "task": [], "images": [], "context": []}
    for sample, own in zip(samples, images):
        pictures = [Image.fromarray(image) for image in own]
        retrieved = sample.task == "text-to-video"
        texts = [reference.text for reference in sample.context]
        inputs["prompt"].append(sample.prompt)
        inputs["task"].append(sample.task)
        inputs["images"].append([] if retrieved else pictures)
        inputs["context"].append(list(zip(texts, pictures)) if retrieved else [])
    return inputs
