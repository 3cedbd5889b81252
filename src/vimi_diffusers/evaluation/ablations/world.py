# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Emoji world under the options of a cell: K pairs of a real search, other instructions, pixels for the generator."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...emoji_world.captions import CaptionPlan, canonical_plan, paraphrased_plan
from ...emoji_world.recipes import Draws, Recipe, Reference, Sample, SampleDrawer
from ...emoji_world.samples import Collator, EmojiWorldDataset
from ...emoji_world.world_index import Concept, MemoryEntry, Place, WorldIndex
from ...prompting import DEFAULT_INSTRUCTIONS, instruction_key
from ...prompting.paraphrases import PARAPHRASES
from ...retrieval import BM25Index, BM25Retriever, DenseRetriever, HybridRetriever, Retriever, tokenize
from ...retrieval.encoder import Encoder
from ...retrieval.recipe import ENGLISH_STOP_WORDS, MOTION_STOP_WORDS
from ...training.data import TrainingData, render_batch
from ...training.loop import Trainer
from .options import HELD_OUT_WORDINGS, RIGHT, WorldOptions


SAMPLES_PER_TOKEN = 10  # that a new tokenizer is trained on: 20,000 for the usual vocabulary
CANDIDATES = 64  # of a search, before views that show the video itself are left out
MIN_TURN = 60  # degrees between the video's view and a retrieved one of its place, as in the world's own pairs


class AblationDrawer(SampleDrawer):
    """
    A [`SampleDrawer`] whose samples follow [`WorldOptions`]. Each shows the video that the world's own drawer
    gives it, whatever the options.

    Args:
        options ([`WorldOptions`]): How samples are shown.
        phrasing (`str`, *optional*): In evaluation, one of `PHRASINGS`.
        **settings: As [`SampleDrawer`] takes them.
    """

    def __init__(self, *args: Any, options: WorldOptions, phrasing: str | None = None, **settings: Any):
        super().__init__(*args, **settings)
        self.options, self.phrasing = options, phrasing
        self.searches: dict[str, _Search] = {}
        if options.retriever != RIGHT and options.pairs:
            views = [entry for entries in self.view_entries.values() for entry in entries]
            for kind, entries in (("subject", self.subject_entries), ("place", views)):
                self.searches[kind] = _Search(entries, options.retriever)

    # ------------------------------------------------------------------ what the drawer asks for
    def _coin_names(self, draws: Draws, shown: str, concept: Concept, place: Place) -> tuple[Concept, Place]:
        coined = super()._coin_names(draws, shown, concept, place)
        pairs = self.options.pairs
        # a made-up word needs the image that says what it means
        if pairs is None:
            return coined
        return (coined[0] if pairs >= 1 else concept, coined[1] if pairs >= 2 else place)

    def _draw_plan(self, draws: Draws, shown: str, recipe: Recipe, place: Place) -> CaptionPlan:
        if self.canonical and self.phrasing == "captions":
            return paraphrased_plan(draws, recipe.move, recipe.cam, place.place, place.phrase)
        if not self.canonical and self.options.captions == "canonical":
            return canonical_plan(draws, recipe.move, recipe.cam, place.phrase)
        return super()._draw_plan(draws, shown, recipe, place)

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
        pairs = self.options.pairs
        if task != "text-to-video" or pairs is None:
            return super()._draw_context(draws, task, shown, plan, images, concept, recipe, place)
        if shown == "text_only" or not pairs:
            return ()
        if self.options.retriever == RIGHT:
            right = (
                self._retrieved_subject(draws, concept, wrong=False),
                self._retrieved_place(draws, recipe, place, wrong=False),
            )
            return right[:pairs]
        return self._search(plan, pairs, concept, recipe, place)

    def _draw_instruction(self, draws: Draws, task: str, num_context: int) -> str:
        level = self.options.instructions
        if self.canonical:
            level = self.phrasing if self.phrasing in ("unseen", "tag", "long") else "plain"
        key = instruction_key(task, num_context)
        drawn = super()._draw_instruction(draws, task, num_context)  # the same number of draws for all levels
        return drawn if level == "world" else word_instruction(key, level, draws, self.options.num_paraphrases)

    # ------------------------------------------------------------------ search
    def _search(
        self, plan: CaptionPlan, pairs: int, concept: Concept, recipe: Recipe, place: Place
    ) -> tuple[Reference, ...]:
        """Subjects and places in turn, best first, for the caption with its true names, whatever the prompt says."""
        true_concept, true_place = self.index.concepts[concept.concept], self.index.places[place.place]
        query = plan.text(true_concept.phrase, true_concept.plural)
        if place.phrase != true_place.phrase:
            query = query.replace(place.phrase.split()[-1], " ".join(true_place.phrase.split()[2:]))
        subjects = self.searches["subject"].find(query)
        places = [
            entry
            for entry in self.searches["place"].find(query)
            if entry.concept != place.place or MIN_TURN <= (entry.yaw - recipe.yaw) % 360 <= 360 - MIN_TURN
        ]
        turns = chain.from_iterable(zip_longest(subjects[:pairs], places[:pairs]))
        found = [entry for entry in turns if entry is not None][:pairs]
        return tuple(self._reference(entry, concept, place) for entry in found)

    def _reference(self, entry: MemoryEntry, concept: Concept, place: Place) -> Reference:
        """A found pair; one of what the sample shows is called as the prompt calls it."""
        text, image = entry.text, f"memory/{entry.id}"
        if entry.kind == "place":
            return Reference("retrieved_place", image, place.text if entry.concept == place.place else text)
        if entry.concept == concept.concept and concept.phrase != self.index.concepts[entry.concept].phrase:
            text = concept.phrase.capitalize()
        return Reference("retrieved_subject", image, text)


