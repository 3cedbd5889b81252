# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Scores subject extraction on emoji world, where the truth is known: a subject's mask is the alpha of its drawing.

[`render_clips`] writes captioned videos with their masks; [`score_subjects`] compares what a
[`~vimi_diffusers.data.instruct.SubjectFinder`] finds in them. [`OracleExtractor`], [`OracleDetector`] and
[`OracleSegmenter`] know the truth, or the truth with noise: bounds for what a model can reach.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.decoding import probe
from ..data.instruct.crops import crop_background, fill_background
from ..data.instruct.plugins import Detections, Detector, Entity, EntityExtractor, Extraction, Segmenter
from ..data.instruct.samples import reference_frames
from ..data.instruct.subjects import SubjectFinder, box_iou
from ..data.readers import METADATA, open_source
from ..emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from ..emoji_world.samples import EmojiWorldDataset
from ..media import write_video


TRUTH = "truth.npz"
BATCH = 16


def render_clips(
    world: str | Path, folder: str | Path, num_clips: int, split: str = "train", seed: int = 0, size: int = 128
) -> Path:
    """
    Writes clips of emoji world as a data set of captioned videos, with the truth about them.

    Args:
        world (`str` or `Path`): A folder written by `vimi emoji-world build`.
        folder (`str` or `Path`): Folder to write: videos, `metadata.jsonl` and `truth.npz`.
        num_clips (`int`): How many.
        split (`str`, *optional*, defaults to `"train"`): Split of the world.
        seed (`int`, *optional*, defaults to `0`): Seed.
        size (`int`, *optional*, defaults to `128`): Side of the videos in pixels, even.

    Returns:
        `Path`: the folder.
    """
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    assets = EmojiWorldAssets.load(world)
    samples = EmojiWorldDataset(
        assets.index, split, {"text-to-video": 1.0}, seed=seed, length=num_clips, canonical=True, size=size
    )
    samples = [samples[number] for number in range(num_clips)]
    renderer = EmojiWorldRenderer(assets, size=size)
    batches = [
        RenderBatch.from_samples(samples[start : start + BATCH], assets.index) for start in range(0, num_clips, BATCH)
    ]
    rows = []
    for number, video in enumerate(video for batch in batches for video in renderer.videos(batch)):
        sample, name = samples[number], f"clips/{number:05d}.mp4"
        write_video(((video + 1) / 2).permute(1, 2, 3, 0).numpy(), folder / name, sample.video.fps)
        concept = assets.index.concepts[sample.concept]
        place = assets.index.places[sample.place].phrase.partition(" ")[2]
        words = {"subject": _noun(concept.phrase), "plural": concept.plural, "place": _noun(place)}
        rows.append({"video": name, "caption": sample.caption, **words})
    # white silhouettes before black: what is rendered then is alpha itself
    assets.sprites[:, :, :3] = assets.sprites[:, :, 3:]
    assets.panoramas.zero_()
    silhouettes = EmojiWorldRenderer(assets, size=size)
    masks = torch.cat([silhouettes.videos(batch)[:, 0] > 0 for batch in batches]).numpy()
    np.savez_compressed(folder / TRUTH, masks=np.packbits(masks, axis=-1), size=size)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / METADATA).write_text(text, encoding="utf-8")
    return folder


def _noun(phrase: str) -> str:
    article, _, noun = phrase.partition(" ")
    return noun if article in ("a", "an", "the") else phrase


class Truth:
    """
    What is known of the clips of [`render_clips`].

    Args:
        folder (`str` or `Path`): The folder.

    Raises:
        FileNotFoundError: If there is no truth in it.
    """

    def __init__(self, folder: str | Path | None):
        path = Path(folder or "") / TRUTH
        if folder is None or not path.is_file():
            raise FileNotFoundError(f"There is no {path}: write clips with `render_clips` and give their folder.")
        data = np.load(path)
        self.masks = np.unpackbits(data["masks"], axis=-1, count=int(data["size"])).astype(bool)
        lines = (Path(folder) / METADATA).read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.fps = probe(Path(folder) / self.rows[0]["video"]).fps

    def row(self, frame: Image.Image) -> dict[str, Any]:
        """Caption and words of the clip that a frame is of."""
        return self.rows[int(frame.info["sample"].rpartition(":")[2]) - 1]

    def mask(self, frame: Image.Image) -> np.ndarray:
        """The subject in a frame: `(height, width)`, bool."""
        number = int(frame.info["sample"].rpartition(":")[2]) - 1
        return self.masks[number, round(frame.info["time"] * self.fps)]


