# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the multimodal model reads in training: task, wording, context and dropout drawn, laid out and tokenised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from transformers import ProcessorMixin

from ..prompting import (
    DEFAULT_INSTRUCTIONS,
    MultimodalPrompt,
    format_prompt,
    instruction_key,
    resolve_tags,
)
from ..prompting.paraphrases import PARAPHRASES
from ..vimi.mllm_text import cut_prompt, format_mllm_text, process_prompts
from .decoding import read_image
from .schema import BadSample, VideoRecord


@dataclass(frozen=True)
class PromptSettings:
    """
    How prompts are drawn.

    Args:
        task_weights (`Mapping[str, float]`, *optional*):
            Share of each task among the samples that allow it; `None` gives each sample its default task.
        max_context (`int`, *optional*, defaults to `0`):
            K_max: text-to-video shows K of a record's retrieved pairs, K drawn evenly from 0 to K_max.
        condition_dropout (`float`, *optional*, defaults to `0.0`):
            Share of samples with an empty prompt: the unconditional branch of guidance.
        image_dropout (`float`, *optional*, defaults to `0.0`):
            Share of the others whose words alone are shown, as text-to-video: the words' branch of guidance.
        num_paraphrases (`int`, *optional*):
            How many of the instruction's wordings are drawn from, from the first; `None` takes all.
    """

    task_weights: Mapping[str, float] | None = field(default=None)
    max_context: int = 0
    condition_dropout: float = 0.0
    image_dropout: float = 0.0
    num_paraphrases: int | None = None

    def __post_init__(self):
        if self.task_weights is not None and not sum(self.task_weights.values()) > 0:
            raise ValueError(f"`task_weights` must hold a positive share, got {dict(self.task_weights)}.")
        if self.max_context < 0:
            raise ValueError(f"`max_context` must be at least 0, got {self.max_context}.")
        if self.num_paraphrases is not None and self.num_paraphrases < 1:
            raise ValueError(f"`num_paraphrases` must be at least 1, got {self.num_paraphrases}.")
        for name in ("condition_dropout", "image_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")

    def tasks(self, allowed: Sequence[str], default: str) -> dict[str, float]:
        """Weights of the tasks that a sample can have here; empty if none."""
        if self.task_weights is None:
            return {default: 1.0}
        return {task: weight for task in allowed if (weight := self.task_weights.get(task, 0.0)) > 0}


def draw_prompt(
    record: VideoRecord,
    is_image: bool,
    first_frame: Image.Image,
    settings: PromptSettings,
    rng: np.random.Generator,
    image_token: str = "<image>",
) -> MultimodalPrompt:
    """
    Draws the prompt of a training sample.

    Args:
        record ([`VideoRecord`]): The sample.
        is_image (`bool`): Whether its video is an image.
        first_frame (`PIL.Image.Image`): First frame of the clip, what prediction starts from.
        settings ([`PromptSettings`]): Task mix, context and dropout.
        rng (`np.random.Generator`): Decides.
        image_token (`str`, *optional*, defaults to `"<image>"`): Placeholder of one image for the processor.

    Raises:
        BadSample: If an image cannot be read or the text cannot be laid out.
    """
    weights = settings.tasks(record.tasks(is_image), record.default_task)
    task = str(rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values())))
    num_context = int(rng.integers(settings.max_context + 1))
    no_condition, no_images = rng.random(2) < (settings.condition_dropout, settings.image_dropout)
    wording = rng.random()
    if no_condition:
        return MultimodalPrompt("", [], task, record.words)
    if no_images:
        task, num_context = "text-to-video", 0
        record = _without_images(record)
    available = len(record.context) if task == "text-to-video" else 0
    num_context = min(num_context, available)
    shown = sorted(rng.choice(available, num_context, replace=False)) if num_context else []
    sentences = PARAPHRASES[instruction_key(task, num_context)][: settings.num_paraphrases]
    instruction = sentences[int(wording * len(sentences))]
    return lay_out(record, task, shown, first_frame, instruction, image_token)


def plain_prompt(
    record: VideoRecord,
    task: str,
    first_frame: Image.Image,
    max_context: int,
    images: bool = True,
    image_token: str = "<image>",
) -> MultimodalPrompt:
    """The prompt of a held-out sample: nothing drawn, the default instruction, the best `max_context` pairs."""
    if not images:
        task, max_context = "text-to-video", 0
        record = _without_images(record)
    shown = range(min(max_context, len(record.context))) if task == "text-to-video" else ()
    instruction = DEFAULT_INSTRUCTIONS[instruction_key(task, len(shown))]
    return lay_out(record, task, shown, first_frame, instruction, image_token)


