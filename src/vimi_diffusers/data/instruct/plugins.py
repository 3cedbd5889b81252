# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The three exchangeable parts of subject extraction, and how a name becomes one of them.

A part is named as `NAME` or `NAME=ARGUMENT`: NAME is one of [`PLUGINS`] or `package.module:Class` for a class of one's
own, ARGUMENT what the class takes as its first argument, such as a model's name on the Hub or a local folder.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Entity:
    """
    Words of a caption that stand for something to be seen.

    Args:
        text (`str`): The words without article or quantifier, exactly as they stand in the caption.
        start (`int`): Where they begin in the caption, in characters.
        background (`bool`, *optional*, defaults to `False`): Whether they name the place and not a thing in it.
        plural (`bool`, *optional*, defaults to `False`): Whether they name several things.
    """

    text: str
    start: int
    background: bool = False
    plural: bool = False

    @property
    def end(self) -> int:
        """`int`: Where the words end in the caption, in characters."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Extraction:
    """
    What an extractor finds in a caption.

    Args:
        entities (`tuple[Entity]`, *optional*): The entities, in any order.
        dropped (`tuple[tuple[str, str]]`, *optional*):
            Words that it had to leave out, each with one of [`~data.instruct.subjects.ENTITY_REASONS`].
    """

    entities: tuple[Entity, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Detections:
    """
    Boxes of one phrase in one image.

    Args:
        boxes (`np.ndarray` of shape `(N, 4)`, *optional*): Left, top, right, bottom, in pixels.
        scores (`np.ndarray` of shape `(N,)`, *optional*): Between 0 and 1; in the same order, any order.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))


class Plugin(ABC):
    """
    What every part has.

    Args:
        name (`str`, *optional*): The argument after `=`; each class says what it means and what it is by default.
        device (`str`, *optional*, defaults to `"cpu"`): Where a model runs.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"float32"`): Of a model's weights.
        batch_size (`int`, *optional*, defaults to `8`): Inputs that a model gets at once.
    """

    default_name: str | None = None

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        self.name = name or self.default_name
        self.device, self.dtype, self.batch_size = device, dtype, batch_size

    def model_name(self) -> str:
        """
        `name`, of a model on the Hub or in a folder.

        Raises:
            FileNotFoundError: If it looks like a folder and is none.
        """
        path = Path(self.name)
        if (path.is_absolute() or self.name.startswith((".", "~")) or self.name.count("/") > 1) and not path.is_dir():
            raise FileNotFoundError(f"There is no model folder {self.name}.")
        return self.name

    @property
    def torch_dtype(self) -> Any:
        """`torch.dtype`: `dtype`, whether it is given as such or by its name."""
        import torch

        return getattr(torch, self.dtype) if isinstance(self.dtype, str) else self.dtype


class EntityExtractor(Plugin):
    """Captions to the words in them that stand for something to be seen."""

    @abstractmethod
    def __call__(self, captions: Sequence[str]) -> list[Extraction]:
        """
        Args:
            captions (`Sequence[str]`): Captions, wholly in words.

        Returns:
            `list[Extraction]`: one for each caption.
        """


class Detector(Plugin):
    """Images and phrases to boxes."""

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[dict[str, Detections]]:
        """
        Args:
            images (`Sequence[PIL.Image.Image]`):
                RGB images of any sizes. Each one's `info` has the `sample` that it is of, in the data set's own terms,
                and its `time` in seconds, for a detector that looks up what was found before.
            phrases (`Sequence[Sequence[str]]`): What to look for in each image, at least one phrase.

        Returns:
            `list[dict[str, Detections]]`: for each image, the boxes of each phrase; one not found may be left out.
        """


class Segmenter(Plugin):
    """Images and boxes to masks."""

    @abstractmethod
    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """
        Args:
            images (`Sequence[PIL.Image.Image]`): RGB images, as [`Detector`] gets them.
            boxes (`Sequence[np.ndarray]`): For each image an array `(N, 4)` with N at least 1.

        Returns:
            `list[np.ndarray]`: for each image a bool array `(N, height, width)`: what is in each box.
        """


