# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Multimodal prompts: tags bound to images, and the text layout that training and inference share."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from .instructions import DEFAULT_INSTRUCTIONS, check_task, instruction_key


Image = TypeVar("Image")

TAG_PATTERN = re.compile(r"<image(?:_([0-9]+))?>")
NAMED_TAG_PATTERN = re.compile(r"<([A-Za-z][A-Za-z0-9_-]*)>")


def has_tags(prompt: str) -> bool:
    """Whether a prompt holds an image tag, `<image_1>` or plain `<image>`. Half a tag is text."""
    return TAG_PATTERN.search(prompt) is not None


def tagged_indices(prompt: str, num_images: int) -> list[int]:
    """
    Which image each tag of a prompt stands for.

    Args:
        prompt (`str`):
            Text with numbered tags (`<image_1>`, `<image_2>`, in any order, each any number of times) or with as
            many plain `<image>` tags as there are images.
        num_images (`int`):
            Number of images given with the prompt.

    Returns:
        `list[int]`: zero-based image indices, one for each tag, in order of appearance.

    Raises:
        `ValueError`: if a tag has no image, or numbered and plain tags are mixed.
    """
    tags = list(TAG_PATTERN.finditer(prompt))
    numbers = [tag[1] for tag in tags]
    if None in numbers and any(numbers):
        numbered = next(tag[0] for tag in tags if tag[1])
        raise ValueError(f"The prompt mixes <image> with {numbered}: number every tag, as <image_1>, <image_2>, ...")
    if None in numbers:
        if len(tags) > num_images:
            raise ValueError(
                f"The prompt has {len(tags)} <image> tags for {num_images} image(s): give one image for each tag, or "
                "use numbered tags (<image_1>) to show an image twice."
            )
        return list(range(len(tags)))
    for tag in tags:
        if not 1 <= int(tag[1]) <= num_images:
            fix = "tags count from 1" if int(tag[1]) == 0 else f"pass {tag[1]} images or remove the tag"
            raise ValueError(f"Tag {tag[0]} has no image ({num_images} given): {fix}.")
    return [int(number) - 1 for number in numbers]


def bind_names(prompt: str, images: Mapping[str, Image | Sequence[Image]]) -> tuple[str, list[Image]]:
    """
    Turn named tags (`<dog>`) into numbered ones.

    Args:
        prompt (`str`):
            Text with `<name>` tags, each any number of times.
        images (`dict`):
            The image of each name, or a list of several views of one subject, which then stand side by side.

    Returns:
        `tuple[str, list]`: the prompt with `<image_1>`, `<image_2>`, ... and the images in the order of their numbers.

    Raises:
        `ValueError`: if a name is no name, a tag has no entry, an entry no tag, or a list of views is empty.
    """
    numbered, flat = {}, []
    for name, views in images.items():
        if not isinstance(name, str) or not NAMED_TAG_PATTERN.fullmatch(f"<{name}>"):
            raise ValueError(f"{name!r} cannot be a tag: use a letter, then letters, digits, _ or -.")
        views = list(views) if isinstance(views, (list, tuple)) else [views]
        if not views:
            raise ValueError(f"<{name}> has an empty list of images: give at least one, or leave the name out.")
        if f"<{name}>" not in prompt:
            raise ValueError(f"Image {name!r} has no tag in the prompt {prompt!r}: write <{name}>, or leave it out.")
        numbered[name] = "".join(f"<image_{len(flat) + number}>" for number in range(1, len(views) + 1))
        flat += views

    def number(tag: re.Match) -> str:
        if tag[1] not in numbered:
            raise ValueError(f"Tag {tag[0]} has no image; `images` has {', '.join(map(repr, numbered)) or 'none'}.")
        return numbered[tag[1]]

    return NAMED_TAG_PATTERN.sub(number, prompt), flat


def without_tags(prompt: str) -> str:
    """The words of a prompt alone: what is left of it when no image is shown."""
    return " ".join(TAG_PATTERN.sub(" ", prompt).split())


def check_unused_images(prompt: str, num_images: int) -> None:
    """Raise a `ValueError` naming the first of `num_images` images that no tag of `prompt` stands for."""
    used = tagged_indices(prompt, num_images)
    if used and "<image>" in prompt and len(used) < num_images:
        raise ValueError(
            f"The prompt {prompt!r} has {len(used)} <image> tag(s) for {num_images} images: write one tag for each "
            "image, or leave images out."
        )
    for index in range(num_images):
        if index not in used:
            raise ValueError(
                f"Image {index + 1} of {num_images} has no tag in the prompt {prompt!r}: write <image_{index + 1}> "
                "where it belongs, or leave the image out."
            )


