# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Captions of emoji-world videos: who, what they do, where, and what the camera does.

`{Subject} {verb phrase} {place phrase}{camera}.`  Evaluation uses the canonical wording alone; training draws from
paraphrases, so that a prompt as people write it ("A sea turtle glides through a park") is in distribution.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Sequence, TypeVar


MOVES = ("still", "right", "left", "up", "down", "near", "far", "circle", "bounce")
IMAGE_PLACEHOLDER = "<image>"

# The first entry of each move is the canonical one. Every entry starts with the verb's base form.
VERBS: dict[str, tuple[str, ...]] = {
    "still": (
        "stay in place", "stay still", "stand still", "stand", "rest", "wait", "sit", "pose", "remain still",
        "stay where it is", "stand in one spot", "look around",
    ),
    "right": (
        "move to the right", "move from left to right", "move right", "go to the right", "walk to the right",
        "run to the right", "glide to the right", "slide to the right", "drift to the right", "float to the right",
        "fly to the right", "travel to the right", "head to the right", "walk from left to right",
        "run from left to right", "glide from left to right", "fly from left to right", "drift from left to right",
        "slide from left to right", "swim to the right", "roll to the right",
    ),
    "left": (
        "move to the left", "move from right to left", "move left", "go to the left", "walk to the left",
        "run to the left", "glide to the left", "slide to the left", "drift to the left", "float to the left",
        "fly to the left", "travel to the left", "head to the left", "walk from right to left",
        "run from right to left", "glide from right to left", "fly from right to left", "drift from right to left",
        "slide from right to left", "swim to the left", "roll to the left",
    ),
    "up": (
        "rise", "move up", "fly up", "go up", "float up", "ascend", "climb", "move upwards", "rise up", "take off",
        "lift off", "fly upwards",
    ),
    "down": (
        "fall", "move down", "drop", "go down", "float down", "descend", "sink", "move downwards", "fall down",
        "come down", "slide down", "land",
    ),
    "near": (
        "come closer", "grow larger", "approach", "move closer", "move towards the camera", "walk towards the camera",
        "come towards the camera", "get closer", "get bigger", "run towards the camera", "fly towards the camera",
    ),
    "far": (
        "move away", "grow smaller", "go away", "walk away", "move away from the camera", "get smaller", "recede",
        "run away", "fly away", "walk away from the camera", "move into the distance",
    ),
    "circle": (
        "move in a circle", "go around in a circle", "walk in a circle", "run in a circle", "fly in a circle",
        "move in circles", "run in circles", "fly in circles", "circle around", "go in circles",
    ),
    "bounce": (
        "bounce up and down", "bounce", "hop", "jump", "jump up and down", "hop up and down", "hop around",
        "jump around", "bounce around", "dance",
    ),
}  # fmt: skip
CANONICAL_VERBS: dict[str, tuple[str, ...]] = {
    "still": ("stay in place",),
    "right": ("move to the right", "move from left to right"),
    "left": ("move to the left", "move from right to left"),
    "up": ("rise", "move up"),
    "down": ("fall", "move down"),
    "near": ("come closer", "grow larger"),
    "far": ("move away", "grow smaller"),
    "circle": ("move in a circle",),
    "bounce": ("bounce up and down",),
}
# Motion without a stated direction: said of moves to the left and to the right alike.
GENERIC_VERBS = (
    "walk", "run", "glide", "move", "drift", "float", "slide", "travel", "fly", "stroll", "hurry", "wander", "roam",
    "march", "jog", "dash", "swim", "roll", "sail", "ride", "drive", "crawl", "go", "cruise", "pass", "move along",
    "go for a walk",
)  # fmt: skip
ADVERBS = ("slowly", "quickly", "gently", "happily", "steadily", "quietly")

CANONICAL_CAMERA = (" while the camera pans {side}", ", camera panning {side}")
CAMERA = CANONICAL_CAMERA + (
    " while the camera pans to the {side}",
    " as the camera pans {side}",
    ", the camera pans {side}",
    ", the camera moves {side}",
    " while the camera turns {side}",
    " with the camera panning {side}",
    ", camera pan {side}",
)
STATIC_CAMERA = (", static camera", " while the camera stays still", ", fixed camera", " with a static camera")