def _without_images(record: VideoRecord) -> VideoRecord:
    return VideoRecord(record.video, record.words, key=record.key)


def lay_out(
    record: VideoRecord,
    task: str,
    shown: Sequence[int],
    first_frame: Image.Image,
    instruction: str,
    image_token: str = "<image>",
) -> MultimodalPrompt:
    """
    The text and images of a sample for a task.

    Args:
        record ([`VideoRecord`]): The sample; its own instruction goes before `instruction`.
        task (`str`): One that it allows.
        shown (`Sequence[int]`): Which retrieved pairs to show.
        first_frame (`PIL.Image.Image`): The image of prediction.
        instruction (`str`): Task instruction.
        image_token (`str`, *optional*, defaults to `"<image>"`): Placeholder of one image for the processor.

    Raises:
        BadSample: If an image cannot be read or the text cannot be laid out.
    """
    pairs = [record.context[number] for number in shown]
    images = [read_image(pair.image) for pair in pairs]
    text = record.words
    try:
        if task == "subject":
            references = [reference.image for reference in record.references]
            text, references = resolve_tags(record.prompt, references, image_token)
            decoded = {id(reference): read_image(reference) for reference in references}
            images += [decoded[id(reference)] for reference in references]
        elif task == "prediction":
            images.append(first_frame)
        text = format_prompt(task, text, [pair.text for pair in pairs], image_token, record.instruction or instruction)
    except BadSample:
        raise
    except ValueError as error:
        raise BadSample("bad_prompt", str(error)) from None
    return MultimodalPrompt(text, images, task, record.words)


class PromptEncoder:
    """
    Prompts to what the conditioner takes, through any processor that the pipeline takes.

    Args:
        processor (`ProcessorMixin`): The pipeline's `text_processor`.
        max_length (`int`): Tokens of each row, images included. Longer prompts lose words at their end, but no image.
        chat (`bool`, *optional*, defaults to `False`):
            Whether prompts go through the chat template, as the pipeline lays them out for a conditioner whose
            `crop_start` is over 0.

    Raises:
        ValueError: If the tokenizer cannot pad.
    """

    def __init__(self, processor: ProcessorMixin, max_length: int, chat: bool = False):
        if processor.tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no padding token: set `tokenizer.pad_token`.")
        self.processor, self.max_length, self.chat = processor, max_length, chat

    def __call__(self, prompts: Sequence[MultimodalPrompt], raw: bool = False) -> dict[str, Any]:
        """
        Args:
            prompts (`Sequence[MultimodalPrompt]`): The prompts of a batch.
            raw (`bool`, *optional*, defaults to `False`):
                Whether to give `texts`, cut to length, and `images` as they are: what a condition cache takes.

        Returns:
            `dict`: `input_ids` and `attention_mask` (int64, `(B, max_length)`), and the images, if there are any, as
            the processor returns them (`pixel_values`, ...).

        Raises:
            BadSample: If a prompt's images alone have more tokens than there is room for, its number as `key`; or
                whatever the processor raises.
        """
        texts, images = [prompt.text for prompt in prompts], [list(prompt.images) for prompt in prompts]
        inputs = self.process(texts, images)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        if max(lengths) > self.max_length:
            for row, length in enumerate(lengths):
                if length > self.max_length:
                    texts[row] = self.cut(texts[row], images[row], key=str(row))
            inputs = None if raw else self.process(texts, images)
        if raw:
            return {"texts": texts, "images": images}
        shape = inputs["input_ids"].shape
        missing = self.max_length - shape[1]
        fill = {"input_ids": self.processor.tokenizer.pad_token_id}
        return {
            name: F.pad(value, (0, missing), value=fill.get(name, 0)) if value.shape == shape else value
            for name, value in inputs.items()
        }

    def process(self, texts: Sequence[str], images: Sequence[list[Image.Image]]) -> dict[str, Any]:
        """What the processor makes of texts with their images, padded on the right to the longest."""
        return dict(process_prompts(self.processor, texts, images, self.chat))

    def whole_text(self, text: str) -> str:
        """The text with image marks and chat turns, as the processor gets it."""
        return format_mllm_text(self.processor, text, self.chat)

    def length(self, text: str, images: list[Image.Image]) -> int:
        """Tokens of one prompt."""
        return self.process([text], [images])["input_ids"].shape[1]

    def cut(self, text: str, images: list[Image.Image], key: str = "") -> str:
        """The text without as many words at its end as are too many, its image placeholders kept."""
        cut = cut_prompt(self.processor, text, images, self.max_length, self.chat)
        if cut is None:
            raise BadSample("bad_prompt", f"{len(images)} images alone take over {self.max_length} tokens.", key)
        return cut