class _Search:
    """A retriever over memory entries."""

    def __init__(self, entries: Sequence[MemoryEntry], kind: str):
        self.entries = list(entries)
        self.retriever = build_retriever(tuple(entry.text for entry in self.entries), kind)

    def find(self, query: str) -> list[MemoryEntry]:
        rows, _ = self.retriever.retrieve([query], min(CANDIDATES, len(self.entries)))
        return [self.entries[row] for row in rows[0] if row >= 0]


@lru_cache(maxsize=16)
def build_retriever(texts: tuple[str, ...], kind: str) -> Retriever:
    """One of `RETRIEVERS` that search, over texts. It runs on the CPU, as loader processes need."""
    if kind == "bm25":
        stop_words = (*ENGLISH_STOP_WORDS, *MOTION_STOP_WORDS)  # as the world's own memory
        return BM25Retriever(BM25Index.build([tokenize(text, stop_words) for text in texts]), stop_words)
    if kind == "dense":
        return DenseRetriever.build(texts, _encoder())
    return HybridRetriever([build_retriever(texts, "bm25"), build_retriever(texts, "dense")])


@lru_cache(maxsize=1)
def _encoder() -> Encoder:
    return Encoder(device="cpu")


def word_instruction(key: str, level: str, draws: Draws, num_paraphrases: int | None = None) -> str:
    """
    An instruction at a level of complexity.

    Args:
        key (`str`): Of [`instruction_key`].
        level (`str`): `"tag"`, `"plain"`, `"long"`, `"varied"` or `"unseen"`, see [`WorldOptions`].
        draws ([`Draws`]): Decides among wordings.
        num_paraphrases (`int`, *optional*): Of `"varied"`.
    """
    wordings = PARAPHRASES[key]
    if level == "tag":
        return f"{key.capitalize()}."
    if level == "long":
        return " ".join(wordings[:3])
    if level == "varied":
        return draws.choice(wordings[:-HELD_OUT_WORDINGS][:num_paraphrases])
    return draws.choice(wordings[-HELD_OUT_WORDINGS:]) if level == "unseen" else DEFAULT_INSTRUCTIONS[key]