# Other names of a place: (preposition of rest, preposition of motion through it, noun phrase). The place's own phrase
# comes from the world's table and is always among the choices; a place without an entry here has that one alone.
PLACE_NAMES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "apartment": (("in", "through", "a sunlit room"), ("in", "through", "an empty room"), ("in", "across", "a room"),
                  ("in", "through", "an empty apartment"), ("in", "through", "an apartment")),
    "bridge": (("in", "through", "a footbridge"), ("in", "through", "a glass bridge"),
               ("on", "across", "a footbridge"), ("in", "along", "a glass corridor")),
    "city": (("on", "across", "a city square"), ("in", "through", "a grey city"), ("in", "through", "a city"),
             ("on", "across", "a grey square")),
    "dawn": (("in", "through", "a desert at dawn"), ("in", "across", "a rocky desert"), ("in", "across", "a desert")),
    "esplanade": (("in", "through", "a mall"), ("in", "through", "a shopping centre"),
                  ("in", "through", "a large mall")),
    "forest": (("in", "through", "a forest"), ("in", "through", "a wood"), ("in", "through", "pine woods"),
               ("among", "among", "pine trees")),
    "hall": (("in", "across", "a hall"), ("in", "through", "a large hall"), ("in", "across", "a dance hall")),
    "lab": (("in", "through", "a laboratory"), ("in", "through", "a lab"), ("in", "through", "an old lab")),
    "lobby": (("in", "through", "a lobby"), ("in", "through", "a bright hall"), ("in", "through", "a hotel lobby")),
    "night": (("on", "across", "a savanna"), ("in", "through", "a dark savanna"), ("in", "across", "a plain at night"),
              ("on", "across", "a grassland at night")),
    "park": (("in", "through", "a park"), ("in", "through", "a green park"), ("in", "across", "a sunny park"),
             ("on", "across", "the grass of a park")),
    "sky": (("over", "over", "the sea"), ("above", "above", "a calm sea"), ("over", "across", "the ocean"),
            ("over", "across", "a quiet sea")),
    "studio": (("in", "through", "a studio"), ("in", "across", "a photographer's studio"),
               ("in", "across", "a dark studio")),
    "sunrise": (("in", "through", "a misty meadow"), ("in", "across", "a meadow at sunrise"),
                ("in", "through", "a meadow"), ("in", "across", "a foggy field")),
    "sunset": (("on", "across", "a stone square"), ("on", "across", "an old square"),
               ("in", "through", "an old town square"), ("on", "across", "a square at sunset")),
    "venice": (("on", "along", "a quay"), ("by", "along", "the water at dusk"), ("on", "along", "a waterfront")),
    "warehouse": (("in", "through", "a warehouse"), ("in", "across", "a large warehouse"),
                  ("in", "through", "a storehouse")),
    "workshop": (("in", "through", "a workshop"), ("in", "through", "a factory"), ("in", "through", "a factory hall")),
}  # fmt: skip
PATHS = {"in": "through", "on": "across", "over": "over", "by": "along"}
IMAGE_PLACES = (
    ("in", "through", "a "), ("in", "through", ""), ("on", "across", ""), ("in", "across", "the "),
    ("on", "across", "a "), ("at", "through", "the "), ("over", "over", ""), ("in front of", "past", ""),
    ("inside", "through", "a "),
)  # fmt: skip

_DOUBLED = {"run", "hop", "drop", "sit", "get", "swim", "jog", "step", "spin"}
_VOWELS = "aeiou"
_T = TypeVar("_T")


class Draw(Protocol):
    """Where random choices come from: see [`recipes.Draws`]."""

    def chance(self, probability: float) -> bool: ...

    def choice(self, options: Sequence[_T]) -> _T: ...


