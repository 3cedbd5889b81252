# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a memory indexes and how it ranks: the words of a text, and the recipe."""

import math
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from itertools import filterfalse

from bm25s.stopwords import STOPWORDS_EN


# One-letter words count ("an X"), so a possessive must not leave its "s" behind as a word of its own.
_WORD = re.compile(r"\w+")
_POSSESSIVE = re.compile(r"['\u2019]s\b")
# bm25s also stops "no" and "not", which tell pairs apart ("a person gesturing no").
ENGLISH_STOP_WORDS = tuple(word for word in STOPWORDS_EN if word not in ("no", "not"))
# What captions of moving subjects say about subject and camera: true of every video, so no evidence for any pair.
MOTION_STOP_WORDS = tuple(
    "while camera pans pan panning video moves move moving stays stay staying place rises rise rising comes come "
    "coming closer grows grow growing larger smaller circle bounces bounce bouncing left right away up down through "
    "across over".split()
)
# What stands before a place in a sentence: prepositions, verbs like them, and the comma of "a fox, a grassy park".
PLACE_CUES = tuple(
    "in inside into on onto at to towards from out over above under below by near beside behind along across through "
    "around past among crosses crossing ,".split()
)
# `str.translate` and `str.split` find an ASCII text's words several times as fast as `_WORD`; a test holds them equal.
_ASCII_WORDS = "".join(chr(code).lower() if _WORD.match(chr(code)) else " " for code in range(128))
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+")


def tokenize(text: str, stop_words: Collection[str] = ()) -> list[str]:
    """
    The words of a text as BM25 counts them: Unicode-normalised, lower case, without possessive "'s" and stop words.

    Args:
        text (`str`):
            Any text. Characters that belong to no word (punctuation, emoji) separate words.
        stop_words (`Collection[str]`, *optional*):
            Words to leave out, in lower case.

    Returns:
        `list[str]`: the words in order, repeated ones included; empty if there are none.
    """
    if text.isascii():
        if "'" in text:
            text = _POSSESSIVE.sub("", text.lower())
        words = text.translate(_ASCII_WORDS).split()
    else:
        text = unicodedata.normalize("NFKC", text).lower()
        words = _WORD.findall(_POSSESSIVE.sub("", text))
    return list(filterfalse(stop_words.__contains__, words)) if stop_words else words


def check_parameters(k1: float, b: float) -> None:
    """
    Raises:
        `ValueError`: if BM25 cannot be computed with these parameters.
    """
    if not 0 <= k1 < math.inf or not 0 <= b <= 1:
        raise ValueError(f"BM25 needs k1 >= 0 and 0 <= b <= 1, not k1={k1}, b={b}.")


@dataclass(frozen=True)
class BM25Field:
    """
    One indexed text of a pair.

    Args:
        name (`str`):
            `"text"`, or the name of a metadata value that is a string or a list of strings.
        weight (`float`, *optional*, defaults to `1.0`):
            Factor of this field's BM25 score in a pair's score.
    """

    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class RetrievalRecipe:
    """
    What a memory indexes and how it ranks. It is saved with the memory.

    Args:
        fields (`tuple[BM25Field]`, *optional*, defaults to the text alone):
            The indexed texts. Each has its own index: in one common index the words of the lesser field would drown
            those of the better one.
        kinds (`tuple[str]`, *optional*, defaults to `()`):
            Kinds of pairs that are searched apart, in the order in which their pairs are returned, which is the order
            in which a sentence names them (subject, then place). Empty: all pairs are one kind. The search runs from
            the last kind to the first, and takes the words of the best match of a kind out of the prompt before it
            goes on to the kind before.
        group_by (`str`, *optional*):
            Metadata value that names what a pair shows; of the pairs with the same value at most one is returned.
        cues (`tuple[str]`, *optional*, defaults to `()`):
            Words or signs that come before what a prompt names for the later kinds ("in" a park). Those kinds are
            searched only in what follows the first of them, so that "a black cat" does not find a place that is black.
            Empty: they are searched in the whole prompt.
        stop_words (`tuple[str]`, *optional*, defaults to English function words):
            Words that are not searched.
        k1 (`float`, *optional*, defaults to `1.5`):
            Saturation of repeated words.
        b (`float`, *optional*, defaults to `0.75`):
            Weight of the text's length.

    Raises:
        `ValueError`: if a value cannot be used.
    """

    fields: tuple[BM25Field, ...] = (BM25Field("text"),)
    kinds: tuple[str, ...] = ()
    group_by: str | None = None
    cues: tuple[str, ...] = field(default=(), repr=False)
    stop_words: tuple[str, ...] = field(default=ENGLISH_STOP_WORDS, repr=False)
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("A retrieval recipe needs at least one field: pass fields=(BM25Field('text'),).")
        for names, what in (([one.name for one in self.fields], "field"), (self.kinds, "kind")):
            for name in names:
                if not _SAFE_NAME.fullmatch(name):
                    raise ValueError(f"{name!r} cannot name a {what}: use letters, digits, '_' and '-'.")
            if len(set(names)) < len(names):
                raise ValueError(f"A {what} is named twice in {tuple(names)}: name each once.")
        for one in self.fields:
            if not one.weight > 0:
                raise ValueError(f"The weight of field {one.name!r} is {one.weight}: it must be positive.")
        check_parameters(self.k1, self.b)

    @classmethod
    def for_kinds(cls, kinds: Iterable[str | None]) -> "RetrievalRecipe":
        """
        The default recipe for the kinds that a memory's pairs have: subjects and places are searched apart, with their
        keywords as a light second field and one pair for each concept; anything else is one plain BM25 index.
        """
        kinds = set(kinds)
        if not kinds or not kinds <= {"subject", "place"}:
            return cls()
        return cls(
            fields=(BM25Field("text"), BM25Field("keywords", 0.2)),
            kinds=("subject", "place"),
            group_by="concept",
            cues=PLACE_CUES,
            stop_words=ENGLISH_STOP_WORDS + MOTION_STOP_WORDS,
        )

    def split_at_cue(self, prompt: str) -> tuple[str, str]:
        """A prompt before and after its first cue. All of it comes after if the recipe has no cues."""
        if not self.cues:
            return "", prompt
        cues = "|".join(rf"\b{re.escape(cue)}\b" if cue.isalnum() else re.escape(cue) for cue in self.cues)
        found = re.search(cues, prompt, re.IGNORECASE)
        return (prompt[: found.start()], prompt[found.end() :]) if found else (prompt, "")

    def to_dict(self) -> dict:
        """The recipe as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RetrievalRecipe":
        """The recipe that [`~RetrievalRecipe.to_dict`] wrote."""
        values = dict(values)
        return cls(
            fields=tuple(BM25Field(**one) for one in values.pop("fields")),
            kinds=tuple(values.pop("kinds")),
            stop_words=tuple(values.pop("stop_words")),
            cues=tuple(values.pop("cues")),
            **values,
        )
