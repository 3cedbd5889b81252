# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Boxes by Grounding DINO and masks by SAM or SAM 2, from transformers; none of them needs torchvision."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .plugins import Detections, Detector, Segmenter


PHRASES_PER_QUERY = 16  # the text encoder reads 256 tokens at most
LEAST_SCORE = 0.05  # boxes below are not even reported
DELIMITERS = str.maketrans(".?", "  ")  # end a phrase for the model


class GroundingDinoDetector(Detector):
    """
    Boxes by a Grounding DINO of transformers (`grounding-dino` or `mm-grounding-dino`). The score of a box for a
    phrase is the greatest of the phrase's tokens, so several phrases share one pass of the model.

    Args:
        name (`str`, *optional*, defaults to `"IDEA-Research/grounding-dino-tiny"`): Hub id or local folder.
        device, dtype, batch_size: As of [`Plugin`].

    Raises:
        OSError: If there is no such model.
    """

    default_name = "IDEA-Research/grounding-dino-tiny"

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        super().__init__(name, device, dtype, batch_size)
        from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

        name = self.model_name()
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.image_processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name, dtype=self.torch_dtype)
        self.model = model.eval().requires_grad_(False).to(device)

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[dict[str, Detections]]:
        queries = [
            (number, each[start : start + PHRASES_PER_QUERY])
            for number, each in enumerate(phrases)
            for start in range(0, len(each), PHRASES_PER_QUERY)
        ]
        found: list[dict[str, Detections]] = [{} for _ in images]
        for start in range(0, len(queries), self.batch_size):
            part = queries[start : start + self.batch_size]
            results = self._detect([images[number] for number, _ in part], [each for _, each in part])
            for (number, _), result in zip(part, results):
                found[number].update(result)
        return found

    @torch.no_grad()
    def _detect(self, images: list[Image.Image], phrases: list[Sequence[str]]) -> list[dict[str, Detections]]:
        texts, spans = zip(*map(_query, phrases))
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.model.config.max_text_len,
            return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        offsets = tokens.pop("offset_mapping").numpy()
        pixels = self.image_processor(images, return_tensors="pt")
        pixels["pixel_values"] = pixels["pixel_values"].to(self.torch_dtype)
        outputs = self.model(**tokens.to(self.device), **pixels.to(self.device))
        scores = outputs.logits.float().sigmoid().cpu().numpy()  # images, queries, tokens
        boxes = outputs.pred_boxes.float().cpu().numpy()
        corners = np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
        results = []
        for row, image in enumerate(images):
            size = np.array([image.width, image.height] * 2)
            pixel_boxes = (corners[row] * size).clip(0, size)
            result = {}
            for phrase, (first, last) in zip(phrases[row], spans[row]):
                begin, end = offsets[row].T
                of_phrase = np.flatnonzero((begin >= first) & (end <= last) & (end > begin))
                if of_phrase.size:
                    score = scores[row][:, of_phrase].max(-1)
                    keep = score >= LEAST_SCORE
                    result[phrase] = Detections(pixel_boxes[keep], score[keep])
            results.append(result)
        return results


def _query(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Phrases as the model reads them, "dog. park.", and where each stands in that."""
    text, spans = "", []
    for phrase in phrases:
        words = " ".join(phrase.lower().translate(DELIMITERS).split())
        spans.append((len(text), len(text) + len(words)))
        text += words + ". "
    return text.rstrip(), spans


class SamSegmenter(Segmenter):
    """
    Masks by a SAM or SAM 2 of transformers, told apart by the model's configuration. For a box prompt the model's
    single best mask is taken.

    Args:
        name (`str`, *optional*, defaults to `"facebook/sam-vit-base"`): Hub id or local folder.
        device, dtype, batch_size: As of [`Plugin`].

    Raises:
        OSError: If there is no such model.
        ValueError: If it is another kind of model.
    """

    default_name = "facebook/sam-vit-base"

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        super().__init__(name, device, dtype, batch_size)
        from transformers import AutoConfig, AutoModel
        from transformers.image_processing_base import ImageProcessingMixin

        kind = AutoConfig.from_pretrained(self.model_name()).model_type
        if kind not in ("sam", "sam2", "sam2_video"):  # the published SAM 2 says that it is of videos
            raise ValueError(f"{self.name} is a {kind!r} model: give a SAM or SAM 2.")
        self.keeps_aspect = kind == "sam"
        if kind == "sam2_video":
            from transformers import Sam2Model as AutoModel
        model = AutoModel.from_pretrained(self.name, dtype=self.torch_dtype)
        self.model = model.eval().requires_grad_(False).to(device)
        # transformers prepares images of SAM 2 with torchvision alone, so its few steps are taken here
        settings, _ = ImageProcessingMixin.get_image_processor_dict(self.name)
        side = settings["size"]
        self.side = side["longest_edge"] if self.keeps_aspect else side["height"]
        self.mean, self.std = (np.array(settings[key], np.float32) for key in ("image_mean", "image_std"))

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        masks: list[np.ndarray] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            masks += self._segment(images[part], boxes[part])
        return masks

    @torch.no_grad()
    def _segment(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        sizes = [self._inner_size(image) for image in images]
        pixels = np.stack([self._pixels(image, size) for image, size in zip(images, sizes)])
        most = max(map(len, boxes))
        prompts = np.stack(
            [
                # of fewer boxes the first is asked again, to fill the batch
                np.concatenate([each, each[:1].repeat(most - len(each), axis=0)])
                * (np.array(size * 2) / np.array(image.size * 2))
                for image, size, each in zip(images, sizes, boxes)
            ]
        )
        outputs = self.model(
            pixel_values=torch.from_numpy(pixels).to(self.device, self.torch_dtype),
            input_boxes=torch.from_numpy(prompts).to(self.device, self.torch_dtype),
            multimask_output=False,
        )
        masks = []
        for logits, image, (width, height), each in zip(outputs.pred_masks[:, :, 0].float(), images, sizes, boxes):
            logits = logits[None, : len(each)]
            if self.keeps_aspect:
                logits = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
                logits = logits[..., :height, :width]
            logits = F.interpolate(logits, image.size[::-1], mode="bilinear", align_corners=False)
            masks.append((logits[0] > 0).cpu().numpy())
        return masks

    def _inner_size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of the image on the model's square."""
        if not self.keeps_aspect:
            return self.side, self.side
        scale = self.side / max(image.size)
        return int(image.width * scale + 0.5), int(image.height * scale + 0.5)

    def _pixels(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        scaled = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float32)
        square = np.zeros((3, self.side, self.side), np.float32)
        square[:, : size[1], : size[0]] = ((scaled / 255 - self.mean) / self.std).transpose(2, 0, 1)
        return square
