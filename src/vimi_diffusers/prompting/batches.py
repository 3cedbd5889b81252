# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From the arguments of a pipeline call to what the multimodal model reads, one prompt at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .prompts import (
    bind_names,
    check_prompt,
    format_prompt,
    has_tags,
    infer_task,
    resolve_tags,
    tagged_indices,
    without_tags,
)


@dataclass
class MultimodalPrompt:
    """
    One prompt as the multimodal model reads it.

    Args:
        text (`str`):
            Instruction, retrieved captions and prompt, with the image placeholder wherever an image stands.
        images (`list`, *optional*):
            The images in the order of their placeholders: retrieved ones, then the user's. Of any type.
        task (`str`, *optional*):
            The task of the prompt; `None` for a bare text.
        words (`str`, *optional*):
            The user's prompt without its tags.
    """

    text: str
    images: list[Any] = field(default_factory=list)
    task: str | None = None
    words: str = ""


def _for_each_prompt(name: str, value: Any, num_prompts: int | None) -> list[list]:
    """Lists for each prompt from an argument that is one list for one prompt, or a list of lists for a batch."""
    if value is None:
        return [[] for _ in range(num_prompts or 1)]
    if num_prompts is None:
        return [list(value)]
    nested = [item is None or isinstance(item, (list, tuple)) and not _is_pair(item) for item in value]
    if not all(nested):
        if num_prompts == 1 and not any(nested):
            return [list(value)]
        raise ValueError(f"`{name}` must hold one list for each of the {num_prompts} prompts, as [[a, b], [], [c]].")
    if len(value) != num_prompts:
        raise ValueError(
            f"`{name}` holds {len(value)} lists for {num_prompts} prompts: give one list for each prompt."
        )
    return [list(item or ()) for item in value]


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _text_and_image(pair: Any) -> tuple[str, Any]:
    if _is_pair(pair):
        return pair
    if hasattr(pair, "text") and hasattr(pair, "image"):
        return pair.text, pair.image
    raise ValueError(f"`context` must hold retrieved pairs or (text, image) tuples, got {pair!r}.")


def _bind_all_names(prompts: list[str], images: Any, num_prompts: int | None) -> tuple[list[str], Any]:
    """Numbers for names where `images` is a dict, shared by all prompts, or a list of one for each prompt."""
    if isinstance(images, Mapping):
        shown = [{name for name in images if f"<{name}>" in text} for text in prompts]
        idle = set(images).difference(*shown)  # named by none: the first prompt says so
        images = [
            {name: image for name, image in images.items() if name in own or (name in idle and number == 0)}
            for number, own in enumerate(shown)
        ]
    elif not isinstance(images, (list, tuple)) or not any(isinstance(own, Mapping) for own in images):
        return prompts, images
    if not all(own is None or isinstance(own, Mapping) for own in images) or len(images) != len(prompts):
        raise ValueError(
            f"`images` must be one dict of named images, or a list of one for each of the {len(prompts)} prompts."
        )
    bound = [bind_names(text, own or {}) for text, own in zip(prompts, images)]
    numbered, lists = [text for text, _ in bound], [own for _, own in bound]
    return numbered, lists[0] if num_prompts is None else lists


def _check_types(prompt: Any, images: Any, task: Any, context: Any) -> None:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"`prompt` must be a string or a non-empty list of strings, got {prompt!r}.")
    for name, value, kinds in (("images", images, (list, tuple, Mapping)), ("context", context, (list, tuple))):
        if value is not None and not isinstance(value, kinds):
            raise ValueError(f"`{name}` must be a list, got {type(value).__name__}: put it in brackets.")
    if isinstance(task, (list, tuple)) and len(task) != len(prompts):
        raise ValueError(
            f"`task` holds {len(task)} names for {len(prompts)} prompts: give one for each, or one in all."
        )


def lay_out_prompts(
    prompt: str | Sequence[str],
    images: Sequence | None = None,
    task: str | Sequence[str | None] | None = None,
    context: Sequence | None = None,
    image_token: str = "<image>",
) -> list[MultimodalPrompt]:
    """
    Bind tags, decide tasks and lay out the text of one prompt or of a batch with a different number of images each.

    Every image needs a tag in its prompt (`"subject"`). Only in a batch, an image may go without one where another
    prompt has a tag for the same image object: prompts may share a list of references.

    Args:
        prompt (`str` or `list[str]`):
            The prompts as the user wrote them.
        images (`list` or `dict`, *optional*):
            The images of one prompt, or a list of lists for a batch. They are passed through and may be of any type.
            Or a dict for named tags (`<dog>`), shared by all prompts, or a list of one for each prompt; a name's
            entry may be a list of several views of one subject.
        task (`str` or `list[str]`, *optional*):
            Task of all prompts, or of each. Defaults to `"subject"` for prompts with tags, else `"text-to-video"`.
        context (`list`, *optional*):
            Retrieved pairs, best first: objects with `text` and `image`, or `(text, image)` tuples; a list of lists
            for a batch.
        image_token (`str`, *optional*, defaults to `"<image>"`):
            Placeholder of one image in the text processor's language.

    Returns:
        `list[MultimodalPrompt]`: one for each prompt.

    Raises:
        `ValueError`: if tags, images, context and task do not fit each other.
    """
    _check_types(prompt, images, task, context)
    num_prompts = None if isinstance(prompt, str) else len(prompt)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    prompts, images = _bind_all_names(prompts, images, num_prompts)
    all_images = _for_each_prompt("images", images, num_prompts)
    all_context = _for_each_prompt("context", context, num_prompts)
    tasks = [task] * len(prompts) if task is None or isinstance(task, str) else list(task)

    used = [tagged_indices(text, len(own)) if own else [] for text, own in zip(prompts, all_images)]
    tagged = {id(own[index]) for own, indices in zip(all_images, used) for index in indices}
    return [
        _lay_out(text, own, indices, name, pairs, image_token, tagged)
        for text, own, indices, name, pairs in zip(prompts, all_images, used, tasks, all_context)
    ]


def _lay_out(
    prompt: str,
    images: list,
    used: list[int],
    task: str | None,
    context: list,
    image_token: str,
    tagged: set[int],
) -> MultimodalPrompt:
    pairs = [_text_and_image(pair) for pair in context]
    unused = [image for index, image in enumerate(images) if index not in used]
    shared = task != "prediction" and bool(unused) and all(id(image) in tagged for image in unused)
    if shared and not has_tags(prompt):
        images = []
    if task is None:
        task = infer_task(prompt, len(images))
    if not (shared and task == "subject"):
        check_prompt(task, prompt, len(images), len(pairs))
    words = without_tags(prompt)
    if task == "subject":
        prompt, images = resolve_tags(prompt, images, image_token, allow_unused=shared)
    text = format_prompt(task, prompt, [text for text, _ in pairs], image_token)
    return MultimodalPrompt(text, [image for _, image in pairs] + images, task, words)