def mask_box(mask: np.ndarray) -> np.ndarray | None:
    """Left, top, right, bottom of a mask's pixels; `None` if it has none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float) if len(rows) else None


class OracleExtractor(EntityExtractor):
    """
    The true words of captions of emoji world.

    Args:
        name (`str`): Folder of [`render_clips`].
        device, dtype, batch_size: Not used.
    """

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        super().__init__(name, device, dtype, batch_size)
        self.rows = {row["caption"]: row for row in Truth(name).rows}

    def __call__(self, captions: Sequence[str]) -> list[Extraction]:
        return [Extraction(tuple(_entities(caption, self.rows[caption]))) for caption in captions]


def _entities(caption: str, row: dict[str, Any]) -> list[Entity]:
    found = []
    for name in ("subject", "place"):
        start = caption.lower().find(row[name].lower())
        text = caption[start : start + len(row[name])]
        found.append(Entity(text, start, name == "place", name == "subject" and row["plural"]))
    return found


class OracleDetector(Detector):
    """
    The true boxes of subjects of emoji world, each side moved at random by up to a share of the box.

    Args:
        name (`str`): Folder of [`render_clips`].
        device, dtype, batch_size: Not used.
        noise (`float`, *optional*, defaults to `0.0`): That share.
    """

    def __init__(
        self,
        name: str | None = None,
        device: str = "cpu",
        dtype: Any = "float32",
        batch_size: int = 8,
        noise: float = 0.0,
    ):
        super().__init__(name, device, dtype, batch_size)
        self.truth, self.noise, self.rng = Truth(name), noise, np.random.default_rng(0)

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[dict[str, Detections]]:
        results = []
        for image, asked in zip(images, phrases):
            box, words = mask_box(self.truth.mask(image)), self.truth.row(image)["subject"]
            found = [phrase for phrase in asked if phrase.lower() == words.lower()] if box is not None else []
            if found:
                shift = self.rng.uniform(-self.noise, self.noise, 4) * np.tile(box[2:] - box[:2], 2)
                box = (box + shift).clip(0, np.tile(image.size, 2))
            results.append({phrase: Detections(box[None], np.ones(1)) for phrase in found})
        return results


class OracleSegmenter(Segmenter):
    """
    The true masks of subjects of emoji world, moved by a share of the box.

    Args:
        name (`str`): Folder of [`render_clips`].
        device, dtype, batch_size: Not used.
        noise (`float`, *optional*, defaults to `0.0`): That share.
    """

    def __init__(
        self,
        name: str | None = None,
        device: str = "cpu",
        dtype: Any = "float32",
        batch_size: int = 8,
        noise: float = 0.0,
    ):
        super().__init__(name, device, dtype, batch_size)
        self.truth, self.noise, self.rng = Truth(name), noise, np.random.default_rng(0)

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        results = []
        for image, of_image in zip(images, boxes):
            mask = self.truth.mask(image)
            shifts = self.rng.uniform(-self.noise, self.noise, (len(of_image), 2))
            pixels = (shifts * (of_image[:, 2:] - of_image[:, :2])).round().astype(int)
            results.append(np.stack([np.roll(mask, (down, right), (0, 1)) for right, down in pixels]))
        return results


def score_subjects(finder: SubjectFinder, folder: str | Path) -> dict[str, Any]:
    """
    Compares what a finder finds in clips of emoji world with the truth.

    Args:
        finder ([`~vimi_diffusers.data.instruct.SubjectFinder`]): The finder.
        folder (`str` or `Path`): Folder of [`render_clips`].

    Returns:
        `dict`: `clips`; `found`, the share of them whose subject was kept; over the frames of those `box_iou` and
        `mask_iou`, means of intersection over union; `wrong`, kept entities that are no subject; `dropped`, words by
        reason; `crop_leak` and `fill_leak`, the share of pixels of background references that show the subject.
    """
    truth, source = Truth(folder), open_source(folder)
    records = [source.record(number) for number in range(len(source))]
    clips = [reference_frames(record, probe(record.video)) for record in records]
    ious: dict[str, list[float]] = {name: [] for name in ("box_iou", "mask_iou", "crop_leak", "fill_leak")}
    kept, wrong, dropped = 0, 0, Counter()
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        for clip, found in zip(part, finder(part)):
            dropped.update(reason for _, reason in found.dropped)
            wanted = truth.row(clip.frames[0])["subject"].lower()
            for subject in found.subjects:
                right = subject.entity.text.lower() == wanted
                kept, wrong = kept + right, wrong + (not right)
                for number, view in subject.views.items() if right else ():
                    mask = truth.mask(clip.frames[number])
                    box = mask_box(mask)
                    ious["box_iou"].append(0.0 if box is None else float(box_iou(view.box, box[None])[0]))
                    ious["mask_iou"].append(float((view.mask & mask).sum() / max((view.mask | mask).sum(), 1)))
            if found.subjects:
                _add_leaks(ious, [truth.mask(frame) for frame in clip.frames], found.occupied)
    means = {name: float(np.mean(values)) if values else None for name, values in ious.items()}
    return {"clips": len(clips), "found": kept / len(clips), "wrong": wrong, **means, "dropped": dict(dropped)}


def _add_leaks(leaks: dict[str, list[float]], masks: list[np.ndarray], occupied: list[np.ndarray]) -> None:
    """Cuts the background out of pictures of the truth: what is white in them shows the subject."""
    pictures = [Image.fromarray(np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 255) for mask in masks]
    crop = crop_background(pictures, occupied)
    if crop is not None:
        leaks["crop_leak"].append(float((np.asarray(crop) > 0).mean()))
    filled = fill_background(pictures, occupied)  # what is not filled stays as it is
    if filled is not None:
        leaks["fill_leak"].append(float((np.asarray(filled) == 255).mean()))
