"""BM25 scores against the closed formula, rank-bm25 and bm25s, in one shard and in several."""

import math

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from vimi_diffusers.retrieval import BM25Index, tokenize


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


@settings(max_examples=60, deadline=None)
@given(documents_strategy, st.integers(1, 9), st.sampled_from([(1.5, 0.75), (0.9, 0.0), (2, 1), (0, 0.5)]))
def test_shards_hold_what_bm25s_computes_for_one_index(documents, shard_size, parameters):
    index = BM25Index.build(documents, *parameters, shard_size=shard_size)
    numbers = {}
    ids = [[numbers.setdefault(word, len(numbers)) for word in words] for words in documents]
    whole = bm25s.BM25(*parameters, method="atire", idf_method="lucene", backend="numpy")
    whole.index((ids, numbers), create_empty_token=False, show_progress=False)
    assert index.num_shards == -(-len(documents) // shard_size)
    for query in [*([word] for word in numbers), [*numbers], [*numbers, *reversed(numbers)]]:
        assert index.scores(query).tolist() == whole.get_scores(query).tolist()


def test_texts_are_words_not_strings():
    with pytest.raises(ValueError, match="'a red fox' is a string"):
        BM25Index.build(["a red fox"])
    with pytest.raises(ValueError, match="7 is no word"):
        BM25Index.build([["fox", 7]])
    with pytest.raises(ValueError, match="shard_size` is 0"):
        BM25Index.build([["fox"]], shard_size=0)
    with pytest.raises(ValueError, match="k1=-1"):
        BM25Index.build([["fox"]], k1=-1)


def test_odd_words():
    long = ["fox"] * 70_000 + ["den"]  # counts past 16 bits
    documents = [["\U0001f98a"], ["caf\u00e9"], ["\ud800"], [], long, ["fox"]]
    index = BM25Index.build(documents)
    for query in (["\U0001f98a"], ["\ud800", "fox"], ["fox", "den", "fox"]):
        np.testing.assert_allclose(index.scores(query), formula(query, documents, 1.5, 0.75), rtol=1e-5)
