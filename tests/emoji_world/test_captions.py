import re

import pytest

from vimi_diffusers.emoji_world.captions import (
    CANONICAL_VERBS,
    MOVES,
    PLACE_NAMES,
    VERBS,
    canonical_plan,
    inflect,
    paraphrased_plan,
    with_article,
)
from vimi_diffusers.emoji_world.recipes import Draws


OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def paraphrases(move, cam, number=400, place="park", phrase="in a grassy park", **kwargs):
    return [paraphrased_plan(Draws(f"{move}{cam}{n}"), move, cam, place, phrase, **kwargs) for n in range(number)]


@pytest.mark.parametrize(
    "phrase, singular, plural, progressive",
    [
        ("walk to the left", "walks to the left", "walk to the left", "is walking to the left"),
        ("rush", "rushes", "rush", "is rushing"),
        ("go up", "goes up", "go up", "is going up"),
        ("fly up", "flies up", "fly up", "is flying up"),
        ("stay still", "stays still", "stay still", "is staying still"),
        ("glide", "glides", "glide", "is gliding"),
        ("hop", "hops", "hop", "is hopping"),
        ("pass", "passes", "pass", "is passing"),
        ("stay where it is", "stays where it is", "stay where they are", "is staying where it is"),
    ],
)
def test_verbs_are_inflected(phrase, singular, plural, progressive):
    assert inflect(phrase, "simple", False) == singular
    assert inflect(phrase, "simple", True) == plural
    assert inflect(phrase, "progressive", False) == progressive
    assert inflect("run", "progressive", True) == "are running"


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'past'"):
        inflect("walk", "past", False)


def test_articles_are_swapped_where_there_is_one():
    assert with_article("an elephant", "the") == "the elephant"
    assert with_article("crossed swords", "the") == "crossed swords"
    assert with_article("Santa Claus", "the") == "Santa Claus"
    assert with_article("a fox", "") == "a fox"


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("cam", (-1, 0, 1))
def test_canonical_captions(move, cam):
    texts = {canonical_plan(Draws(str(n)), move, cam, "in a grassy park").text("a fox") for n in range(60)}
    cameras = {0: ("",), 1: (" while the camera pans right", ", camera panning right"),
               -1: (" while the camera pans left", ", camera panning left")}[cam]  # fmt: skip
    verbs = [inflect(verb, "simple", False) for verb in CANONICAL_VERBS[move]]
    assert texts == {f"A fox {verb} in a grassy park{camera}." for verb in verbs for camera in cameras}


def test_canonical_captions_of_plural_subjects_and_of_images():
    plan = canonical_plan(Draws("x"), "still", 0, "on a grey city square")
    assert plan.text("crossed swords", plural=True) == "Crossed swords stay in place on a grey city square."
    assert plan.text("crossed swords", True, True, True) == "A <image> stays in place in a <image>."
    assert plan.text("a fox", False, True, False) == "A <image> stays in place on a grey city square."


@pytest.mark.parametrize("move", ("left", "right", "up", "down"))
def test_no_paraphrase_names_another_direction(move):
    assert all(f"to the {OPPOSITE[move]}" not in verb for verb in VERBS[move])
    for plan in paraphrases(move, 0):
        words = re.findall(r"\w+", plan.text("a fox").replace("from left to right", "right")
                           .replace("from right to left", "left"))  # fmt: skip
        assert OPPOSITE[move] not in words, plan
    assert {plan.camera for plan in paraphrases(move, 0)} >= {"", ", static camera"}


@pytest.mark.parametrize("cam, side, other", ((1, "right", "left"), (-1, "left", "right")))
def test_the_camera_is_always_said_and_pans_to_its_side(cam, side, other):
    for plan in paraphrases("up", cam):
        assert side in plan.camera and other not in plan.camera


def test_images_stand_in_the_order_that_is_reported():
    orders = set()
    for plan in paraphrases("circle", 0):
        order = plan.image_order(True, True)
        orders.add(order)
        only_subject = plan.text("a fox", subject_image=True)
        assert only_subject.count("<image>") == 1 and plan.image_order(True, False) == ("subject",)
        text = plan.text("a fox", subject_image=True, place_image=True)
        assert text.count("<image>") == 2
        place_starts = text.lower().startswith(f"{plan.image_place[0]} {plan.image_place[1]}<image>, ")
        assert place_starts == (order == ("place", "subject"))
    assert orders == {("subject", "place"), ("place", "subject")}


def test_place_is_left_out_on_request():
    for plan in paraphrases("near", 1, name_place=False):
        assert plan.verb and plan.place is None and plan.image_order(True, False) == ("subject",)
        assert not any(noun in plan.text("a fox") for _, _, noun in PLACE_NAMES["park"])


def test_prompts_as_people_write_them_are_among_the_paraphrases():
    words, images = set(), set()
    for move in ("left", "right", "up", "bounce", "still"):
        for plan in paraphrases(move, 0, number=6000):
            words.add(plan.text("a sea turtle").rstrip("."))
            images.add(plan.text("a sea turtle", subject_image=True, place_image=True).rstrip("."))
    assert "A sea turtle glides through a park" in words
    assert "A sea turtle is walking in a park" in words
    assert "A sea turtle flies up in a park" in words
    assert "A sea turtle hops in a park" in words
    assert "A <image> is walking in a <image>" in images
    assert "A <image> stays in place in a <image>" in images
    assert len(words) > 5000


def test_an_unknown_place_keeps_its_own_phrase():
    for plan in paraphrases("right", 0, place="volcano", phrase="by a smoking volcano"):
        preposition, noun = plan.place
        assert preposition in ("by", "along") and noun in ("a smoking volcano", "the smoking volcano")
