# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Noun phrases for concept labels: what captions, prompts and the memory's texts call a drawing.

Unicode short names are labels, not phrases ("man: red hair", "three o'clock", "fog"). The rules here make each a noun
phrase that can be the subject of a sentence ("a man with red hair", "a clock showing three o'clock", "fog") and say
whether it takes a plural verb.
"""

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class NounPhrase:
    """A noun phrase with its article.

    Attributes:
        text (`str`): The phrase as it stands inside a sentence, e.g. `"an hourglass"`.
        plural (`bool`): Whether the verb is bare ("crossed flags move") instead of in the third person.
    """

    text: str
    plural: bool = False


# Labels that are not nouns, or whose literal phrase would not say what the drawing shows.
_OVERRIDES = {
    "ZZZ": "the letters ZZZ",
    "bald": "a bald head",
    "bow and arrow": "a bow and arrow",
    "breast-feeding": "a breast-feeding woman",
    "building construction": "a building under construction",
    "camping": "a camping tent",
    "construction": "a construction barrier",
    "cooking": "an egg cooking in a pan",
    "couple with heart": "a couple with a heart",
    "dashing away": "a puff of dust dashing away",
    "dizzy": "a dizzy star",
    "dna": "a strand of dna",
    "foggy": "a foggy city",
    "globe showing Americas": "a globe showing the Americas",
    "high voltage": "a lightning bolt",
    "horse racing": "a horse racing jockey",
    "hourglass done": "an hourglass that has run out",
    "hourglass not done": "an hourglass that is still running",
    "hundred points": "a red number one hundred",
    "khanda": "a khanda symbol",
    "kiss": "a kissing couple",
    "light rail": "a light rail train",
    "locked": "a locked padlock",
    "locked with key": "a locked padlock with a key",
    "locked with pen": "a locked padlock with a pen",
    "nail polish": "a hand with nail polish",
    "om": "an om symbol",
    "leaf fluttering in wind": "a leaf fluttering in the wind",
    "palms up together": "two palms held up together",
    "performing arts": "a mask of the performing arts",
    "place of worship": "a place of worship symbol",
    "raised back of hand": "the raised back of a hand",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "selfie": "a hand taking a selfie",
    "skull and crossbones": "a skull and crossbones",
    "soap": "a bar of soap",
    "speaker high volume": "a speaker at high volume",
    "speaker low volume": "a speaker at low volume",
    "speaker medium volume": "a speaker at medium volume",
    "star-struck": "a star-struck face",
    "thread": "a spool of thread",
    "umbrella on ground": "an umbrella on the ground",
    "unlocked": "an unlocked padlock",
    "wedding": "a wedding chapel",
    "woman's clothes": "a set of woman's clothes",
    "yarn": "a ball of yarn",
    "yin yang": "a yin yang symbol",
}
_PLURAL_OVERRIDES = frozenset({"ZZZ", "palms up together"})

# Shown by a thing that the label does not name.
_THING_OF_LABEL = {
    "badminton": "racket",
    "bowling": "ball",
    "field hockey": "stick",
    "ice hockey": "stick",
    "lacrosse": "stick",
    "mate": "drink",
    "ping pong": "paddle",
    "tennis": "ball",
}

# Names, and nouns that are not counted: no article, singular verb.
_WITHOUT_ARTICLE = frozenset(
    {"Mrs. Claus", "Mx Claus", "Santa Claus", "Tokyo tower", "mount fuji"}
    | {"bacon", "baguette bread", "bread", "broccoli", "butter", "canned food", "cooked rice", "coral", "curry rice"}
    | {"fog", "garlic", "ice", "luggage", "meat on bone", "money with wings", "oden", "popcorn", "pouring liquid"}
    | {"curly hair", "red hair", "sake", "salt", "shaved ice", "spaghetti", "sushi", "white hair", "wood"}
)
# There is one of them.
_DEFINITE = re.compile(r"^(?:sun\b|milky way$|Statue of Liberty$|kaaba$)")

# A head noun in -ss, -us or -is is singular by rule; these are further singulars in -s.
_SINGULAR_HEADS = frozenset({"biceps", "rhinoceros"})
_PLURAL_HEADS = frozenset({"children", "feet", "men", "people", "skis", "teeth", "women"})
# "Man lifting weights" is singular although it ends in a plural.
_SINGULAR_FIRST_WORDS = frozenset({"face", "hand", "man", "person", "woman"})
_PREPOSITION = re.compile(r" (?:at|behind|for|from|in|of|on|over|under|with|without) ")

# Short labels leave articles out: "person in tuxedo", "cup with straw".
_VERBS_AND_PREPOSITIONS = "behind|bouncing|feeding|getting|in|on|raising|rowing|taking|tipping|wearing|with|without"
_COUNT_NOUNS = (
    "arrow|baby|ball|ballot|bath|boat|bone|cloud|crown|curl|decorative cover|diagonal mouth|face|garden|haircut|halo|"
    "hand|handle|head-bandage|headscarf|hearing aid|hole|large cloud|lotus position|lowered flag|manual wheelchair|"
    "massage|medical mask|monocle|motorized wheelchair|open mouth|peeking eye|plate|popping cork|rain cloud|"
    "raised eyebrow|raised flag|ribbon|skullcap|slash|small cloud|speech bubble|spoon|steamy room|straw|suit|tear|"
    "thermometer|turban|tuxedo|umbrella|veil|white cane|wry smile"
)
_ARTICLE_LEFT_OUT = re.compile(rf"\b({_VERBS_AND_PREPOSITIONS}) ({_COUNT_NOUNS})\b")

# Symbols are often named by a word for what they stand for.
_SYMBOL_NOUN = {
    "alphanum": "symbol",
    "av-symbol": "symbol",
    "currency": "sign",
    "keycap": "keycap",
    "math": "sign",
    "transport-sign": "sign",
    "warning": "sign",
    "zodiac": "zodiac sign",
}
_NAMED_SYMBOLS = frozenset({"copyright", "registered", "trade mark"})

_FLAGS_WITH_ARTICLE = re.compile(
    r"^(?:United |European Union|Isle of|British (?:Indian|Virgin)|U\.S\.|Bahamas|Comoros|Gambia|Maldives|Netherlands|"
    r"Philippines|Seychelles|Caribbean Netherlands|French Southern|Palestinian)|(?<!Sandwich )(?:Islands|Republic)$"
)

_COUNTS = {2: "two", 3: "three"}
_PLURALS = {"adult": "adults", "boy": "boys", "child": "children", "girl": "girls", "man": "men", "woman": "women"}

_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|heir", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"uni|use|usu|ut[ei]|eu|ewe|one\b|once|ukulele", re.IGNORECASE)
# Read letter by letter: "an ATM sign", "an x-ray". NEW and UP are read as words.
_INITIALISM = re.compile(r"(?!NEW|UP)[A-Z]{1,3}\b|[a-zA-Z]-[a-z]")
_LETTERS_WITH_VOWEL_SOUND = "AEFHILMNORSX"


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun, by sound: "a unicorn", "a ewe", "an hourglass", "an x-ray"."""
    if _INITIALISM.match(noun):
        vowel = noun[0].upper() in _LETTERS_WITH_VOWEL_SOUND
    else:
        vowel = bool(_VOWEL_SOUND.match(noun)) and not _CONSONANT_SOUND.match(noun)
    return f"{'an' if vowel else 'a'} {noun}"


