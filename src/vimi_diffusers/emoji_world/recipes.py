# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Samples of emoji world: the schema, and how one is drawn.

A sample is words and numbers only; one JSON line of it fully determines the video, the reference images and the text.
It is a function of (world version, split, seed, index) and the drawer's settings, whatever process draws it.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from ..prompting import (
    DEFAULT_INSTRUCTIONS,
    TASKS,
    TRAINING_INSTRUCTIONS,
    format_prompt,
    instruction_key,
    without_tags,
)
from .captions import IMAGE_PLACEHOLDER, MOVES, CaptionPlan, canonical_plan, paraphrased_plan
from .world_index import CLIP_FRAMES, Concept, MemoryEntry, Place, WorldIndex


T = TypeVar("T")

LOOP_SECONDS = 3.0  # length of a subject clip's loop, and of every video
MAX_REFERENCES = 2

# split -> (split of concepts, split of places)
SPLITS = {
    "train": ("train", "train"),
    "val_seen": ("train", "train"),
    "val_concept": ("held_out", "train"),
    "val_place": ("train", "held_out"),
    "val_both": ("held_out", "held_out"),
}
# Drawings that differ from the animated rendering in outline and colour. Flat shares its outline and fluent3d both:
# they only serve training, as steps on the way from copying to translating a drawing.
RETRIEVED_STYLES = ("noto", "twemoji")
TRAINING_RETRIEVED_STYLES = RETRIEVED_STYLES + ("flat", "fluent3d")
# In training, a retrieved pair and its caption often share a made-up word for what they show. With the few hundred
# names of emoji world a model learns the names by heart and leaves the images aside; a new word says nothing.
COINED_SUBJECT, COINED_PLACE = 0.75, 0.4
ONSETS = tuple("b d f g k l m n p r s t v z bl dr fl gr kl pl sk sn tr".split())
SYLLABLES = tuple(onset + vowel for onset in ONSETS for vowel in "aeiou")
CODAS = ("", "n", "r", "x", "sk", "mp", "lt", "ff")
GROUPS_WITHOUT_STILLS = ("flags", "symbols")
# Moves to a side twice as often: most verbs of everyday prompts ("walks", "glides") name a motion across the scene.
MOVE_CHOICES = MOVES + ("left", "right")

# What a prompt shows, with probabilities in training. Evaluation always shows the last entry of its task.
# "unconditional" drops words and images, "text_only" and "words" the images alone: the branches of guidance.
CONTEXT_CHOICES: dict[str, tuple[tuple[str, float], ...]] = {
    "text-to-video": (
        ("unconditional", 0.10),
        ("text_only", 0.10),
        ("subject_pair", 0.03),
        ("place_pair", 0.03),
        ("wrong_subject", 0.02),
        ("wrong_place", 0.02),
        ("both", 0.70),
    ),
    "subject": (
        ("unconditional", 0.10),
        ("words", 0.05),
        ("place", 0.12),
        ("subject_anywhere", 0.10),
        ("subject", 0.15),
        ("both", 0.48),
    ),
    "prediction": (("unconditional", 0.10), ("words", 0.05), ("first_frame", 0.85)),
}