def resolve_tags(
    prompt: str, images: Sequence[Image], image_token: str = "<image>", allow_unused: bool = False
) -> tuple[str, list[Image]]:
    """
    Bind the tags of a prompt to images.

    Args:
        prompt (`str`):
            Text with `<image_1>`, `<image_2>`, ... tags, or with plain `<image>` tags, one for each image.
        images (`Sequence`):
            The images in the order of their numbers. They may be of any type.
        image_token (`str`, *optional*, defaults to `"<image>"`):
            What replaces each tag: the placeholder that the text processor expands.
        allow_unused (`bool`, *optional*, defaults to `False`):
            Accept images that no tag stands for; they are left out. A batch whose prompts share their images needs it.

    Returns:
        `tuple[str, list]`: the prompt with `image_token` in place of each tag, and the images in order of appearance
        (an image appears as often as its tag).

    Raises:
        `ValueError`: if a tag has no image, an image has no tag, or numbered and plain tags are mixed.
    """
    images = list(images)
    indices = tagged_indices(prompt, len(images))
    if not allow_unused:
        check_unused_images(prompt, len(images))
    return TAG_PATTERN.sub(lambda _: image_token, prompt), [images[index] for index in indices]


def infer_task(prompt: str, num_images: int = 0) -> str:
    """
    The task of a prompt when the caller names none: `"subject"` with tags, else `"text-to-video"`.

    Raises:
        `ValueError`: if there are images but no tags, which could mean two things.
    """
    if has_tags(prompt):
        return "subject"
    if num_images:
        raise ValueError(
            f"{num_images} image(s) but no tag in the prompt {prompt!r}: write <image_1> where the image belongs, or "
            'pass task="prediction" to start the video from the image.'
        )
    return "text-to-video"


def check_prompt(task: str, prompt: str, num_images: int = 0, num_context: int = 0) -> None:
    """
    Check that a prompt, its images and its retrieved context fit a task.

    Args:
        task (`str`):
            `"text-to-video"`, `"subject"` or `"prediction"`.
        prompt (`str`):
            The prompt as the user wrote it, with tags.
        num_images (`int`, *optional*, defaults to `0`):
            Number of images given with the prompt.
        num_context (`int`, *optional*, defaults to `0`):
            Number of retrieved text-image pairs.

    Raises:
        `ValueError`: if the task is unknown or its arguments do not fit.
    """
    check_task(task)
    tag = TAG_PATTERN.search(prompt)
    if task != "text-to-video" and num_context:
        raise ValueError(f'Task "{task}" takes no retrieved context: drop `context` or use task="text-to-video".')
    if task == "text-to-video":
        if num_images:
            raise ValueError(
                f'Task "text-to-video" takes no images ({num_images} given): pass text-image pairs as `context`, or '
                'use task="subject" with a tag for each image.'
            )
        if tag:
            raise ValueError(f'Task "text-to-video" takes no image tags, the prompt has {tag[0]}: use task="subject".')
    elif task == "prediction":
        if num_images != 1:
            raise ValueError(f'Task "prediction" takes exactly one image, the first frame: {num_images} given.')
        if tag:
            raise ValueError(
                f'Task "prediction" takes no image tags, the prompt has {tag[0]}: remove it or use task="subject".'
            )
    else:
        if not num_images:
            raise ValueError(
                f"Tag {tag[0]} has no image (0 given): pass one image for each tag."
                if tag
                else 'Task "subject" needs at least one image with its tag (<image_1>) in the prompt: none given.'
            )
        check_unused_images(prompt, num_images)


def format_prompt(
    task: str,
    prompt: str,
    context_texts: Sequence[str] = (),
    image_token: str = "<image>",
    instruction: str | None = None,
) -> str:
    """
    Lay a prompt out as the multimodal model reads it (paper section 1.3): instruction, retrieved pairs, prompt.

    Args:
        task (`str`):
            `"text-to-video"`, `"subject"` or `"prediction"`.
        prompt (`str`):
            The prompt; for `"subject"` with `image_token` where images stand, as [`resolve_tags`] returns it.
        context_texts (`Sequence[str]`, *optional*):
            Captions of the retrieved pairs, best first (`"text-to-video"` alone). Each is followed by `image_token`.
        image_token (`str`, *optional*, defaults to `"<image>"`):
            Placeholder of one image in the text processor's language.
        instruction (`str`, *optional*):
            Task instruction. Defaults to the task's entry of [`DEFAULT_INSTRUCTIONS`].

    Returns:
        `str`: one line of text; the n-th `image_token` in it stands for the n-th image.

    Raises:
        `ValueError`: if the task is unknown, takes no context, or a text holds a stray `image_token`.
    """
    check_task(task)
    if context_texts and task != "text-to-video":
        raise ValueError(f'Task "{task}" takes no retrieved context: drop it or use task="text-to-video".')
    for text in (*context_texts, *([] if task == "subject" else [prompt])):
        if image_token in text:
            raise ValueError(f"The text {text!r} holds the image placeholder {image_token}: remove it from the text.")
    if instruction is None:
        instruction = DEFAULT_INSTRUCTIONS[instruction_key(task, len(context_texts))]
    parts = [instruction]
    for text in context_texts:
        parts += [text, image_token]
    parts.append(prompt)
    if task == "prediction":
        parts.append(image_token)
    return " ".join(part for part in parts if part)
