# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Entity words of captions, by spaCy or from a list of words that one has."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .plugins import Entity, EntityExtractor, Extraction


# Heads of phrases that name where something happens; by rule, as in paper section 7.1
PLACE_NOUNS = frozenset(
    """
    air airport alley apartment arena backdrop background backyard bar barn basement bathroom bay beach bedroom bridge
    building bush cafe canyon carpet castle cave church city classroom cliff cloud club coast corridor countryside
    court courtyard crossing dawn desert dock downtown dusk farm field floor forest garage garden gate grass grassland
    ground gym hall hallway harbor harbour highway hill hillside home hospital hotel house island jungle kitchen lab
    laboratory lake landscape lane lawn library lobby lot mall market meadow mountain mountainside museum night ocean
    office park path pasture pavement pier plain plaza pond pool porch prairie quay restaurant river riverbank road
    rock roof room runway sand savanna savannah scene school scenery sea seaside shop shore shoreline sidewalk sky snow
    space square stadium stage station store street studio sunrise sunset surface swamp terrace theater theatre town
    track trail tunnel underwater valley village wall water waterfall waterfront wood woodland workshop yard zoo
    """.split()
)
NUMBERS_OF_ONE = ("1", "one", "a", "an", "single")


class SpacyExtractor(EntityExtractor):
    """
    Noun phrases by a spaCy pipeline with a parser and a tagger. Articles, possessives and numerals are left out of
    them, pronouns left out altogether; a phrase whose head is one of [`PLACE_NOUNS`] is the background.

    Args:
        name (`str`, *optional*, defaults to `"en_core_web_sm"`): Package or folder of the pipeline.
        device, dtype, batch_size: As of [`Plugin`]; spaCy runs on the CPU.

    Raises:
        ImportError: If spaCy is not installed.
        OSError: If there is no such pipeline.
        ValueError: If the pipeline does not find noun phrases.
    """

    default_name = "en_core_web_sm"

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        super().__init__(name, device, dtype, batch_size)
        try:
            import spacy
        except ImportError as error:
            raise ImportError('Entities by spaCy need it: pip install "vimi_diffusers[instruct]".') from error
        try:
            self.pipeline = spacy.load(self.name)
        except OSError:
            raise OSError(
                f"There is no spaCy pipeline {self.name!r}: run `python -m spacy download en_core_web_sm`, or give "
                "the package or folder of one as --entities spacy=NAME."
            ) from None
        if not self.pipeline("A dog runs.").has_annotation("DEP"):
            raise ValueError(f"The spaCy pipeline {self.name!r} has no parser, which noun phrases need: give another.")

    def __call__(self, captions: Sequence[str]) -> list[Extraction]:
        docs = self.pipeline.pipe(captions, batch_size=self.batch_size)
        return [Extraction(tuple(_noun_phrases(doc))) for doc in docs]


def _noun_phrases(doc: Any) -> Iterator[Entity]:
    for chunk in doc.noun_chunks:
        if chunk.root.pos_ == "PRON":
            continue
        first, plural = chunk.start, "Plur" in chunk.root.morph.get("Number")
        while first < chunk.root.i and (
            doc[first].pos_ in ("DET", "NUM", "PRON", "PUNCT") or doc[first].dep_ in ("poss", "case")
        ):
            counted = doc[first].pos_ == "NUM" and doc[first].lower_ not in NUMBERS_OF_ONE
            plural, first = plural or counted, first + 1
        words = doc[first : chunk.root.i + 1]
        background = chunk.root.lemma_.lower() in PLACE_NOUNS
        yield Entity(words.text, words.start_char, background, plural)


class VocabularyExtractor(EntityExtractor):
    """
    The words of a list, wherever they stand in a caption as whole words, the longest where several fit. For data sets
    whose captions speak of known things: class labels, products, characters.

    Args:
        name (`str`):
            UTF-8 text file with a word or phrase on each line, without its article; a tab and `background` after it
            where it names a place.
        device, dtype, batch_size: As of [`Plugin`]; not used.

    Raises:
        ValueError: If no file is given, or a line of it cannot be used.
        OSError: If it cannot be read.
    """

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        super().__init__(name, device, dtype, batch_size)
        if self.name is None:
            raise ValueError("The vocabulary needs its file: --entities vocabulary=words.tsv.")
        self.is_background: dict[str, bool] = {}
        try:
            lines = Path(self.name).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name} is not UTF-8 text: {error}.") from None
        for number, line in enumerate(lines, 1):
            words, *rest = (part.strip() for part in line.split("\t"))
            if rest not in ([], [""], ["background"]):
                raise ValueError(f"{self.name}, line {number}: after the tab there may stand `background` alone.")
            if words:
                self.is_background[words.casefold()] = rest == ["background"]
        if not self.is_background:
            raise ValueError(f"{self.name} has no words: write one or a phrase on each line.")
        longest_first = sorted(self.is_background, key=len, reverse=True)
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)

    def __call__(self, captions: Sequence[str]) -> list[Extraction]:
        return [
            Extraction(
                tuple(
                    Entity(found[0], found.start(), self.is_background.get(found[0].casefold(), False))
                    for found in self.pattern.finditer(caption)
                )
            )
            for caption in captions
        ]