class AblationDataset(EmojiWorldDataset):
    """An [`EmojiWorldDataset`] drawn by [`AblationDrawer`]."""

    def __init__(
        self,
        index: WorldIndex,
        split: str,
        task_weights: dict[str, float],
        options: WorldOptions,
        seed: int = 0,
        length: int = 1_000_000,
        canonical: bool = False,
        phrasing: str | None = None,
        **shape: int,
    ):
        super().__init__(index, split, task_weights, seed, length, canonical, **shape)
        self.drawer = AblationDrawer(
            index, split, task_weights, seed, canonical, options=options, phrasing=phrasing, **shape
        )


class AblationData(TrainingData):
    """
    Emoji world as training batches under [`WorldOptions`].

    Args:
        config ([`TrainingConfig`]): As [`TrainingData`] takes it.
        accelerator (`Accelerator`): Device and processes.
        options ([`WorldOptions`]): How samples are shown.
    """

    def __init__(self, config: Any, accelerator: Any, options: WorldOptions):
        super().__init__(config, accelerator)
        self.options = options

    def split(
        self, split: str, task_weights: dict[str, float], length: int, canonical: bool = False
    ) -> EmojiWorldDataset:
        options = self.options
        return AblationDataset(
            self.index, split, task_weights, options, self.config.seed, length, canonical, **self.shape
        )

    def texts(self) -> Iterator[str]:
        """Text for a new tokenizer: that of the world's own samples, so that all cells of a seed have the same one."""
        number = SAMPLES_PER_TOKEN * self.config.model.get("vocab_size", 2048)
        return islice(TrainingData(self.config, self.accelerator).texts(), number)

    def bind(self, processor: Any, transformer: Any, chat: bool = False) -> None:
        super().bind(processor, transformer, chat)
        self.pixels = transformer.config.reference_patch_size is not None

    def to_device(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return render_shown(batch, self.renderer, self.pixels)


def render_shown(batch: dict[str, Any], renderer: Any, pixels: bool) -> dict[str, torch.Tensor]:
    """
    [`render_batch`], and with `pixels` the reference images for the generator, at the video's size, as the pipeline
    gives them.
    """
    rendered = render_batch(batch, renderer)
    if pixels:
        valid = batch["reference_valid"].to(renderer.device)
        images = rendered["pixel_values"]
        if renderer.reference_size != renderer.size:
            images = F.interpolate(images, (renderer.size,) * 2, mode="bilinear", antialias=True)
        rendered["reference_images"] = images.unflatten(0, tuple(valid.shape))
        rendered["reference_mask"] = valid
    return rendered


class AblationTrainer(Trainer):
    """
    The package's trainer over emoji world under [`WorldOptions`]; over other data it is the same.

    Args:
        config ([`TrainingConfig`]): The run.
        options ([`WorldOptions`]): How samples are shown.
    """

    def __init__(self, config: Any, options: WorldOptions):
        self.options = options
        super().__init__(config)

    def make_data(self) -> Any:
        data = super().make_data()
        if isinstance(data, TrainingData):
            return AblationData(self.config, self.accelerator, self.options)
        return data


def held_out_samples(
    index: WorldIndex, task: str, number: int, options: WorldOptions, phrasing: str, seed: int, shape: dict[str, int]
) -> list[Sample]:
    """The first held-out samples of a task, in the world's order, as the options show them."""
    dataset = AblationDataset(
        index, "val_concept", {task: 1.0}, options, seed, number, canonical=True, phrasing=phrasing, **shape
    )
    return list(dataset)


def build_collator(processor: Any, index: WorldIndex, max_length: int, num_images: int) -> Collator:
    """What tokenises samples for a pipeline's text processor."""
    size = processor.image_processor.crop_size["height"]
    tokens = (size // processor.patch_size) ** 2
    return Collator(processor.tokenizer, index, processor.image_token_id, tokens, max_length, num_images)


def is_emoji_world(folder: str | Path | None) -> bool:
    """Whether a training folder is a built emoji world, as the trainer tells."""
    return bool(folder) and all((Path(folder) / name).is_file() for name in ("manifest.json", "concepts.jsonl"))