_HERE = "vimi_diffusers.data.instruct"
KINDS = {"entities": EntityExtractor, "detector": Detector, "segmenter": Segmenter}
PLUGINS = {
    "entities": {
        "spacy": f"{_HERE}.entities:SpacyExtractor",
        "lm": f"{_HERE}.entities_lm:LanguageModelExtractor",
        "vocabulary": f"{_HERE}.entities:VocabularyExtractor",
    },
    "detector": {"grounding-dino": f"{_HERE}.models:GroundingDinoDetector"},
    "segmenter": {"sam": f"{_HERE}.models:SamSegmenter"},
}


def find_plugin(kind: str, spec: str) -> tuple[type[Plugin], str | None]:
    """
    The class that a name stands for; nothing is loaded yet.

    Args:
        kind (`str`): `"entities"`, `"detector"` or `"segmenter"`.
        spec (`str`): `NAME` or `NAME=ARGUMENT`, as above.

    Returns:
        `tuple[type, str | None]`: the class, and the argument for it.

    Raises:
        ValueError: If there is no such class, or it is not of this kind.
    """
    name, _, argument = spec.partition("=")
    path = PLUGINS[kind].get(name, name)
    module, colon, attribute = path.partition(":")
    known = ", ".join(PLUGINS[kind])
    if not colon:
        raise ValueError(f"Unknown {kind} {name!r}: choose one of {known}, or give your own as package.module:Class.")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"The {kind} {name!r} cannot be loaded: {error}.") from None
    base = KINDS[kind]
    if found is None:
        raise ValueError(f"The {kind} {name!r} cannot be loaded: {module} has no class {attribute!r}.")
    if not isinstance(found, type) or not issubclass(found, base):
        raise ValueError(f"The {kind} {name!r} is no subclass of {_HERE}.{base.__name__}: derive it from that class.")
    return found, argument or None


def load_plugin(
    kind: str, spec: str, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8
) -> EntityExtractor | Detector | Segmenter:
    """
    Makes the part that a name stands for; arguments as of [`find_plugin`] and [`Plugin`].

    Raises:
        ValueError: If there is no such class, or it is not of this kind.
        ImportError: If it needs a package that is not installed.
        OSError: If its model is not there.
    """
    found, argument = find_plugin(kind, spec)
    return found(argument, device=device, dtype=dtype, batch_size=batch_size)


@dataclass(frozen=True)
class PluginSettings:
    """
    Which parts extract subjects, named as above, or objects of one's own.

    Args:
        entities (`str` or [`EntityExtractor`], *optional*, defaults to `"spacy"`): Finds the words.
        detector (`str` or [`Detector`], *optional*, defaults to `"grounding-dino"`): Finds the boxes.
        segmenter (`str` or [`Segmenter`], *optional*, defaults to `"sam"`): Finds the masks.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where models run. With several processes `"cuda"` gives each the next GPU in turn.
        dtype (`str`, *optional*, defaults to `"float32"`): Of their weights.
        batch_size (`int`, *optional*, defaults to `8`): Clips that are worked on at once, images that a model gets.

    Raises:
        ValueError: If `dtype` or `batch_size` cannot be used.
    """

    entities: str | EntityExtractor = "spacy"
    detector: str | Detector = "grounding-dino"
    segmenter: str | Segmenter = "sam"
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 8

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` must be float32, bfloat16 or float16, got {self.dtype!r}.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")

    @property
    def kinds(self) -> dict[str, str | Plugin]:
        """`dict`: The three parts by kind."""
        return {kind: getattr(self, kind) for kind in ("entities", "detector", "segmenter")}

    def check(self) -> None:
        """
        Finds the classes, without loading any model.

        Raises:
            ValueError: If one is not there or not of its kind, or there is no such device.
        """
        import torch

        for kind, part in self.kinds.items():
            if isinstance(part, str):
                find_plugin(kind, part)
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"The device {self.device!r} cannot be used: {str(error).splitlines()[0]}") from None

    def load(self) -> list[Plugin]:
        """The parts, their models loaded."""
        options = {"device": self.device, "dtype": self.dtype, "batch_size": self.batch_size}
        return [
            load_plugin(kind, part, **options) if isinstance(part, str) else part for kind, part in self.kinds.items()
        ]

    def describe(self) -> dict[str, str]:
        """What a manifest says of them."""
        return {
            kind: part if isinstance(part, str) else f"{type(part).__module__}:{type(part).__qualname__}={part.name}"
            for kind, part in self.kinds.items()
        } | {"dtype": self.dtype, "batch_size": str(self.batch_size)}  # fmt: skip
