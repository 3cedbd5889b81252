"""A memory that is searched by batches and by any retriever: kinds, groups, exclusions, more than there is."""

import numpy as np
import pytest
from PIL import Image
from rank_bm25 import BM25Okapi

from vimi_diffusers.retrieval import BM25Field, ImageTextMemory, RetrievalRecipe, tokenize
from vimi_diffusers.retrieval.retriever import Retriever


WORDS = "fox wolf bear owl crab deer frog goat hare lynx".split()
PICTURE = Image.new("RGB", (2, 2))


class FixedOrder(Retriever):
    """Ranks all documents in a given order, and notes what it is asked."""

    def __init__(self, order):
        self.order = np.array(order)
        self.asked = []

    def __len__(self):
        return len(self.order)

    def retrieve(self, queries, k):
        self.asked.append((list(queries), k))
        rows = np.full((len(queries), k), -1)
        rows[:, : len(self.order)] = self.order[:k]
        return rows, np.where(rows >= 0, 1 / (2 + np.arange(k, dtype=np.float32)), np.float32(0))


def random_rows(count, seed=0, **values):
    draws = np.random.default_rng(seed)
    return [
        {
            "id": str(number),
            "text": " ".join(draws.choice(WORDS, draws.integers(1, 6))),
            "image": PICTURE,
            "group": f"g{draws.integers(count // 5)}",
            **values,
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped") / "memory"
    return ImageTextMemory.create(folder, random_rows(200), RetrievalRecipe(group_by="group"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    rows = random_rows(60)
    for number, row in enumerate(rows):
        row |= {"kind": "place" if number >= 50 else "subject", "concept": row["group"]}
    return ImageTextMemory.create(tmp_path_factory.mktemp("kinds") / "memory", rows)


def ids(pairs):
    return [pair.id for pair in pairs]


def brute_force(memory, prompt, k, exclude=(), prefer=()):
    """Best first by rank-bm25 over all pairs; one pair for each group, a preferred one if one matches."""
    index = BM25Okapi([tokenize(text, memory.recipe.stop_words) for text in memory.texts()], k1=1.5, b=0.75)
    total, groups = len(memory), [pair.metadata["group"] for pair in memory]
    frequency = {word: sum(word in one for one in index.doc_freqs) for word in index.idf}
    index.idf = {word: np.log(1 + (total - df + 0.5) / (df + 0.5)) for word, df in frequency.items()}
    scores = np.round(index.get_scores(tokenize(prompt, memory.recipe.stop_words)), 4)
    order = [n for n in np.lexsort((np.arange(total), -scores)) if scores[n] > 0 and str(n) not in exclude]
    found = {}
    for number in order:
        found.setdefault(groups[number], []).append(number)
    chosen = [next((n for n in own if str(n) in prefer), own[0]) for own in found.values()]
    return [str(n) for n in chosen[:k]]


@pytest.mark.parametrize("k", [1, 3, 17, 500])
def test_groups_are_filled_up(grouped, k):
    draws = np.random.default_rng(k)
    prompts = [" ".join(draws.choice([*WORDS, "zebra", "the"], 3)) for _ in range(12)]
    exclude = [draws.choice(200, 20).astype(str).tolist() for _ in prompts]
    prefer = [draws.choice(200, 60).astype(str).tolist() for _ in prompts]
    batch = grouped.search_batch(prompts, k=k, exclude=exclude, prefer=prefer)
    for prompt, found, excluded, preferred in zip(prompts, batch, exclude, prefer, strict=True):
        assert ids(found) == brute_force(grouped, prompt, k, excluded, preferred)
    for prompt, found in zip(prompts, grouped.search_batch(prompts, k=k)):
        assert ids(found) == ids(grouped.search(prompt, k=k)) == brute_force(grouped, prompt, k)


def test_several_fields_rank_by_their_weighted_sum(tmp_path):
    rows = [{**row, "tags": row["text"].split()[::-1] + ["owl"]} for row in random_rows(40)]
    both = RetrievalRecipe(fields=(BM25Field("text", 2.0), BM25Field("tags", 0.5)))
    memory = ImageTextMemory.create(tmp_path / "both", rows, both)
    parts = [
        ImageTextMemory.create(tmp_path / name, rows, RetrievalRecipe(fields=(BM25Field(name, weight),)))
        for name, weight in (("text", 2.0), ("tags", 0.5))
    ]
    for prompt in ("fox", "owl and a bear", "goat hare lynx"):
        expected = {}
        for part in parts:
            for pair in part.search(prompt, k=40):
                expected[pair.id] = expected.get(pair.id, 0) + pair.score
        found = memory.search(prompt, k=40)
        assert {pair.id: pytest.approx(pair.score, rel=1e-5) for pair in found} == expected
        assert [pair.score for pair in found] == sorted((pair.score for pair in found), reverse=True)


def test_a_retriever_is_asked_once_for_a_batch(grouped):
    retriever = FixedOrder(np.random.default_rng(0).permutation(200))
    found = grouped.search_batch(["one", "two", " "], k=2, retriever=retriever)
    assert retriever.asked == [(["one", "two"], 8)] and found[2] == []
    groups = []
    for row in retriever.order:
        if grouped[int(row)].metadata["group"] not in {group for group, _ in groups}:
            groups.append((grouped[int(row)].metadata["group"], str(row)))
    assert ids(found[0]) == ids(found[1]) == [id for _, id in groups[:2]]
    assert found[0][0].score == pytest.approx(1 / 2)
    assert ids(grouped.search("one", k=500, retriever=retriever)) == [id for _, id in groups]


def test_more_is_asked_for_until_enough_is_left(grouped):
    order = np.arange(200)
    excluded = [str(number) for number in range(150)]
    retriever = FixedOrder(order)
    (found,) = grouped.search_batch(["any"], k=1, exclude=[excluded], retriever=retriever)
    assert ids(found) == ["150"]
    same = [number for number in range(200) if grouped[number].metadata["group"] == grouped[0].metadata["group"]]
    first = FixedOrder([*same, *(number for number in order if number not in same)])
    found = grouped.search("any", k=2, retriever=first)
    assert ids(found) == ["0", str(first.order[len(same)])]
    assert ids(grouped.search("any", k=1, prefer=[str(same[-1])], retriever=first)) == [str(same[-1])]


def test_a_retriever_is_asked_for_the_place_first(kinds):
    retriever = FixedOrder(range(60))
    pairs = kinds.search("A fox walks in the wolf", retriever=retriever)
    assert [(pair.id, pair.kind) for pair in pairs] == [("0", "subject"), ("50", "place")]
    texts = [text for (text,), _ in retriever.asked]
    assert set(texts[:-1]) == {" the wolf"} and texts[-1].split() == ["A", "fox", "walks", "wolf"]
    retriever.asked.clear()
    named = kinds[50].text  # the words of the place that was found say nothing of the subject
    kinds.search(f"A fox walks in the {named} {named}", retriever=retriever)
    assert retriever.asked[-1][0][0].split() == ["A", "fox", "walks", *named.split()]


def test_a_prompt_without_a_cue_asks_for_no_place(kinds):
    retriever = FixedOrder(range(60))
    assert [pair.kind for pair in kinds.search("A fox", retriever=retriever)] == ["subject"]
    assert [pair.kind for pair in kinds.search("A fox", k={"subject": 3}, retriever=retriever)] == 3 * ["subject"]
    kind_of = {
        kind: {pair.metadata["concept"] for pair in kinds if pair.kind == kind} for kind in ("subject", "place")
    }
    assert len(kinds.search("A fox in a wolf", k=99, retriever=retriever)) == sum(map(len, kind_of.values()))


def test_a_retriever_of_fewer_candidates(kinds):
    class Few(FixedOrder):
        def retrieve(self, queries, k):
            rows, scores = super().retrieve(queries, k)
            rows[:, 3:], scores[:, 3:] = -1, 0
            return rows, scores

    retriever = Few(range(60))
    assert ids(kinds.search("A fox", k=99, retriever=retriever)) == ids(
        kinds.search("A fox", k=3, retriever=retriever)
    )
    assert {pair.kind for pair in kinds.search("In a fox", k=99, retriever=retriever)} == {"subject"}


def test_a_retriever_of_another_memory(kinds):
    with pytest.raises(ValueError, match="The retriever has 61 documents, the memory 60 pairs"):
        kinds.search("A fox", retriever=FixedOrder(range(61)))
