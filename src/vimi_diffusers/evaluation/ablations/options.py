# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a cell of a grid sets beside its training configuration: how emoji world is shown, and what is measured."""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...prompting import TASKS


RIGHT = "right"
RETRIEVERS = (RIGHT, "bm25", "dense", "hybrid")
INSTRUCTIONS = ("world", "tag", "plain", "varied", "long")
CAPTIONS = ("world", "canonical")
PHRASINGS = ("plain", "unseen", "tag", "long", "captions")
HELD_OUT_WORDINGS = 20  # of each instruction, from the end: no training sees them
MAX_RIGHT_PAIRS = 2  # one of the subject, one of the place

# Measures by name; each is "module:function" and imported where it is used.
MEASURES = {
    "held_out_loss": "vimi_diffusers.evaluation.ablations.measures:held_out_loss",
    "identification": "vimi_diffusers.evaluation.ablations.measures:identification",
    "grounding": "vimi_diffusers.evaluation.ablations.measures:grounding",
}


@dataclass(frozen=True)
class WorldOptions:
    """
    How samples of emoji world are shown, in training and evaluation alike; the section `data` of a grid.

    Args:
        pairs (`int`, *optional*):
            K, the retrieved image-text pairs before a text-to-video prompt; pairs of subjects and of places take
            turns. By default the world's own draw: both right pairs mostly, in training sometimes one or a wrong one.
        retriever (`str`, *optional*, defaults to `"right"`):
            Where the pairs come from: `"right"` always finds a drawing of the subject and a view of the place;
            `"bm25"`, `"dense"` and `"hybrid"` search the world's texts with the caption, and may find others; BM25 may
            find fewer than `pairs`, as it wants a common word. Needs `pairs`.
        instructions (`str`, *optional*, defaults to `"world"`):
            Instructions in training: `"world"` draws among 32 wordings, the default one most often; `"tag"` is the
            task's name alone, `"plain"` the default wording alone, `"varied"` draws evenly among the
            `num_paraphrases` first of all wordings but the held-out ones, `"long"` says the task in three sentences.
        num_paraphrases (`int`, *optional*): For `"varied"`, how many wordings; all by default.
        captions (`str`, *optional*, defaults to `"world"`):
            Captions in training: as people write (`"world"`), or in the few `"canonical"` wordings of evaluation.
    """

    pairs: int | None = None
    retriever: str = RIGHT
    instructions: str = "world"
    num_paraphrases: int | None = None
    captions: str = "world"

    def __post_init__(self):
        _check_choice("retriever", self.retriever, RETRIEVERS)
        _check_choice("instructions", self.instructions, INSTRUCTIONS)
        _check_choice("captions", self.captions, CAPTIONS)
        for name, least in (("pairs", 0), ("num_paraphrases", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
        if self.retriever == RIGHT and (self.pairs or 0) > MAX_RIGHT_PAIRS:
            raise ValueError(
                f"`pairs` {self.pairs} needs a retriever that searches: there are {MAX_RIGHT_PAIRS} right pairs, of "
                "subject and place."
            )
        if self.retriever != RIGHT and self.pairs is None:
            raise ValueError(f"`retriever` {self.retriever!r} needs `pairs`: the world's own draw does not search.")
        if self.num_paraphrases is not None and self.instructions != "varied":
            raise ValueError(f'`num_paraphrases` is for `instructions` "varied", not {self.instructions!r}.')

    @property
    def most_images(self) -> int:
        """Images that a prompt can show."""
        return max(self.pairs or 0, MAX_RIGHT_PAIRS)


@dataclass(frozen=True)
class EvaluationOptions:
    """
    What is measured of each cell; the section `evaluation` of a grid.

    Args:
        measures (`list[str]`, *optional*):
            Names of [`MEASURES`], or functions as `"package.module:function"`: they take a [`Trained`] and return
            figures by name.
        tasks (`list[str]`, *optional*): Tasks of the held-out loss; all by default, also those not trained on.
        phrasings (`list[str]`, *optional*):
            Wordings of the held-out prompts: `"plain"` (the default instruction, canonical captions), `"unseen"`
            (instructions held out from training), `"tag"`, `"long"`, `"captions"` (captions as people write).
        num_samples (`int`, *optional*, defaults to `256`): Samples of each held-out loss.
        batch_size (`int`, *optional*, defaults to `64`): Samples of its batches, over which noise is stratified.
        num_videos (`int`, *optional*, defaults to `32`): Generated videos of each set.
        num_inference_steps (`int`, *optional*, defaults to `16`): Their denoising steps.
        guidance_scale (`float`, *optional*, defaults to `3.0`): Their guidance, of words and images together.
        video_batch_size (`int`, *optional*, defaults to `8`): Videos that are generated together.
        seed (`int`, *optional*, defaults to `0`): Seed of samples and noise, the same for all cells.
    """

    measures: list[str] = field(default_factory=lambda: ["held_out_loss"])
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    phrasings: list[str] = field(default_factory=lambda: ["plain"])
    num_samples: int = 256
    batch_size: int = 64
    num_videos: int = 32
    num_inference_steps: int = 16
    guidance_scale: float = 3.0
    video_batch_size: int = 8
    seed: int = 0

    def __post_init__(self):
        for name, known in (("tasks", TASKS), ("phrasings", PHRASINGS), ("measures", None)):
            values = getattr(self, name)
            if not isinstance(values, list) or not values or len(set(values)) < len(values):
                raise ValueError(f"`{name}` must be a list of different names, at least one, got {values!r}.")
            for value in values:
                if known is None:
                    load_measure(value)
                else:
                    _check_choice(name, value, known)
        for name in ("num_samples", "batch_size", "num_videos", "num_inference_steps", "video_batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"`seed` must be a whole number of at least 0, got {self.seed!r}.")
        if isinstance(self.guidance_scale, bool) or not isinstance(self.guidance_scale, (int, float)):
            raise ValueError(f"`guidance_scale` must be a number, got {self.guidance_scale!r}.")


def load_measure(name: str) -> Callable[[Any], dict[str, float]]:
    """
    The function of a measure.

    Raises:
        ValueError: If there is none of this name.
    """
    path = MEASURES.get(name, name)
    module, _, function = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Unknown measure {name!r}: choose from {', '.join(MEASURES)}, or give package.module:function ({error})."
        ) from None
    if not callable(found):
        raise ValueError(f"The measure {name!r} is no function.")
    return found


def from_mapping(cls: type, values: dict[str, Any]) -> Any:
    """
    One of the classes above from a section of a grid.

    Raises:
        ValueError: For a key that it lacks, and for a wrong value.
    """
    known = [item.name for item in dataclasses.fields(cls)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"Unknown keys: {', '.join(unknown)}; known are {', '.join(known)}.")
    return cls(**values)


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
