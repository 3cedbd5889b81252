# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Concepts of emoji world: which drawings show the same thing, and which things training never sees.

A concept is one emoji without skin tones. Near-identical concepts (a dog and a poodle, a man cook and a woman cook)
share a group key, and the train / held-out split is made between groups, so that a held-out concept has no sibling in
training.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


SPLIT_SALT = "emoji-world-4"
HELD_OUT_SHARE = 0.15
# Larger groups (smileys, flags, symbols) always train: one of them held out would empty a whole style of drawing.
LARGEST_HELD_OUT_GROUP = 20

_VARIATION_SELECTOR = "-fe0f"
_PERSON_CODE_POINTS = {"1f468", "1f469", "1f9d1"}
_GENDER_SIGNS = {"2640", "2642"}
_HAIR_CODE_POINTS = {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
_MOON_CODE_POINTS = {f"{code:x}" for code in range(0x1F311, 0x1F31D + 1)}
_SUN_OR_CLOUD = re.compile(r"^(sun behind|cloud with) ")

# Labels that belong together although their code points and subgroups do not say so.
_FAMILIES = {
    "dog": "dog, dog face, service dog, guide dog, poodle",
    "cat": "cat, cat face, black cat",
    "monkey": "monkey, monkey face",
    "tiger": "tiger, tiger face, leopard",
    "cattle": "cow, cow face, ox, water buffalo, bison",
    "mouse": "mouse, mouse face, rat, hamster",
    "rabbit": "rabbit, rabbit face",
    "horse": "horse, horse face, unicorn, zebra, donkey",
    "pig": "pig, pig face, pig nose, boar",
    "camel": "camel, two-hump camel, llama",
    "sheep": "ram, ewe, goat",
    "bear": "bear, polar bear, panda, koala",
    "fox": "fox, wolf, raccoon",
    "ape": "gorilla, orangutan",
    "elephant": "elephant, mammoth",
    "deer": "deer, moose",
    "chicken": "chicken, rooster, hatching chick, baby chick, front-facing baby chick, bird, black bird, phoenix",
    "waterfowl": "duck, swan, goose, dodo",
    "dragon": "dragon, dragon face",
    "dino": "sauropod, T-Rex",
    "whale": "whale, spouting whale",
    "fish": "fish, tropical fish, blowfish, shark, dolphin",
    "crustacean": "crab, lobster, shrimp",
    "squid": "squid, octopus, jellyfish",
    "beetle": "beetle, cockroach, lady beetle, ant, cricket, bug",
    "fly": "fly, mosquito, honeybee",
    "car": (
        "police car, oncoming police car, taxi, oncoming taxi, automobile, oncoming automobile, "
        "sport utility vehicle, racing car, pickup truck"
    ),
    "bus": "bus, oncoming bus, trolleybus, minibus, ambulance, fire engine, delivery truck, articulated lorry",
    "train": (
        "locomotive, railway car, high-speed train, bullet train, train, metro, light rail, station, tram, monorail, "
        "mountain railway, tram car"
    ),
    "cable": "suspension railway, mountain cableway, aerial tramway",
    "plane": "airplane, small airplane, airplane departure, airplane arrival",
    "ship": "ship, speedboat, motor boat, passenger ship, ferry, sailboat, canoe",
    "cycle": "bicycle, kick scooter, motor scooter, motorcycle, auto rickshaw",
    "wheelchair": "motorized wheelchair, manual wheelchair",
    "cloud": "cloud, cyclone, fog, wind face, tornado",
    "umbrella": "closed umbrella, umbrella, umbrella with rain drops, umbrella on ground",
    "snowman": "snowman, snowman without snow",
    "star": "star, glowing star, shooting star, comet",
    "sun": "sun, sun with face",
    "claus": "Santa Claus, Mrs. Claus, Mx Claus",
    "royal": "prince, princess, person with crown",
    "dance": "woman dancing, man dancing",
    "mother": "pregnant woman, pregnant man, pregnant person, breast-feeding",
    "biking": "person biking, person mountain biking",
    "frown": "person frowning, person pouting",
    "alien": "alien, alien monster, flying saucer",
    "oni": "ogre, goblin",
}
FAMILY_OF_LABEL = {label: family for family, labels in _FAMILIES.items() for label in labels.split(", ")}


@dataclass
class Concept:
    """One emoji without skin tone.

    Attributes:
        concept (`str`): Normalised hexcode, the key of every join (see [`normalise_hexcode`]).
        label (`str`): Unicode short name, e.g. `"fox"`.
        keywords (`tuple[str, ...]`): Further words for it, in lower case and without repeats.
        group (`str`), subgroup (`str`): Unicode group and subgroup, e.g. `"animals-nature"`, `"animal-mammal"`.
        key (`str`): Group key of the split (see [`split_key`]); filled in by [`assign_split`].
        split (`str`): `"train"` or `"held_out"`; filled in by [`assign_split`].
    """

    concept: str
    label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    key: str = ""
    split: str = "train"


def normalise_hexcode(hexcode: str) -> str:
    """Lower-case a hexcode and drop every variation selector, which the sources set differently.

    Args:
        hexcode (`str`): Code points joined by `-`, e.g. `"2764-FE0F"`.

    Returns:
        `str`: The join key, e.g. `"2764"`.
    """
    return hexcode.lower().replace(_VARIATION_SELECTOR, "")


def _key_by_subgroup(group: str, subgroup: str, label: str, first: str) -> str | None:
    if group in ("flags", "symbols"):
        return group
    if subgroup == "time":
        return "clock"
    if first in _MOON_CODE_POINTS:
        return "moon"
    if subgroup.startswith("face-") and subgroup != "face-costume":
        return "yellow-face"
    if subgroup in ("cat-face", "monkey-face"):
        return subgroup.removesuffix("-face")
    if subgroup in ("heart", "emotion"):
        return "heart"
    if subgroup.startswith("hand"):
        return "hands"
    if subgroup == "body-parts":
        return subgroup
    if subgroup == "family" or (subgroup == "person-symbol" and "family" in label):
        return "family"
    if subgroup == "person-symbol":
        return subgroup
    return None


def _key_of_person(points: list[str]) -> str:
    """Key of a person joined with an object, so that man, woman and person cook are one group."""
    # Points are person, joiner, object; two points have no joiner.
    thing = points[2] if len(points) > 2 else points[1]
    if thing in _HAIR_CODE_POINTS or thing in _GENDER_SIGNS:
        return "person"
    if thing == "1f37c":
        return "mother"
    if thing in ("1f9bc", "1f9bd"):
        return "wheelchair"
    return thing


def split_key(concept: str, label: str, group: str, subgroup: str, label_of_concept: dict[str, str]) -> str:
    """Group key of a concept: concepts with the same key are never on both sides of the split.

    Args:
        concept (`str`): Normalised hexcode.
        label (`str`), group (`str`), subgroup (`str`): Text fields of the concept.
        label_of_concept (`dict[str, str]`): Labels of all concepts, by which a gender or direction variant finds the
            family of the plain concept that it begins with.

    Returns:
        `str`: A family name, a subgroup or group name, or a code point.
    """
    points = concept.split("-")
    first = points[0]
    key = _key_by_subgroup(group, subgroup, label, first)
    if key is not None:
        return key
    if label in FAMILY_OF_LABEL:
        return FAMILY_OF_LABEL[label]
    if _SUN_OR_CLOUD.match(label):
        return "cloud"
    if first in _PERSON_CODE_POINTS and len(points) > 1:
        return _key_of_person(points)
    if subgroup == "person":
        return "person"
    if label_of_concept.get(first) in FAMILY_OF_LABEL:
        return FAMILY_OF_LABEL[label_of_concept[first]]
    by_code_point = subgroup.startswith(("animal-", "transport-")) or subgroup in ("sky-weather", "face-costume")
    if by_code_point or group == "people-body":
        return first
    return subgroup


def is_held_out(key: str, group_size: int) -> bool:
    """Whether the concepts of a group are kept out of training; a fixed hash of the key decides."""
    if group_size > LARGEST_HELD_OUT_GROUP:
        return False
    digest = hashlib.sha1(f"{SPLIT_SALT}:{key}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32 < HELD_OUT_SHARE


def assign_split(concepts: Iterable[Concept]) -> None:
    """Fill in `key` and `split` of all concepts, in place.

    Args:
        concepts (`Iterable[Concept]`): Every concept of the set; group sizes count all of them.
    """
    concepts = list(concepts)
    label_of_concept = {concept.concept: concept.label for concept in concepts}
    for concept in concepts:
        concept.key = split_key(concept.concept, concept.label, concept.group, concept.subgroup, label_of_concept)
    sizes = Counter(concept.key for concept in concepts)
    for concept in concepts:
        concept.split = "held_out" if is_held_out(concept.key, sizes[concept.key]) else "train"
