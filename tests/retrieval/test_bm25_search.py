"""Search: numba, numpy and a full scan find the same, bit for bit; ties, exclusions, parts of an index, odd input."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from test_bm25 import lucene_idf

from vimi_diffusers.retrieval import BM25Index, merge_top_k, tokenize


BACKENDS = ("numba", "numpy")
words = st.sampled_from("fox wolf sea turtle old park snow red".split())
texts = st.lists(words, max_size=6)
corpora = st.lists(texts, min_size=1, max_size=30).filter(any)


def full_scan(index, queries, k, exclude=None):
    """The contract, written out over all scores."""
    rows, scores = np.full((len(queries), k), -1), np.zeros((len(queries), k), dtype=np.float32)
    for number, query in enumerate(queries):
        of_all = index.scores(query)
        of_all[list(exclude[number]) if exclude else []] = 0
        order = np.argsort(-of_all, kind="stable")[:k]
        order = order[of_all[order] > 0]
        rows[number, : len(order)], scores[number, : len(order)] = order, of_all[order]
    return rows, scores


def assert_same(found, expected):
    assert found[0].dtype == np.int64 and found[1].dtype == np.float32
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def zipf(count, shortest, longest, seed, num_words=2000):
    draws = np.random.default_rng(seed)
    weights = 1 / (np.arange(num_words) + 3.0)
    lengths = draws.integers(shortest, longest + 1, count)
    drawn = [f"w{rank}" for rank in draws.choice(num_words, lengths.sum(), p=weights / weights.sum())]
    ends = np.cumsum(lengths)
    return [drawn[end - length : end] for end, length in zip(ends, lengths)]


@pytest.fixture(scope="module")
def large():
    """Several blocks and shards of short texts; many ties."""
    return BM25Index.build(zipf(160_000, 0, 5, seed=1), shard_size=90_000)


@settings(max_examples=80, deadline=None)
@given(
    corpora,
    st.lists(st.lists(words | st.just("unknown"), max_size=7), max_size=5),
    st.integers(0, 40),
    st.integers(1, 31),
    st.data(),
)
def test_search_finds_what_a_full_scan_finds(documents, queries, k, shard_size, data):
    index = BM25Index.build(documents, shard_size=shard_size)
    exclude = data.draw(
        st.none() | st.lists(st.sets(st.integers(0, len(documents) - 1)), min_size=len(queries), max_size=len(queries))
    )
    expected = full_scan(index, queries, k, exclude)
    for backend in BACKENDS:
        assert_same(index.search(queries, k, exclude, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 4, 50])
def test_many_blocks(large, backend, k):
    queries = zipf(60, 1, 9, seed=2)
    exclude = [large.search([query], 5)[0][0] for query in queries]
    exclude = [rows[rows >= 0] for rows in exclude]
    assert_same(large.search(queries, k, backend=backend), full_scan(large, queries, k))
    assert_same(large.search(queries, k, exclude, backend=backend), full_scan(large, queries, k, exclude))


def test_more_texts_than_there_are(large):
    found = [large.search([["w0", "w1", "w5"]], len(large) + 7, backend=backend) for backend in BACKENDS]
    assert_same(found[0], found[1])
    assert_same(found[0], full_scan(large, [["w0", "w1", "w5"]], len(large) + 7))


def test_the_number_of_threads_does_not_matter(large):
    queries = zipf(100, 1, 9, seed=3)
    for backend in BACKENDS:
        found = [large.search(queries, 4, backend=backend, num_threads=count) for count in (1, 2, 5)]
        assert_same(found[0], found[1])
        assert_same(found[0], found[2])


def test_more_queries_than_are_searched_at_once(large, monkeypatch):
    queries = zipf(50, 1, 9, seed=4)
    exclude = [[number] for number in range(50)]
    expected = large.search(queries, 3, exclude)
    monkeypatch.setattr("vimi_diffusers.retrieval.bm25.index._QUERIES_AT_ONCE", 7)
    assert_same(large.search(queries, 3, exclude), expected)


def test_rankings_are_those_of_rank_bm25():
    documents = zipf(300, 1, 12, seed=5, num_words=80)
    rank = lucene_idf(BM25Okapi(documents, k1=1.5, b=0.75), documents)
    index = BM25Index.build(documents, shard_size=70)
    queries = zipf(30, 1, 8, seed=6, num_words=80)
    rows, scores = index.search(queries, 10)
    for number, query in enumerate(queries):
        expected = rank.get_scores(query)
        # ties of one are near-ties of the other: every place holds a text of that place's score
        np.testing.assert_allclose(expected[rows[number]], np.sort(expected)[::-1][:10], rtol=1e-5)
        np.testing.assert_allclose(scores[number], expected[rows[number]], rtol=1e-5)


def test_equal_scores_keep_the_order_of_rows():
    index = BM25Index.build([["fox"], ["wolf"], ["fox"], ["fox"], ["fox"]], shard_size=2)
    for backend in BACKENDS:
        assert index.search([["fox"]], 3, backend=backend)[0].tolist() == [[0, 2, 3]]
        assert index.search([["fox"]], 3, [[2]], backend=backend)[0].tolist() == [[0, 3, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_without_a_known_word_find_nothing(backend):
    index = BM25Index.build([["fox"], [], ["old", "fox"]])
    rows, scores = index.search([[], ["zebra"], ["\U0001f98a", "e\u0301"], ["fox"]], 2, backend=backend)
    assert rows.tolist() == [[-1, -1], [-1, -1], [-1, -1], [0, 2]]
    assert scores[:3].tolist() == [[0, 0]] * 3 and (scores[3] > 0).all()
    assert index.search([], 3, backend=backend)[0].shape == (0, 3)
    assert index.search([["fox"]], 0, backend=backend)[0].shape == (1, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_of_a_megabyte(large, backend):
    query = tokenize("w0 w1 w2 w300 w7 " * 65_000)
    assert len(query) == 325_000
    rows, scores = large.search([query, ["w0"]], 3, backend=backend)
    assert (large.scores(["w0", "w1", "w2", "w300", "w7"])[rows[0]] > 0).all()
    assert (np.diff(scores[0]) <= 0).all() and scores[1, 0] > 0


def test_repeated_words_count_as_often_as_they_occur():
    index = BM25Index.build([["fox", "den"], ["wolf", "den"], ["fox"]])
    assert index.search([["wolf", "fox", "fox", "fox"]], 1)[0].tolist() == [[2]]
    assert index.scores(["fox", "fox"])[2] == 2 * index.scores(["fox"])[2]


@settings(max_examples=30, deadline=None)
@given(corpora, st.lists(texts, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 8), st.data())
def test_parts_of_an_index_merge_to_the_whole(tmp_path_factory, documents, queries, shard_size, k, data):
    folder = tmp_path_factory.mktemp("index") / "bm25"
    whole = BM25Index.create(folder, documents, shard_size=shard_size)
    part_of = data.draw(st.lists(st.integers(0, 2), min_size=whole.num_shards, max_size=whole.num_shards))
    parts = [[shard for shard, part in enumerate(part_of) if part == number] for number in range(3)]
    opened = [BM25Index.load(folder, shards=shards) for shards in parts]
    assert all(len(part) == len(documents) and part.num_shards == whole.num_shards for part in opened)
    expected = whole.search(queries, k)
    assert_same(merge_top_k([part.search(queries, k) for part in opened], k), expected)
    assert_same(merge_top_k([whole.search(queries, 2 * k)], k), expected)
    np.testing.assert_array_equal(sum(part.scores(queries[0]) for part in opened), whole.scores(queries[0]))


def test_merging_pads_and_needs_a_part():
    found = np.array([[3, -1]]), np.array([[0.5, 0]], dtype=np.float32)
    other = np.array([[1, 7]]), np.array([[0.5, 0.25]], dtype=np.float32)
    rows, scores = merge_top_k([found, other], 5)
    assert rows.tolist() == [[1, 3, 7, -1, -1]] and scores.tolist() == [[0.5, 0.5, 0.25, 0, 0]]
    with pytest.raises(ValueError, match="no result"):
        merge_top_k([], 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fox", 1), "not a string"),
        ((["fox"], 1), "not a string"),
        (([["fox"]], -1), "0 or more, not -1"),
        (([["fox"]], True), "not True"),
        (([["fox"]], 1, []), "each of the 1 queries, not 0"),
        (([["fox"]], 1, [[2]]), "row 2, but the index has rows 0 to 1"),
        (([[3]], 1), "3 is no word"),
    ],
)
def test_unusable_searches(arguments, message):
    index = BM25Index.build([["fox"], ["wolf"]])
    with pytest.raises(ValueError, match=message):
        index.search(*arguments)
    with pytest.raises(ValueError, match="not \"cuda\"|not 'cuda'"):
        index.search([["fox"]], 1, backend="cuda")


def test_an_index_goes_to_other_processes(large, tmp_path):
    queries = zipf(5, 1, 9, seed=7)
    small = BM25Index.build([["fox"], ["wolf", "fox"]])
    small.save(tmp_path / "index")
    for index in (large, small, BM25Index.load(tmp_path / "index", shards=[0])):
        assert_same(pickle.loads(pickle.dumps(index)).search(queries, 2), index.search(queries, 2))
    assert len(pickle.dumps(BM25Index.load(tmp_path / "index"))) < 1000  # its place, not its arrays


def test_search_without_numba(tmp_path):
    BM25Index.build([["fox"], ["wolf", "fox"]]).save(tmp_path / "index")
    program = f"""
import sys
sys.modules["numba"] = None
from vimi_diffusers.retrieval import BM25Index
index = BM25Index.load({str(tmp_path / "index")!r})
print(index.search([["fox", "wolf"]], 2)[0].tolist())
try:
    index.search([["fox"]], 1, backend="numba")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[[1, 0]]", 'backend="numba" needs numba: pip install numba'], done.stderr
