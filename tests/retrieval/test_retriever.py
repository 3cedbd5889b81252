"""The one interface of all searches, with BM25 behind it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from vimi_diffusers.retrieval import BM25Index, tokenize
from vimi_diffusers.retrieval.retriever import BM25Retriever, best


TEXTS = ["A red fox", "A red car in the rain", "", "A fox and a fox", "The sea", "A car"]


@pytest.fixture
def retriever():
    return BM25Retriever(BM25Index.build([tokenize(text, {"a", "the"}) for text in TEXTS]), {"a", "the"})


def test_bm25_ranks_as_rank_bm25(retriever):
    assert len(retriever) == len(TEXTS)
    rows, scores = retriever.retrieve(["The red fox", "a car"], 3)
    oracle = BM25Okapi([tokenize(text, {"a", "the"}) for text in TEXTS])
    for query, found in zip((["red", "fox"], ["car"]), rows):
        expected = oracle.get_scores(query)
        shared = [row for row in np.argsort(-expected, kind="stable") if {*query} & {*tokenize(TEXTS[row])}]
        assert found[found >= 0].tolist() == shared[:3]
    assert rows[1].tolist()[2] == -1 and scores[1, 2] == 0


def test_words_that_were_not_indexed_find_nothing(retriever):
    rows, scores = retriever.retrieve(["xyzzy", "the", ""], 2)
    assert (rows == -1).all() and (scores == 0).all()
    assert rows.shape == (3, 2) and rows.dtype == np.int64 and scores.dtype == np.float32


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [("a fox", 1, "pass \\[query\\]"), ([3], 1, "not int"), (["fox"], 0, "at least 1"), (["fox"], True, "not True")],
)
def test_odd_requests_are_refused(retriever, queries, k, message):
    with pytest.raises(ValueError, match=message):
        retriever.retrieve(queries, k)


@given(st.lists(st.tuples(st.integers(-1, 5), st.sampled_from([-0.5, 0.0, 1.0])), max_size=8), st.integers(1, 10))
def test_best_is_a_stable_sort(candidates, k):
    candidates = [(row if count.index(row) == number else -1, score) for count in [[row for row, _ in candidates]]
                  for number, (row, score) in enumerate(candidates)]  # fmt: skip
    rows = np.array([[row for row, _ in candidates]], dtype=np.int64)
    scores = np.array([[score for _, score in candidates]], dtype=np.float32)
    found, kept = best(rows, scores, k)
    expected = sorted((-score, row) for row, score in candidates if row >= 0)[:k]
    expected += [(0, -1)] * (k - len(expected))
    assert found[0].tolist() == [row for _, row in expected]
    assert kept[0].tolist() == [-score for score, _ in expected]