def _enumerate(nouns: list[str]) -> str:
    """Join counted nouns: `["man", "woman", "boy", "boy"]` becomes "a man, a woman and two boys"."""
    parts = [
        with_article(noun) if count == 1 else f"{_COUNTS[count]} {_PLURALS[noun]}"
        for noun, count in Counter(nouns).items()
    ]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _phrase_with_colon(label: str) -> NounPhrase:
    """Phrase of a label of the form "kind: detail"."""
    kind, detail = label.split(": ", 1)
    if kind == "flag":
        the = "the " if _FLAGS_WITH_ARTICLE.search(detail) else ""
        return NounPhrase(f"the flag of {the}{detail.replace('&', 'and')}")
    if kind == "keycap":
        return NounPhrase(f"a keycap with {detail}")
    if kind == "family":
        return NounPhrase(f"a family of {_enumerate(detail.split(', '))}")
    if kind == "kiss":
        return NounPhrase(f"a kissing couple of {_enumerate(detail.split(', '))}")
    if kind == "couple with heart":
        return NounPhrase(f"a couple of {_enumerate(detail.split(', '))} with a heart")
    if detail == "facing right":
        return NounPhrase(with_article(f"right-facing {_ARTICLE_LEFT_OUT.sub(_insert_article, kind)}"))
    if detail == "bald":
        return NounPhrase(f"a bald {kind}")
    if detail == "beard":
        return NounPhrase(f"a {kind} with a beard")
    return NounPhrase(f"a {kind} with {detail}")


