import pytest

from vimi_diffusers.emoji_world import concepts as concepts_module
from vimi_diffusers.emoji_world.concepts import (
    FAMILY_OF_LABEL,
    LARGEST_HELD_OUT_GROUP,
    Concept,
    assign_split,
    is_held_out,
    normalise_hexcode,
    split_key,
)


LABELS = {"1f6b6": "person walking", "1f6b4": "person biking", "1f9d1-200d-1f373": "cook", "1f93c": "people wrestling"}


@pytest.mark.parametrize(
    ("concept", "label", "group", "subgroup", "key"),
    [
        ("1f1e9-1f1ea", "flag: Germany", "flags", "country-flag", "flags"),
        ("267f", "wheelchair symbol", "symbols", "transport-sign", "symbols"),
        ("1f553", "four o'clock", "travel-places", "time", "clock"),
        ("1f31d", "full moon face", "travel-places", "sky-weather", "moon"),
        ("1f31e", "sun with face", "travel-places", "sky-weather", "sun"),
        ("1f600", "grinning face", "smileys-emotion", "face-smiling", "yellow-face"),
        ("1f479", "ogre", "smileys-emotion", "face-costume", "oni"),
        ("1f916", "robot", "smileys-emotion", "face-costume", "1f916"),
        ("1f638", "grinning cat", "smileys-emotion", "cat-face", "cat"),
        ("1f4af", "hundred points", "smileys-emotion", "emotion", "heart"),
        ("1f44b", "waving hand", "people-body", "hand-fingers-open", "hands"),
        ("1f9e0", "brain", "people-body", "body-parts", "body-parts"),
        ("1f46a", "family", "people-body", "person-symbol", "family"),
        ("1f463", "footprints", "people-body", "person-symbol", "person-symbol"),
        ("1f429", "poodle", "animals-nature", "animal-mammal", "dog"),
        ("1f325", "sun behind large cloud", "travel-places", "sky-weather", "cloud"),
        ("1f327", "cloud with rain", "travel-places", "sky-weather", "cloud"),
        ("1f469-200d-1f373", "woman cook", "people-body", "person-role", "1f373"),
        ("1f468-200d-1f9b0", "man: red hair", "people-body", "person", "person"),
        ("1f468-200d-1f37c", "man feeding baby", "people-body", "person-role", "mother"),
        ("1f9d1-200d-1f9bd", "person in manual wheelchair", "people-body", "person-activity", "wheelchair"),
        ("1f9d2", "child", "people-body", "person", "person"),
        ("1f6b4-200d-2640", "woman biking", "people-body", "person-sport", "biking"),
        ("1f6b6-200d-2642", "man walking", "people-body", "person-activity", "1f6b6"),
        ("1f994", "hedgehog", "animals-nature", "animal-mammal", "1f994"),
        ("1f347", "grapes", "food-drink", "food-fruit", "food-fruit"),
    ],
)
def test_split_key(concept, label, group, subgroup, key):
    assert split_key(concept, label, group, subgroup, LABELS) == key


def test_no_label_is_in_two_families():
    labels = [label for family in concepts_module._FAMILIES.values() for label in family.split(", ")]
    assert len(concepts_module._FAMILIES) == 47
    assert len(labels) == len(set(labels)) == len(FAMILY_OF_LABEL)


def test_normalise_hexcode_drops_every_variation_selector():
    assert normalise_hexcode("1F441-FE0F-200D-1F5E8-FE0F") == "1f441-200d-1f5e8"


def test_large_groups_always_train():
    assert is_held_out("dog", LARGEST_HELD_OUT_GROUP)
    assert not is_held_out("dog", LARGEST_HELD_OUT_GROUP + 1)


def test_about_the_share_of_keys_is_held_out():
    share = sum(is_held_out(f"key {number}", 1) for number in range(4000)) / 4000
    assert share == pytest.approx(concepts_module.HELD_OUT_SHARE, abs=0.02)


def test_assign_split_keeps_a_group_on_one_side():
    dogs = [
        Concept(code, label, (), "animals-nature", "animal-mammal")
        for code, label in {"1f415": "dog", "1f429": "poodle", "1f98a": "fox"}.items()
    ]
    assign_split(dogs)
    assert [(concept.key, concept.split) for concept in dogs] == [
        ("dog", "held_out"),
        ("dog", "held_out"),
        ("fox", "train"),
    ]