@lru_cache(maxsize=None)
def inflect(phrase: str, form: str, plural: bool) -> str:
    """
    Inflects a verb phrase given in its base form.

    Args:
        phrase (`str`): The phrase; its first word is the verb, such as `"walk to the left"`.
        form (`str`): `"simple"` ("walks") or `"progressive"` ("is walking").
        plural (`bool`): Whether the subject is plural ("walk", "are walking").

    Returns:
        `str`: The inflected phrase.
    """
    verb, _, rest = phrase.partition(" ")
    if form == "progressive":
        if verb in _DOUBLED:
            stem = verb + verb[-1]
        elif verb.endswith("e"):
            stem = verb[:-1]
        else:
            stem = verb
        verb = f"{'are' if plural else 'is'} {stem}ing"
    elif form == "simple":
        if not plural:
            if verb.endswith(("s", "sh", "ch", "x", "o")):
                verb += "es"
            elif verb.endswith("y") and verb[-2] not in _VOWELS:
                verb = verb[:-1] + "ies"
            else:
                verb += "s"
    else:
        raise ValueError(f"`form` must be 'simple' or 'progressive', but it is {form!r}.")
    if plural:
        rest = rest.replace("where it is", "where they are")
    return f"{verb} {rest}" if rest else verb


def with_article(noun_phrase: str, article: str) -> str:
    """Swaps a leading "a" or "an" for `article`; a phrase without an article (a name, a plural) stays as it is."""
    first, _, rest = noun_phrase.partition(" ")
    return f"{article} {rest}" if article and first in ("a", "an") and rest else noun_phrase


@dataclass(frozen=True)
class CaptionPlan:
    """
    One drawn wording, from which both the caption in words and the prompt with images are made.

    Attributes:
        subject_article (`str`): `""` keeps the subject's own article, `"the"` replaces it.
        image_article (`str`): What stands before the subject's image: `"a "`, `"the "` or `""`.
        verb (`str`): The verb phrase in its base form; `""` names no action.
        form (`str`): `"simple"` or `"progressive"`.
        adverb (`str`): An adverb after the verb phrase, or `""`.
        place (`tuple[str, str]`, *optional*): Preposition and noun phrase; `None` names no place.
        image_place (`tuple[str, str]`): Preposition and article before the place's image.
        camera (`str`): The camera phrase with its leading separator, or `""`.
        place_first (`bool`): Whether the sentence starts with the place.
        capital (`bool`): Whether the sentence starts with a capital letter.
        period (`bool`): Whether it ends with a full stop.
    """

    subject_article: str
    image_article: str
    verb: str
    form: str
    adverb: str
    place: tuple[str, str] | None
    image_place: tuple[str, str]
    camera: str
    place_first: bool
    capital: bool
    period: bool

    def text(
        self,
        subject: str,
        plural: bool = False,
        subject_image: bool = False,
        place_image: bool = False,
    ) -> str:
        """
        Writes the sentence.

        Args:
            subject (`str`): The subject's noun phrase, such as `"a fox"`.
            plural (`bool`, *optional*, defaults to `False`): Whether that phrase is plural.
            subject_image (`bool`, *optional*, defaults to `False`): Puts `<image>` for the subject's words.
            place_image (`bool`, *optional*, defaults to `False`): Puts `<image>` for the place's words.

        Returns:
            `str`: The sentence. Image placeholders stand in the order of [`~CaptionPlan.image_order`].
        """
        if subject_image:
            who, plural = f"{self.image_article}{IMAGE_PLACEHOLDER}", False
        else:
            who = with_article(subject, self.subject_article)
        action = f" {inflect(self.verb, self.form, plural)}" if self.verb else ""
        if self.adverb:
            action += f" {self.adverb}"
        if place_image:
            where = f"{self.image_place[0]} {self.image_place[1]}{IMAGE_PLACEHOLDER}"
        else:
            where = " ".join(self.place) if self.place else ""
        if not where:
            sentence = who + action
        elif self.place_first:
            sentence = f"{where}, {who}{action}"
        else:
            sentence = f"{who}{action} {where}"
        if self.capital:
            sentence = sentence[0].upper() + sentence[1:]
        return f"{sentence}{self.camera}{'.' if self.period else ''}"

    def image_order(self, subject_image: bool, place_image: bool) -> tuple[str, ...]:
        """Which images the placeholders of [`~CaptionPlan.text`] stand for, in order: `"subject"` and `"place"`."""
        order = ("place", "subject") if self.place_first else ("subject", "place")
        shown = {"subject": subject_image, "place": place_image}
        return tuple(name for name in order if shown[name])