class Draws:
    """
    The random numbers of one sample.

    Only `random.Random.random` is used: Python guarantees its stream across versions, and no other method's.

    Args:
        key (`str`): Whatever identifies the sample; its SHA-256 is the seed.
    """

    __slots__ = ("random",)

    def __init__(self, key: str):
        self.random = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")).random

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def choice(self, options: Sequence[T]) -> T:
        """One of `options`, all equally likely."""
        return options[int(self.random() * len(options))]

    def word(self) -> str:
        """A made-up word of two or three syllables."""
        return "".join(self.choice(SYLLABLES) for _ in range(3 if self.chance(0.3) else 2)) + self.choice(CODAS)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high), rounded to four digits, so that JSON lines stay short."""
        return round(low + (high - low) * self.random(), 4)


@dataclass(frozen=True)
class Recipe:
    """
    How a video is composed; lengths in parts of the frame's side, angles in degrees.

    Attributes:
        kind (`str`): `"anim"`: the concept's clip; `"still"`: one drawing, moved by the trajectory alone.
        style (`str`): Style of the drawing.
        phase (`int`): First frame of the clip's loop.
        move (`str`): One of `captions.MOVES`.
        x (`float`), y (`float`): Centre of the subject's path.
        scale (`float`): Width of the subject's square.
        dist (`float`): Length of a straight path.
        cam (`int`): -1, 0, 1: the camera pans left, stays, pans right.
        yaw (`float`): Direction of view in the middle of the video.
        pan (`float`): Angle that a panning camera covers.
        fov (`float`): Field of view.
        pitch (`float`): Tilt of the camera; positive looks down.
    """

    kind: str
    style: str
    phase: int
    move: str
    x: float
    y: float
    scale: float
    dist: float
    cam: int
    yaw: float
    pan: float
    fov: float
    pitch: float


@dataclass(frozen=True)
class VideoSpec:
    """Shape and speed of a video, and its recipe."""

    num_frames: int
    fps: float
    height: int
    width: int
    recipe: Recipe


@dataclass(frozen=True)
class Reference:
    """
    One image that a prompt shows.

    Attributes:
        role (`str`): `"retrieved_subject"`, `"retrieved_place"`, `"subject"`, `"place"` or `"first_frame"`.
        image (`str`): `"memory/<id>"`, `"clips/<concept>@<frame>"`, `"places/<place>"` (a crop of the panorama) or
            `"frame/0"` (of the sample's own video).
        text (`str`, *optional*): The caption of a retrieved pair.
        rotation (`float`, *optional*), scale (`float`, *optional*), brightness (`float`, *optional*): Augmentation of
            a subject on white: degrees counter-clockwise, size, factor.
        yaw (`float`, *optional*), fov (`float`, *optional*), pitch (`float`, *optional*): The crop of a panorama.
    """

    role: str
    image: str
    text: str | None = None
    rotation: float | None = None
    scale: float | None = None
    brightness: float | None = None
    yaw: float | None = None
    fov: float | None = None
    pitch: float | None = None


@dataclass(frozen=True)
class Sample:
    """
    One sample; one JSON line.

    Attributes:
        id (`str`): `"<split>/<index>"`.
        split (`str`): One of `SPLITS`.
        task (`str`): One of `prompting.TASKS`.
        seed (`int`): Seed of the data set that drew it.
        instruction (`str`): The task instruction; `""` marks an unconditional sample, whose text is empty.
        prompt (`str`): The prompt as a user writes it, with `<image>` where it shows an image (subject task).
        caption (`str`): The same wholly in words.
        context (`tuple[Reference, ...]`): The images, in the order of their placeholders in [`~Sample.text`].
        concept (`str`), group (`str`), place (`str`): Subject, its split group, and place.
        video ([`VideoSpec`]): The video.
    """

    id: str
    split: str
    task: str
    seed: int
    instruction: str
    prompt: str
    caption: str
    context: tuple[Reference, ...]
    concept: str
    group: str
    place: str
    video: VideoSpec

    def text(self, image_token: str = IMAGE_PLACEHOLDER) -> str:
        """The whole text for the tokenizer: instruction, retrieved pairs, prompt; one `image_token` for each image."""
        if not self.instruction:
            return ""
        pairs = [reference.text for reference in self.context if reference.text is not None]
        prompt = self.prompt.replace(IMAGE_PLACEHOLDER, image_token)
        task = self.task if self.context else "text-to-video"
        return format_prompt(task, prompt, pairs, image_token, self.instruction)

    def to_json(self) -> str:
        """One line of JSON. Fields that are `None` are left out."""
        record = asdict(self)
        record["context"] = [{k: v for k, v in entry.items() if v is not None} for entry in record["context"]]
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Sample":
        """Reads a line written by [`~Sample.to_json`]."""
        record = json.loads(line)
        try:
            video = dict(record["video"])
            video["recipe"] = Recipe(**video["recipe"])
            record["context"] = tuple(Reference(**entry) for entry in record["context"])
            record["video"] = VideoSpec(**video)
            return cls(**record)
        except (KeyError, TypeError) as error:
            raise ValueError(f"Not an emoji-world sample ({error}): {line[:120]!r}") from error


def _pick(choices: Sequence[tuple[str, float]], number: float) -> str:
    for name, probability in choices:
        number -= probability
        if number < 0:
            return name
    return choices[-1][0]


def check_task_weights(task_weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Normalises a task mix; raises `ValueError` for an unknown task, a negative weight, or no positive one."""
    for task, weight in task_weights.items():
        if task not in TASKS:
            raise ValueError(f"Unknown task {task!r} in `task_weights`: choose from {', '.join(map(repr, TASKS))}.")
        if not weight >= 0:
            raise ValueError(f"The weight of task {task!r} is {weight!r}: give a number of at least 0.")
    total = sum(task_weights.values())
    if not total > 0:
        raise ValueError(f"`task_weights` is {dict(task_weights)!r}: at least one weight must be above 0.")
    return tuple((task, weight / total) for task, weight in task_weights.items() if weight)


class SampleDrawer:
    """
    Draws samples of one split.

    Order of the draws: task; kind, subject, style; phase, move, x, y, scale, dist; place, yaw, fov, pitch, cam, pan;
    what the prompt shows; made-up names; the wording; the images; the instruction. The draws up to `pan` are of fixed
    number: without stills, an index gives the same video for each task.

    Evaluation splits visit every concept once, in an order that depends on split and seed, before any twice.

    Args:
        index ([`WorldIndex`]): The world.
        split (`str`): One of `SPLITS`.
        task_weights (`Mapping[str, float]`): Task mix.
        seed (`int`, *optional*, defaults to `0`): Seed.
        canonical (`bool`, *optional*, defaults to `False`): Canonical wording and default instruction, every image
            shown, retrieved places from the memory: for evaluation.
        still_share (`float`, *optional*, defaults to `0.5`): Share of single drawings among the subjects of the
            subject and prediction tasks, in training. Text-to-video targets are always animated, in one style.
        num_frames (`int`, *optional*, defaults to `16`): Frames of a video.
        size (`int`, *optional*, defaults to `64`): Its height and width in pixels.
    """

    def __init__(
        self,
        index: WorldIndex,
        split: str,
        task_weights: Mapping[str, float],
        seed: int = 0,
        canonical: bool = False,
        still_share: float = 0.5,
        num_frames: int = CLIP_FRAMES,
        size: int = 64,
    ):
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}: choose from {', '.join(map(repr, SPLITS))}.")
        if not 0 <= still_share <= 1:
            raise ValueError(f"`still_share` is {still_share!r}: give a number from 0 to 1.")
        self.index, self.split, self.seed, self.canonical = index, split, seed, canonical
        self.still_share = still_share if split == "train" else 0.0
        self.num_frames, self.size = num_frames, size
        self.tasks = check_task_weights(task_weights)

        concept_split, place_split = SPLITS[split]
        concepts = [concept for concept in index.concepts.values() if concept.split == concept_split]
        self.clips = [c for c in concepts if c.clip and any(style in c.styles for style in RETRIEVED_STYLES)]
        drawable = [c for c in concepts if c.group not in GROUPS_WITHOUT_STILLS]
        self.stills = [(c, style) for c in drawable for style in c.styles] if self.still_share else []
        self.places = [place for place in index.places.values() if place.split == place_split]
        if not self.clips or not self.places:
            what = "concept with a clip" if not self.clips else "panorama"
            raise ValueError(f"Split {split!r} has no {what} in the emoji world in {index.root}.")

        # Retrieval sees train pairs alone in `train` and `val_seen`, and the whole memory elsewhere. Wrong pairs are
        # drawn from the same pairs.
        full = split not in ("train", "val_seen")
        entries = [entry for entry in index.memory.values() if full or entry.split == "train"]
        self.subject_entries = [e for e in entries if e.kind == "subject" and e.style in RETRIEVED_STYLES]
        self.view_entries: dict[str, list[MemoryEntry]] = {}
        for entry in entries:
            if entry.kind == "place" and entry.yaw is not None and entry.concept in index.places:
                self.view_entries.setdefault(entry.concept, []).append(entry)
        self.key = f"{index.version}:{split}:{seed}"
        self.order = list(range(len(self.clips)))
        if split != "train":
            random_number = Draws(self.key).random
            self.order.sort(key=[random_number() for _ in self.order].__getitem__)

    def draw(self, number: int) -> Sample:
        """Draws sample `number` (`int`, at least 0)."""
        draws = Draws(f"{self.key}:{number}")
        task = _pick(self.tasks, draws.random())
        concept, recipe, place = self._draw_video(draws, task, number)
        shown = _pick(CONTEXT_CHOICES[task], draws.random())
        if self.canonical:
            shown = CONTEXT_CHOICES[task][-1][0]
        elif shown == "place" and recipe.style != "fluent3d":
            shown = "both"  # words alone cannot say which drawing it is
        if task == "text-to-video" and not self.canonical:
            concept, place = self._coin_names(draws, shown, concept, place)
        plan = self._draw_plan(draws, shown, recipe, place)
        images = (shown in ("subject", "subject_anywhere", "words", "both"), shown in ("place", "words", "both"))
        images = images if task == "subject" else (False, False)
        caption = plan.text(concept.phrase, concept.plural)
        if shown == "unconditional":
            instruction = prompt = ""
            context: tuple[Reference, ...] = ()
        else:
            prompt = plan.text(concept.phrase, concept.plural, *images)
            context = ()
            if shown == "words":
                prompt = without_tags(prompt)
            else:
                context = self._draw_context(draws, task, shown, plan, images, concept, recipe, place)
            instruction = self._draw_instruction(draws, task if context else "text-to-video", len(context))
        fps = round(self.num_frames / LOOP_SECONDS, 3)
        return Sample(
            id=f"{self.split}/{number:08d}",
            split=self.split,
            task=task,
            seed=self.seed,
            instruction=instruction,
            prompt=prompt,
            caption=caption,
            context=context,
            concept=concept.concept,
            group=concept.key,
            place=place.place,
            video=VideoSpec(self.num_frames, fps, self.size, self.size, recipe),
        )

    def _draw_video(self, draws: Draws, task: str, number: int) -> tuple[Concept, Recipe, Place]:
        still = draws.chance(self.still_share) and task != "text-to-video"
        which = draws.random()
        if still:
            concept, style = self.stills[int(which * len(self.stills))]
        else:
            position = int(which * len(self.clips)) if self.split == "train" else number % len(self.clips)
            concept, style = self.clips[self.order[position]], "fluent3d"
        phase, move = int(draws.random() * CLIP_FRAMES), draws.choice(MOVE_CHOICES)
        x, y = draws.uniform(0.4, 0.6), draws.uniform(0.48, 0.64)
        scale, dist = draws.uniform(0.40, 0.62), draws.uniform(0.40, 0.60)
        place = draws.choice(self.places)
        yaw, fov, pitch = draws.uniform(0, 360), draws.uniform(65, 85), draws.uniform(-8, 8)
        cam, pan = draws.choice((-1, 0, 0, 1)), draws.uniform(25, 60)
        recipe = Recipe(
            kind="still" if still else "anim",
            style=style,
            phase=0 if still else phase,
            move=move,
            x=0.5 if move in ("left", "right") else x,
            y=0.5 if move in ("up", "down") else y,
            scale=scale,
            dist=dist,
            cam=cam,
            yaw=yaw,
            pan=pan,
            fov=fov,
            pitch=pitch,
        )
        return concept, recipe, place

    def _coin_names(self, draws: Draws, shown: str, concept: Concept, place: Place) -> tuple[Concept, Place]:
        """Gives what a right pair shows a made-up name, or not."""
        coin_subject, coin_place = draws.chance(COINED_SUBJECT), draws.chance(COINED_PLACE)
        if coin_subject and shown in ("both", "subject_pair", "wrong_place"):
            concept = replace(concept, phrase=f"a {draws.word()}", plural=False)
        if coin_place and shown in ("both", "place_pair", "wrong_subject"):
            noun = f"a {draws.word()}"
            place = replace(place, phrase=f"in {noun}", text=noun.capitalize())
        return concept, place

    def _draw_plan(self, draws: Draws, shown: str, recipe: Recipe, place: Place) -> CaptionPlan:
        if self.canonical:
            return canonical_plan(draws, recipe.move, recipe.cam, place.phrase)
        unnamed = draws.chance(0.5)
        name_place = shown != "subject_anywhere" and not (unnamed and shown == "subject_pair")
        named = place.phrase == self.index.places[place.place].phrase
        return paraphrased_plan(draws, recipe.move, recipe.cam, place.place if named else "", place.phrase, name_place)

    def _draw_instruction(self, draws: Draws, task: str, num_context: int) -> str:
        key = instruction_key(task, num_context)
        if self.canonical or draws.chance(0.4):
            return DEFAULT_INSTRUCTIONS[key]
        return draws.choice(TRAINING_INSTRUCTIONS[key])

    def _draw_context(
        self,
        draws: Draws,
        task: str,
        shown: str,
        plan: CaptionPlan,
        images: tuple[bool, bool],
        concept: Concept,
        recipe: Recipe,
        place: Place,
    ) -> tuple[Reference, ...]:
        if task == "prediction":
            return (Reference("first_frame", "frame/0"),)
        if task == "subject":
            of_role = {"subject": self._subject_image, "place": self._place_image}
            return tuple(of_role[role](draws, concept, recipe, place) for role in plan.image_order(*images))
        pairs = []
        if shown in ("both", "subject_pair", "wrong_subject", "wrong_place"):
            pairs.append(self._retrieved_subject(draws, concept, wrong=shown == "wrong_subject"))
        if shown in ("both", "place_pair", "wrong_subject", "wrong_place"):
            pairs.append(self._retrieved_place(draws, recipe, place, wrong=shown == "wrong_place"))
        return tuple(pairs)

    def _retrieved_subject(self, draws: Draws, concept: Concept, wrong: bool) -> Reference:
        """The same concept in another drawing, or another concept."""
        if wrong:
            entry = draws.choice(self.subject_entries)
            return Reference("retrieved_subject", f"memory/{entry.id}", entry.text)
        styles = RETRIEVED_STYLES if self.canonical else TRAINING_RETRIEVED_STYLES
        entry = self.index.memory[f"{draws.choice([s for s in styles if s in concept.styles])}/{concept.concept}"]
        coined = concept.phrase != self.index.concepts[concept.concept].phrase
        text = concept.phrase.capitalize() if coined else entry.text
        return Reference("retrieved_subject", f"memory/{entry.id}", text)

    def _retrieved_place(self, draws: Draws, recipe: Recipe, place: Place, wrong: bool) -> Reference:
        """A view at least 60 degrees away from the video's, from the memory or cropped afresh; or another place's."""
        if wrong:
            place = draws.choice(self.places)
        away = [
            entry
            for entry in self.view_entries.get(place.place, ())
            if 60 <= (entry.yaw - recipe.yaw) % 360 <= 300  # both sides
        ]
        fresh, offset = draws.chance(0.5), draws.uniform(60, 300)
        if self.canonical and not away:
            raise ValueError(f"The memory has no view of {place.place!r} that is 60 degrees from yaw {recipe.yaw}.")
        if away and (self.canonical or not fresh):
            entry = draws.choice(away)
            coined = place.text != self.index.places[place.place].text
            return Reference("retrieved_place", f"memory/{entry.id}", place.text if coined else entry.text)
        yaw, fov, pitch = round((recipe.yaw + offset) % 360, 4), draws.uniform(65, 85), draws.uniform(-8, 8)
        return Reference("retrieved_place", f"places/{place.place}", place.text, yaw=yaw, fov=fov, pitch=pitch)

    def _subject_image(self, draws: Draws, concept: Concept, recipe: Recipe, place: Place) -> Reference:
        """The video's own rendering of the subject on white: a still of it, or a frame of its clip."""
        from_clip, frame = draws.chance(0.5), int(draws.random() * CLIP_FRAMES)
        if recipe.kind == "still" or (not from_clip and "fluent3d" in concept.styles):
            image = f"memory/{recipe.style}/{concept.concept}"
        else:
            image = f"clips/{concept.concept}@{frame}"
        rotation, scale = draws.uniform(-15, 15), draws.uniform(0.7, 1.0)
        return Reference("subject", image, rotation=rotation, scale=scale, brightness=draws.uniform(0.9, 1.1))

    def _place_image(self, draws: Draws, concept: Concept, recipe: Recipe, place: Place) -> Reference:
        """The video's background without the subject, seen a little differently."""
        return Reference(
            "place",
            f"places/{place.place}",
            yaw=round((recipe.yaw + draws.uniform(-15, 15)) % 360, 4),
            fov=round(recipe.fov + draws.uniform(-8, 8), 4),
            pitch=round(recipe.pitch + draws.uniform(-4, 4), 4),
        )
