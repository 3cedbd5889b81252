"""The words of a text, and the recipe that says what is indexed."""

import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimi_diffusers.retrieval import BM25Field, RetrievalRecipe, tokenize
from vimi_diffusers.retrieval.recipe import ENGLISH_STOP_WORDS, MOTION_STOP_WORDS


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A Fox's den", ["a", "fox", "den"]),
        ("the woman\u2019s hat", ["the", "woman", "hat"]),
        ("X marks\nthe spot!", ["x", "marks", "the", "spot"]),
        ("cafe\u0301 \ufb01sh", ["caf\u00e9", "fish"]),
        ("\U0001f98a ...", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert tokenize(text) == expected


@given(
    st.text()
    | st.text(st.characters(max_codepoint=127))
    | st.lists(st.sampled_from("a's 'S\u2019s\t\x1c_")).map("".join)
)
def test_words_are_those_of_the_normalised_text(text):
    normalised = unicodedata.normalize("NFKC", text).lower()
    expected = re.findall(r"\w+", re.sub("['\u2019]s\\b", "", normalised))
    assert tokenize(text) == expected
    assert tokenize(text, ("a", "s")) == [word for word in expected if word not in ("a", "s")]


def test_stop_words_keep_negations_and_single_letters():
    assert tokenize("A person gesturing no, not an X", ENGLISH_STOP_WORDS) == ["person", "gesturing", "no", "not", "x"]
    assert "camera" in MOTION_STOP_WORDS and "camera" not in ENGLISH_STOP_WORDS


def test_a_recipe_survives_json():
    recipe = RetrievalRecipe.for_kinds(["subject", "place"])
    assert RetrievalRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_prompt_splits_at_its_first_cue():
    recipe = RetrievalRecipe(kinds=("subject", "place"), cues=("in", ","))
    assert recipe.split_at_cue("An inn keeper In a park in spring") == ("An inn keeper ", " a park in spring")
    assert recipe.split_at_cue("a fox, a park") == ("a fox", " a park")
    assert recipe.split_at_cue("an inner tube") == ("an inner tube", "")
    assert RetrievalRecipe().split_at_cue("a fox in a park") == ("", "a fox in a park")


def test_default_recipes():
    assert RetrievalRecipe.for_kinds(["subject"]).kinds == ("subject", "place")
    assert RetrievalRecipe.for_kinds(["subject", None]) == RetrievalRecipe()
    assert RetrievalRecipe.for_kinds(["vehicle"]) == RetrievalRecipe()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"fields": ()}, "at least one field"),
        ({"fields": (BM25Field("text"), BM25Field("text"))}, "named twice"),
        ({"fields": (BM25Field("text", 0.0),)}, "weight of field 'text' is 0.0"),
        ({"kinds": ("a/b",)}, "'a/b' cannot name a kind"),
        ({"b": 1.5}, "b=1.5"),
        ({"k1": float("nan")}, "k1=nan"),
        ({"k1": float("inf")}, "k1=inf"),
    ],
)
def test_unusable_recipes(arguments, message):
    with pytest.raises(ValueError, match=message):
        RetrievalRecipe(**arguments)
