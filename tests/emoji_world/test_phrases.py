import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimi_diffusers.emoji_world.phrases import NounPhrase, noun_phrase, with_article


PEOPLE, ANIMALS, OBJECTS, SYMBOLS = "people-body", "animals-nature", "objects", "symbols"


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [
        ("fox", "a fox"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("euro banknote", "a euro banknote"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("oncoming bus", "an oncoming bus"),
        ("umbrella", "an umbrella"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("x-ray", "an x-ray"),
        ("t-shirt", "a t-shirt"),
        ("ATM sign", "an ATM sign"),
        ("UP! button", "an UP! button"),
        ("NEW button", "a NEW button"),
        ("Japanese castle", "a Japanese castle"),
    ],
)
def test_article_goes_by_sound(noun, phrase):
    assert with_article(noun) == phrase


@pytest.mark.parametrize(
    ("label", "group", "subgroup", "text", "plural"),
    [
        ("fox", ANIMALS, "animal-mammal", "a fox", False),
        ("paw prints", ANIMALS, "animal-mammal", "paw prints", True),
        ("octopus", ANIMALS, "animal-marine", "an octopus", False),
        ("rhinoceros", ANIMALS, "animal-mammal", "a rhinoceros", False),
        ("dress", OBJECTS, "clothing", "a dress", False),
        ("glasses", OBJECTS, "clothing", "glasses", True),
        ("skis", "activities", "sport", "skis", True),
        ("crossed flags", "flags", "flag", "crossed flags", True),
        ("busts in silhouette", PEOPLE, "person-symbol", "busts in silhouette", True),
        ("nest with eggs", ANIMALS, "plant-other", "a nest with eggs", False),
        ("people with bunny ears", PEOPLE, "person-activity", "people with bunny ears", True),
        ("men wrestling", PEOPLE, "person-sport", "men wrestling", True),
        ("man lifting weights", PEOPLE, "person-sport", "a man lifting weights", False),
        ("hammer and wrench", OBJECTS, "tool", "a hammer and a wrench", True),
        ("Santa Claus", PEOPLE, "person-fantasy", "Santa Claus", False),
        ("fog", "travel-places", "sky-weather", "fog", False),
        ("sun behind small cloud", "travel-places", "sky-weather", "the sun behind a small cloud", False),
        ("man: red hair", PEOPLE, "person", "a man with red hair", False),
        ("woman: beard", PEOPLE, "person", "a woman with a beard", False),
        ("person: bald", PEOPLE, "person", "a bald person", False),
        ("family: man, girl", PEOPLE, "family", "a family of a man and a girl", False),
        ("family: woman, woman, girl, boy", PEOPLE, "family", "a family of two women, a girl and a boy", False),
        ("family: adult, child, child", PEOPLE, "person-symbol", "a family of an adult and two children", False),
        ("kiss: man, man", PEOPLE, "family", "a kissing couple of two men", False),
        ("woman running: facing right", PEOPLE, "person-activity", "a right-facing woman running", False),
        ("man in tuxedo", PEOPLE, "person-role", "a man in a tuxedo", False),
        (
            "three o\N{RIGHT SINGLE QUOTATION MARK}clock",
            "travel-places",
            "time",
            "a clock showing three o'clock",
            False,
        ),
        ("ten-thirty", "travel-places", "time", "a clock showing ten-thirty", False),
        ("hourglass done", "travel-places", "time", "an hourglass that has run out", False),
        ("high voltage", "travel-places", "sky-weather", "a lightning bolt", False),
        ("ZZZ", "smileys-emotion", "emotion", "the letters ZZZ", True),
        ("flag: Norway", "flags", "country-flag", "the flag of Norway", False),
        ("flag: Turks & Caicos Islands", "flags", "country-flag", "the flag of the Turks and Caicos Islands", False),
        ("keycap: 7", SYMBOLS, "keycap", "a keycap with 7", False),
        ("Aries", SYMBOLS, "zodiac", "an Aries zodiac sign", False),
        ("customs", SYMBOLS, "transport-sign", "a customs sign", False),
        ("O button (blood type)", SYMBOLS, "alphanum", "an O button (blood type)", False),
    ],
)
def test_noun_phrase(label, group, subgroup, text, plural):
    assert noun_phrase(label, group, subgroup) == NounPhrase(text, plural)


@given(st.from_regex(r"[a-z]{1,9}( [a-z]{1,9}){0,3}", fullmatch=True))
def test_any_label_gives_a_phrase_with_its_last_word(label):
    phrase = noun_phrase(label, OBJECTS, "tool")
    assert phrase.text and phrase.text == phrase.text.strip()
    assert not phrase.plural or not phrase.text.startswith(("a ", "an ")) or " and " in phrase.text
