"""BM25 against the closed formula and against rank-bm25, and the words that it counts."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from vimi_diffusers.retrieval import BM25Field, BM25Index, RetrievalRecipe, tokenize
from vimi_diffusers.retrieval.bm25 import ENGLISH_STOP_WORDS, MOTION_STOP_WORDS


CORPUS = [
    "red fox in snow",
    "grey wolf in deep snow snow",
    "fox and fox cub",
    "sea turtle",
    "old sea chart of the cold sea near old ruins",
    "desert fox",
    "yellow submarine",
]


def formula(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    """The score written out word by word, straight from its definition."""
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            df = sum(word in other for other in documents)
            tf = document.count(word)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / average)) if tf else 0.0
        scores.append(score)
    return np.array(scores)


def lucene_idf(rank: BM25Okapi, documents: list[list[str]]) -> BM25Okapi:
    """rank-bm25 with the idf variant used here: its own is ln((N - df + .5) / (df + .5)), floored."""
    for word in rank.idf:
        df = sum(word in document for document in documents)
        rank.idf[word] = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
    return rank


words = st.sampled_from("fox wolf sea turtle old park snow".split())
documents_strategy = st.lists(st.lists(words, max_size=6), min_size=1, max_size=8).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    documents_strategy,
    st.lists(words | st.just("unknown"), max_size=5),
    st.sampled_from([(1.5, 0.75), (0.9, 0.0), (2, 1)]),
)
def test_scores_equal_the_formula(documents, query, parameters):
    index = BM25Index.build(documents, *parameters)
    np.testing.assert_allclose(index.scores(query), formula(query, documents, *parameters), rtol=1e-5, atol=1e-6)


def test_a_score_computed_by_hand():
    # N = 2, df = 1, tf = 1, len = avglen: ln(1 + 1.5 / 1.5) * 1 * 2.5 / (1 + 1.5)
    assert BM25Index.build([["fox"], ["park"]]).scores(["fox"]).tolist() == pytest.approx([math.log(2), 0.0])


@pytest.mark.parametrize("query", ["fox", "snow fox", "cold sea turtle", "old old sea", "yellow wolf in the snow"])
def test_scores_equal_rank_bm25_with_the_same_idf(query):
    documents = [tokenize(text) for text in CORPUS]
    rank = lucene_idf(BM25Okapi(documents, k1=1.5, b=0.75), documents)
    scores = BM25Index.build(documents).scores(tokenize(query))
    np.testing.assert_allclose(scores, rank.get_scores(tokenize(query)), rtol=1e-5)


def test_ranking_of_one_word_does_not_depend_on_the_idf_variant():
    documents = [tokenize(text) for text in CORPUS]
    ours = BM25Index.build(documents)
    rank = BM25Okapi(documents, k1=1.5, b=0.75)
    for word in ("snow", "sea", "old", "turtle"):
        expected = np.argsort(-rank.get_scores([word]), kind="stable")
        assert np.argsort(-ours.scores([word]), kind="stable").tolist() == expected.tolist()


def test_unknown_and_missing_words_score_zero():
    index = BM25Index.build([["fox"], []])
    assert index.scores([]).tolist() == [0, 0]
    assert index.scores(["zebra"]).tolist() == [0, 0]
    assert index.scores(["zebra", "fox"])[0] > 0


def test_texts_without_a_word_have_no_index():
    assert BM25Index.build([[], []]) is None
    assert BM25Index.build([]) is None


def test_a_saved_index_scores_the_same(tmp_path):
    documents = [tokenize(text) for text in CORPUS]
    index = BM25Index.build(documents)
    index.save(tmp_path / "index")
    for mmap in (True, False):
        loaded = BM25Index.load(tmp_path / "index", mmap=mmap)
        assert len(loaded) == len(CORPUS)
        assert loaded.scores(["fox", "snow"]).tolist() == index.scores(["fox", "snow"]).tolist()


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
    ],
)
def test_unusable_recipes(arguments, message):
    with pytest.raises(ValueError, match=message):
        RetrievalRecipe(**arguments)