def _insert_article(match: re.Match) -> str:
    return f"{match[1]} {with_article(match[2])}"


def _is_plural(label: str) -> bool:
    """Whether the head of a label, the last word before the first preposition, is plural."""
    first = label.split(" ", 1)[0]
    if first in _SINGULAR_FIRST_WORDS:
        return False
    head = _PREPOSITION.split(label, maxsplit=1)[0].rsplit(" ", 1)[-1]
    if first in _PLURAL_HEADS or head in _PLURAL_HEADS:
        return True
    return head.endswith("s") and not head.endswith(("ss", "us", "is")) and head not in _SINGULAR_HEADS


def _phrase_of_symbol(label: str, subgroup: str) -> NounPhrase | None:
    """Phrase of a symbol whose label lacks a noun; `None` if the label will do."""
    noun = "symbol" if label in _NAMED_SYMBOLS else _SYMBOL_NOUN.get(subgroup)
    if noun is None or re.search(r"\b(?:button|sign|symbol)\b", label):
        return None
    return NounPhrase(with_article(f"{label} {noun}"))


def noun_phrase(label: str, group: str, subgroup: str) -> NounPhrase:
    """Noun phrase of a concept.

    Args:
        label (`str`): Unicode short name, e.g. `"man: red hair"`.
        group (`str`), subgroup (`str`): Unicode group and subgroup of the concept.

    Returns:
        [`NounPhrase`]: The phrase with its article, and its number.
    """
    label = label.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    label = label.replace("\N{LEFT DOUBLE QUOTATION MARK}", '"').replace("\N{RIGHT DOUBLE QUOTATION MARK}", '"')
    if label in _OVERRIDES:
        return NounPhrase(_OVERRIDES[label], plural=label in _PLURAL_OVERRIDES)
    if ": " in label:
        return _phrase_with_colon(label)
    if subgroup == "time" and re.search(r"o'clock$|-thirty$", label):
        return NounPhrase(f"a clock showing {label}")
    if group == "symbols" and (phrase := _phrase_of_symbol(label, subgroup)):
        return phrase
    if label in _THING_OF_LABEL:
        return NounPhrase(with_article(f"{label} {_THING_OF_LABEL[label]}"))

    text = _ARTICLE_LEFT_OUT.sub(_insert_article, label).replace("index pointing", "index finger pointing")
    if label in _WITHOUT_ARTICLE:
        return NounPhrase(text)
    if _DEFINITE.match(label):
        return NounPhrase(f"the {text}")
    pair = re.match(r"([^ ]+) and ([^ ]+)(.*)", text)
    if pair:
        return NounPhrase(f"{with_article(pair[1])} and {with_article(pair[2])}{pair[3]}", plural=True)
    if _is_plural(label):
        return NounPhrase(text, plural=True)
    return NounPhrase(with_article(text))
