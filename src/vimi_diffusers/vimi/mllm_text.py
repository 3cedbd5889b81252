# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From a laid out prompt to the text that a multimodal processor takes: marks around images, chat turns."""

from collections.abc import Sequence

import PIL.Image
from transformers import BatchFeature, ProcessorMixin


# Qwen-VL tells neighbouring images apart by marks around each, which its processor leaves to the caller.
IMAGE_MARKS = {"<|image_pad|>": ("<|vision_start|>", "<|vision_end|>")}


def format_mllm_text(processor: ProcessorMixin, text: str, chat: bool = False) -> str:
    """
    Finish a prompt for `processor`: each image placeholder with the marks that its model expects, the empty prompt
    with at least one token, and with `chat` the whole as a user's turn, the answer about to begin.

    Args:
        processor ([`~transformers.ProcessorMixin`]): Processor of the multimodal model.
        text (`str`): A prompt with `processor.image_token` where images stand, as [`format_prompt`] lays it out.
        chat (`bool`, *optional*, defaults to `False`): Whether to apply the processor's chat template.

    Raises:
        `ValueError`: with `chat`, if the processor has no chat template or its template drops the text.
    """
    before, after = IMAGE_MARKS.get(processor.image_token, ("", ""))
    text = text.replace(processor.image_token, before + processor.image_token + after)
    if not chat:
        # a tokenizer that adds no start gives the empty prompt no token at all
        if text or processor.tokenizer("")["input_ids"]:
            return text
        return processor.tokenizer.eos_token or processor.tokenizer.pad_token
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"{type(processor).__name__} has no chat template: set its `chat_template`, or use `crop_start=0`."
        )
    # As text, placeholders keep their places; several templates move image parts in front of all text.
    turn = {"role": "user", "content": [{"type": "text", "text": text}]}
    formatted = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    if text.strip() not in formatted:
        raise ValueError(f"The chat template of {type(processor).__name__} does not pass on the user's text as it is.")
    return formatted


def process_prompts(
    processor: ProcessorMixin, texts: Sequence[str], images: Sequence[list[PIL.Image.Image]], chat: bool = False
) -> BatchFeature:
    """What `processor` makes of laid out prompts with their images, padded on the right to the longest."""
    return processor(
        text=[format_mllm_text(processor, text, chat) for text in texts],
        images=images if any(images) else None,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )


def cut_prompt(
    processor: ProcessorMixin, text: str, images: list[PIL.Image.Image], max_length: int, chat: bool = False
) -> str | None:
    """
    The prompt without as many words at its end as it has over `max_length` tokens, its image placeholders kept; `None`
    if the images alone have more.
    """
    token = processor.image_token
    while (excess := process_prompts(processor, [text], [images], chat)["input_ids"].shape[1] - max_length) > 0:
        segments = text.split(token)
        last = max((number for number, segment in enumerate(segments) if segment), default=None)
        if last is None:
            return None
        encoded = processor.tokenizer(segments[last], add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        segments[last] = segments[last][: offsets[-excess][0]] if excess < len(offsets) else ""
        text = token.join(segments)
    return text


def chat_prefix_length(processor: ProcessorMixin) -> int:
    """
    Number of tokens in front of the user's text in the processor's chat template, system prompt included: the
    `crop_start` that leaves them out of C.

    Raises:
        `ValueError`: if the processor has no chat template, or its template drops the text.
    """
    user = "Generate"  # how the task instructions begin
    formatted = format_mllm_text(processor, user, chat=True)
    start = formatted.rindex(user)
    offsets = processor.tokenizer(formatted, return_offsets_mapping=True)["offset_mapping"]
    # the first token that reaches into the text; it stays even if it begins in front of it
    return next(index for index, (_, end) in enumerate(offsets) if end > start)