def canonical_plan(draw: Draw, move: str, cam: int, place_phrase: str) -> CaptionPlan:
    """
    Draws one of the few canonical wordings.

    Args:
        draw ([`recipes.Draws`]): The source of choices; two are taken.
        move (`str`): One of `MOVES`.
        cam (`int`): -1, 0 or 1: the camera pans left, stays, pans right.
        place_phrase (`str`): Preposition and noun phrase, such as `"in a grassy park"`.

    Returns:
        [`CaptionPlan`]: The wording.
    """
    verb = draw.choice(CANONICAL_VERBS[move])
    camera = draw.choice(CANONICAL_CAMERA).format(side="right" if cam > 0 else "left") if cam else ""
    preposition, _, noun = place_phrase.partition(" ")
    return CaptionPlan("", "a ", verb, "simple", "", (preposition, noun), ("in", "a "), camera, False, True, True)


def paraphrased_plan(
    draw: Draw, move: str, cam: int, place: str, place_phrase: str, name_place: bool = True
) -> CaptionPlan:
    """
    Draws a wording as people write it, for training.

    Args:
        draw ([`recipes.Draws`]): The source of choices. Order of the draws: articles, verb, adverb, place, camera,
            order of the sentence, capital letter, full stop.
        move (`str`): One of `MOVES`. A move to the left or right is often said without its direction.
        cam (`int`): -1, 0 or 1: the camera pans left, stays, pans right.
        place (`str`): Name of the place.
        place_phrase (`str`): The place's own phrase, such as `"in a grassy park"`.
        name_place (`bool`, *optional*, defaults to `True`): Whether the sentence names the place.

    Returns:
        [`CaptionPlan`]: The wording.
    """
    subject_article = "the" if draw.chance(0.15) else ""
    image_article = draw.choice(("a ", "a ", "a ", "the ", "")) if draw.chance(0.5) else "a "
    sideways = move in ("left", "right")
    generic = sideways and draw.chance(0.35)
    if name_place and draw.chance(0.04):
        verb = ""
    elif generic:
        verb = draw.choice(GENERIC_VERBS)
    else:
        verb = draw.choice(CANONICAL_VERBS[move] if draw.chance(0.4) else VERBS[move])
    form = "progressive" if draw.chance(0.3) else "simple"
    adverb = draw.choice(ADVERBS) if verb and draw.chance(0.06) else ""

    # Only a motion across the scene goes through a place; any other happens in it.
    through = sideways and bool(verb) and draw.chance(0.5)
    preposition, _, noun = place_phrase.partition(" ")
    if draw.chance(0.45):
        rest, path = preposition, PATHS.get(preposition, preposition)
    else:
        own = (preposition, PATHS.get(preposition, preposition), noun)
        rest, path, noun = draw.choice(PLACE_NAMES.get(place, (own,)))
    if draw.chance(0.1):
        noun = with_article(noun, "the")
    where = (path if through else rest, noun) if name_place else None
    rest, path, article = draw.choice(IMAGE_PLACES) if draw.chance(0.6) else IMAGE_PLACES[0]
    image_place = (path if through else rest, article)

    camera = ""
    if cam:
        camera = draw.choice(CAMERA).format(side="right" if cam > 0 else "left")
    elif draw.chance(0.08):
        camera = draw.choice(STATIC_CAMERA)
    place_first = not through and draw.chance(0.06)
    capital, period = draw.chance(0.9), draw.chance(0.7)
    return CaptionPlan(
        subject_article, image_article, verb, form, adverb, where, image_place, camera, place_first, capital, period
    )
