"""The retrieval evaluation on a small emoji world, and its interval."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from vimi_diffusers.retrieval import ImageTextPair


pytest.importorskip("faiss", reason="dense retrieval needs the extra `retrieval`")
pytest.importorskip("sentence_transformers", reason="dense retrieval needs the extra `retrieval`")

from vimi_diffusers.evaluation import retrieval as evaluation  # noqa: E402
from vimi_diffusers.evaluation.free_prompts import FREE_PROMPTS, FreePrompt  # noqa: E402
from vimi_diffusers.retrieval.encoder import Encoder  # noqa: E402


class LetterCounts(Encoder):
    """Counts of letters as vectors, in place of a model."""

    def __init__(self):
        self.name, self.dimension, self.batch_size = "letters", 26, 64

    def encode_documents(self, documents):
        counts = np.array(
            [[one.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for one in documents]
        )
        counts = counts.astype(np.float32) + 1e-3
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    encode_queries = encode_documents

    def identity(self):
        return {"name": self.name, "probe": [0.0]}


def pair(kind, concept):
    return ImageTextPair(concept, concept, image=b"", kind=kind, metadata={"concept": concept})


def query(right, place=None, cluster="c"):
    return evaluation.Query("a prompt", frozenset([right]), place, cluster)


def test_hits_are_counted():
    subjects = [pair("subject", name) for name in ("cat", "dog", "fox", "owl")]
    queries = [
        query("cat", "park", "a"),
        query("owl", cluster="a"),
        query("bee", "park", "b"),
        query("dog", None, "b"),
    ]
    found = [[*subjects, pair("place", "park")], subjects, subjects, [*subjects, pair("place", "sea")]]
    scores = evaluation.score(queries, found)
    assert {name: value["share"] for name, value in scores.items()} == {
        "subject@1": 1 / 4,
        "subject@4": 3 / 4,
        "place@1": 2 / 4,  # the one named, and none where none is named
    }
    assert (scores["subject@4"]["low"], scores["subject@4"]["high"]) == evaluation.wilson(0.75, 2)


@pytest.mark.parametrize(("hits", "number"), [(0, 7), (3, 10), (89, 89), (50, 123)])
def test_the_interval_is_scipys(hits, number):
    expected = stats.binomtest(hits, number).proportion_ci(method="wilson")
    np.testing.assert_allclose(evaluation.wilson(hits / number, number), (expected.low, expected.high), atol=1e-6)


def test_captions_exclude_the_clips_own_drawing(index):
    clips = [concept for concept in index.concepts.values() if concept.clip]
    ids = [f"{style}/{concept.concept}" for concept in clips for style in ("flat", "noto")]
    queries = evaluation.caption_queries(index, clips, "canonical", ids)
    assert len(queries) == 5 * len(clips) and queries == evaluation.caption_queries(index, clips, "canonical", ids)
    for query in queries:
        (concept,) = query.concepts
        assert query.exclude == (f"flat/{concept}",)
        assert index.places[query.place].phrase.split()[-1] in query.text
    assert {query.place for query in evaluation.caption_queries(index, clips, "placeless", ids)} == {None}


def test_free_prompts_without_a_label_word(index, monkeypatch):
    concept = next(iter(index.concepts.values()))
    prompts = [
        FreePrompt(concept.key, "park", f"Some {concept.label.upper()}s, and the {concept.label}"),
        FreePrompt(concept.key, None, "Quite other words"),
    ]
    monkeypatch.setattr(evaluation, "FREE_PROMPTS", prompts)
    sets = evaluation.free_queries(index)
    assert [query.text for query in sets["free wording"]] == [prompt.text for prompt in prompts]
    assert [query.text for query in sets["free, no label word"]] == ["Quite other words"]
    right = {one.concept for one in index.concepts.values() if one.key == concept.key}
    assert sets["free wording"][0].concepts == right and sets["free wording"][0].place == "park"


def test_the_free_prompts_are_distinct():
    assert len({prompt.text for prompt in FREE_PROMPTS}) == len(FREE_PROMPTS) == 123


def test_a_whole_evaluation(world, tmp_path):
    results = evaluation.evaluate_retrieval(world, tmp_path / "out", LetterCounts())
    assert results == json.loads((tmp_path / "out" / "retrieval.json").read_text())
    rows = {(row["system"], row["indexed"], row["prompts"]): row for row in results["rows"]}
    assert len(rows) == 13 * 5 == len(results["rows"])
    shipped = rows["bm25 recipe", "label + keywords", "canonical"]
    assert shipped["subject@1"]["share"] == shipped["place@1"]["share"] == 1
    assert shipped["clusters"] == results["held_out_concepts"] == 2
    with open(tmp_path / "out" / "retrieval.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(rows)
    for line in table:
        row = rows[line["system"], line["indexed"], line["prompts"]]
        assert float(line["subject@4 share"]) == pytest.approx(row["subject@4"]["share"], abs=1e-4)
        assert float(line["place@1 high"]) == pytest.approx(row["place@1"]["high"], abs=1e-4)
    tables = (tmp_path / "out" / "retrieval.md").read_text().split("\n\n")
    assert [len(one.splitlines()) for one in tables if one] == [15, 15, 15]
    assert tables[0].splitlines()[4].startswith("| bm25 recipe | label + keywords | 100.0 (34-100) |")
