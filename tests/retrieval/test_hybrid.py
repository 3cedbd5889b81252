"""Rank fusion and diversity against their formulas written out."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimi_diffusers.retrieval.hybrid import DiverseRetriever, HybridRetriever, mmr
from vimi_diffusers.retrieval.retriever import Retriever, check_request


class Ranked(Retriever):
    """Finds given documents in a given order, whatever the query."""

    def __init__(self, order, length):
        self.order, self.length = order, length

    def __len__(self):
        return self.length

    def retrieve(self, queries, k):
        check_request(queries, k)
        rows = np.full((len(queries), k), -1)
        rows[:, : len(self.order)] = self.order[:k]
        return rows, np.where(rows >= 0, 1.0, 0.0).astype(np.float32)


orders = st.lists(st.integers(0, 11), unique=True, max_size=12)


@given(st.lists(orders, min_size=1, max_size=3), st.integers(1, 15), st.sampled_from([0, 1, 60]))
def test_fusion_is_the_formula(rankings, k, constant):
    found, scores = HybridRetriever([Ranked(order, 12) for order in rankings], k=constant).retrieve(["q"], k)
    exact = {
        row: sum(Fraction(1, constant + order.index(row) + 1) for order in rankings if row in order)
        for row in set().union(*rankings)
    }
    expected = sorted(exact, key=lambda row: (-exact[row], row))[:k]
    kept = [row for row in found[0].tolist() if row >= 0]
    assert [exact[row] for row in kept] == [exact[row] for row in expected]
    np.testing.assert_allclose(scores[0, : len(kept)], [float(exact[row]) for row in kept], rtol=1e-6)
    assert (found[0, len(kept) :] == -1).all() and (scores[0, len(kept) :] == 0).all()


def test_weights_and_depth():
    first, second = Ranked([0, 1], 5), Ranked([2, 1], 5)
    assert HybridRetriever([first, second]).retrieve(["q"], 3)[0].tolist() == [[1, 0, 2]]
    assert HybridRetriever([first, second], weights=[1, 9], k=0).retrieve(["q"], 3)[0].tolist() == [[2, 1, 0]]
    assert HybridRetriever([first, second], depth=1).retrieve(["q"], 1)[0].tolist() == [[0]]
    assert HybridRetriever([first, second]).retrieve([], 3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("retrievers", "values", "message"),
    [
        ([], {}, "at least one"),
        ([Ranked([], 3), Ranked([], 4)], {}, r"\[3, 4\]"),
        ([Ranked([], 3)], {"weights": [1, 2]}, "1 positive"),
        ([Ranked([], 3)], {"weights": [0]}, "positive"),
        ([Ranked([], 3)], {"k": -1}, "k >= 0"),
        ([Ranked([], 3)], {"depth": 0}, "depth >= 1"),
    ],
)
def test_what_cannot_be_fused(retrievers, values, message):
    with pytest.raises(ValueError, match=message):
        HybridRetriever(retrievers, **values)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_mmr_is_the_formula(seed, trade_off):
    draws = np.random.default_rng(seed)
    vectors, query = unit(draws.standard_normal((12, 4))), unit(draws.standard_normal((1, 4)))[0]
    chosen = []
    while len(chosen) < 8:
        gains = {
            one: trade_off * (vectors[one] @ query)
            - (1 - trade_off) * max((vectors[one] @ vectors[other] for other in chosen), default=0)
            for one in range(12)
            if one not in chosen
        }
        chosen.append(max(gains, key=gains.get))
    assert mmr(vectors @ query, vectors, 8, trade_off).tolist() == chosen


def test_mmr_passes_over_repetitions():
    vectors = unit(np.array([[1, 0.1], [1, 0.1], [1, 0.11], [0.2, 1]]))
    relevance = vectors @ [1, 0]
    assert mmr(relevance, vectors, 2, 1.0).tolist() == [0, 1]
    assert mmr(relevance, vectors, 2, 0.3).tolist() == [0, 3]
    assert mmr(relevance, vectors, 9).tolist()[:1] == [0] and len(mmr(relevance, vectors, 9)) == 4
    assert mmr(relevance[:0], vectors[:0], 3).tolist() == []


def test_mmr_refuses_odd_input():
    with pytest.raises(ValueError, match="between 0 and 1, not 1.5"):
        mmr(np.ones(2), np.eye(2), 1, 1.5)
    with pytest.raises(ValueError, match="do not fit"):
        mmr(np.ones(3), np.eye(2), 1)


def test_a_diverse_retriever_re_ranks_another(tmp_path):
    pytest.importorskip("faiss", reason="dense retrieval needs the extra `retrieval`")
    pytest.importorskip("sentence_transformers", reason="dense retrieval needs the extra `retrieval`")
    from tiny_encoders import text_encoder

    from vimi_diffusers.retrieval.dense import DenseRetriever
    from vimi_diffusers.retrieval.encoder import Encoder

    encoder = Encoder(text_encoder(tmp_path))
    texts = ["fox", "fox", "foxx", "", "zebra", "whale"]
    dense = DenseRetriever.build(texts, encoder)
    rows, scores = DiverseRetriever(dense, dense, trade_off=1.0).retrieve(["fox"], 3)
    assert (rows == dense.retrieve(["fox"], 3)[0]).all()
    np.testing.assert_allclose(scores, dense.retrieve(["fox"], 3)[1], atol=1e-5)
    rows, _ = DiverseRetriever(dense, dense, trade_off=0.3).retrieve(["fox", ""], 3)
    assert rows[0, 0] == 0 and 1 not in rows[0] and (rows[1] == -1).all()
    with pytest.raises(ValueError, match="embeddings 6"):
        DiverseRetriever(Ranked([], 5), dense)
