"""Ratings by people: what is exported, what comes back, and figures with published values."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from drawn_memory import draw_memory
from PIL import Image
from scipy import stats

from vimi_diffusers.evaluation import ratings


PROMPTS = {"p1": "A fox in a park", "p2": 'A sea turtle, "swimming" </script>', "p3": "A fox over the sea"}


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    return draw_memory(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def found(memory):
    pairs = memory.search_batch(list(PROMPTS.values()), 1)
    return {"first": pairs, "second": [[memory["sea"].__class__("sea", "A calm sea", memory["sea"].image, 0.5)]] * 3}


@pytest.fixture(scope="module")
def export(memory, found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "out"
    ratings.export_ratings(memory, PROMPTS, found, folder)
    return folder


def table(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def page_data(folder):
    page = (folder / "rate.html").read_text(encoding="utf-8")
    return page, json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


def test_each_prompt_and_pair_is_an_item_once(export, found):
    items, key = table(export / "items.csv"), table(export / "key.csv")
    wanted = {
        (prompt, pair.id, system, str(rank))
        for system, of_prompts in found.items()
        for prompt, pairs in zip(PROMPTS, of_prompts)
        for rank, pair in enumerate(pairs, 1)
    }
    assert {(row["prompt_id"], row["pair"], row["system"], row["rank"]) for row in key} == wanted
    assert len(key) == len(wanted)
    assert {row["id"] for row in items} == {row["id"] for row in key}
    assert len(items) == len({(prompt, pair) for prompt, pair, _, _ in wanted}) < len(key)
    assert {row["rating"] for row in items} == {""}
    assert {row["prompt"] for row in items} == set(PROMPTS.values())


def test_ids_are_stable_and_the_order_is_the_seeds(memory, found, export, tmp_path):
    orders = {}
    for seed in range(4):
        ratings.export_ratings(memory, PROMPTS, found, tmp_path / str(seed), seed)
        orders[seed] = [row["id"] for row in table(tmp_path / str(seed) / "items.csv")]
    assert orders[0] == [row["id"] for row in table(export / "items.csv")]
    assert len({tuple(order) for order in orders.values()}) > 1
    assert len({tuple(sorted(order)) for order in orders.values()}) == 1
    ratings.export_ratings(memory, PROMPTS, {"second": found["second"]}, tmp_path / "fewer")
    assert {row["id"] for row in table(tmp_path / "fewer" / "items.csv")} < set(orders[0])


def test_the_page_is_whole_and_blind(export, memory):
    page, data = page_data(export)
    items = table(export / "items.csv")
    assert [item["id"] for item in data["items"]] == [row["id"] for row in items]
    assert all(set(item) == {"id", "prompt", "text", "image"} for item in data["items"])
    assert not re.search(r"(src|href)=[\"']?(https?:|//|images/)", page)
    for item, row in zip(data["items"], items):
        shown = base64.b64decode(item["image"].partition("base64,")[2])
        assert shown == (export / row["image"]).read_bytes()
        assert Image.open(io.BytesIO(shown)).size == (32, 32)
    assert {item["prompt"] for item in data["items"]} == set(PROMPTS.values())


def test_odd_exports(memory, found, export, tmp_path):
    with pytest.raises(ValueError, match="choose a new folder"):
        ratings.export_ratings(memory, PROMPTS, found, export)
    with pytest.raises(ValueError, match="nothing to rate"):
        ratings.export_ratings(memory, PROMPTS, {"none": [[], [], []]}, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for content, message in (
        ("prompt_id\n1\n", "no column 'prompt'"),
        ("prompt_id,prompt\n1,\n", "line 2: the id or the prompt is empty"),
        ("prompt_id,prompt\n1,a\n1,b\n", "prompt '1' is there twice"),
        ("prompt_id,prompt\n", "has no prompt"),
        ("prompt_id,prompt\n1,a,b\n", "more values"),
    ):
        (tmp_path / "prompts.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            ratings.read_prompts(tmp_path / "prompts.csv")
    (tmp_path / "prompts.csv").write_text("\ufeffprompt_id,prompt\n1,a fox\n", encoding="utf-8")
    assert ratings.read_prompts(tmp_path / "prompts.csv") == {"1": "a fox"}


def write_ratings(path, rater, values):
    path.write_text("id,rater,rating\r\n" + "".join(f'{id},"{rater}",{value}\r\n' for id, value in values.items()))
    return path


def test_ratings_come_back(export, tmp_path):
    ids = [row["id"] for row in table(export / "items.csv")]
    ann = write_ratings(tmp_path / "a.csv", "Ann, B.", dict.fromkeys(ids, 4))
    bob = write_ratings(tmp_path / "b.csv", "", {ids[0]: 2, ids[1]: ""})
    assert ratings.read_ratings(export, [ann, bob]) == {"Ann, B.": dict.fromkeys(ids, 4), "b": {ids[0]: 2}}
    for values, message in (
        ({"nonsense": 3}, "another export"),
        ({ids[0]: 6}, "'6' is not on the scale 1-5"),
        ({ids[0]: 3.5}, "'3.5' is not on the scale"),
        ({ids[0]: ""}, "hold no rating"),
    ):
        with pytest.raises(ValueError, match=message):
            ratings.read_ratings(export, [write_ratings(tmp_path / "c.csv", "c", values)])
    with pytest.raises(ValueError, match="has rated item .* twice"):
        ratings.read_ratings(export, [ann, ann])
    with pytest.raises(FileNotFoundError, match="no file"):
        ratings.read_ratings(export, [tmp_path / "nothing.csv"])


# Four observers, twelve units, "." for none: "Computing Krippendorff's alpha-reliability"
OBSERVERS = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]


def test_krippendorffs_own_example():
    observers = [
        {str(unit): int(value) for unit, value in enumerate(row.split()) if value != "."} for row in OBSERVERS
    ]
    assert ratings.krippendorff_alpha(observers) == pytest.approx(0.815, abs=5e-4)


def test_agreement_at_the_edges():
    same = {"a": 1, "b": 5, "c": 3}
    assert ratings.krippendorff_alpha([same, same]) == pytest.approx(1)
    assert ratings.krippendorff_alpha([{"a": 1, "b": 5}, {"a": 5, "b": 1}]) < 0
    assert ratings.krippendorff_alpha([same]) is None
    assert ratings.krippendorff_alpha([{"a": 3}, {"a": 3}]) is None
    draws = np.random.default_rng(0).integers(1, 6, (2, 20_000))
    assert abs(ratings.krippendorff_alpha([dict(enumerate(row)) for row in draws.tolist()])) < 0.03


def test_correlations_are_scipys_with_an_interval_around_them():
    draws = np.random.default_rng(0)
    x = draws.integers(1, 6, 60).astype(float)
    y = x + draws.standard_normal(60)
    results = ratings.correlations(x, y)
    assert results["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert results["kendall"]["value"] == pytest.approx(stats.kendalltau(x, y).statistic)
    spread = np.tanh(np.arctanh(results["spearman"]["value"]) + np.array([-1.96, 1.96]) * 1.03 / np.sqrt(57))  # Fisher
    np.testing.assert_allclose([results["spearman"]["low"], results["spearman"]["high"]], spread, atol=0.08)
    assert results == ratings.correlations(x, y)


@pytest.fixture
def returned(export, tmp_path):
    """Two raters who give what is found for p1 5, for p2 3, for p3 1, the second without the pair `sea`."""
    key = {row["id"]: row for row in table(export / "key.csv")}
    value = {"p1": 5, "p2": 3, "p3": 1}
    ann = {id: value[row["prompt_id"]] for id, row in key.items()}
    bob = {id: value[row["prompt_id"]] for id, row in key.items() if row["pair"] != "sea"}
    return [write_ratings(tmp_path / "ann.csv", "ann", ann), write_ratings(tmp_path / "bob.csv", "bob", bob)]


def test_ratings_are_compared_with_scores(export, returned, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("prompt_id,score\np1,0.9\np2,0.2\np3,0.4\n")
    results = ratings.correlate_ratings(export, returned, scores, tmp_path / "out", "first")
    assert results["spearman"]["value"] == pytest.approx(0.5)
    assert results["kendall"]["value"] == pytest.approx(1 / 3)
    assert results["krippendorff_alpha"] == pytest.approx(1)
    assert results["prompts"] == 3 and set(results["raters"]) == {"ann", "bob"}
    assert json.loads((tmp_path / "out" / "correlation.json").read_text()) == results
    assert [row["rating"] for row in table(tmp_path / "out" / "prompts.csv")] == ["5.0000", "3.0000", "1.0000"]
    for content, system, message in (
        ("prompt_id,score\np1,1\np2,2\np3,3\n", None, "say whose"),
        ("prompt_id,score\np1,1\np2,2\np3,3\n", "third", "no pairs of 'third', only of first, second"),
        ("prompt_id,score\np1,1\np2,2\n", "first", "Only 2 prompts"),
        ("prompt_id,score\np1,1\np2,1\np3,1\n", "first", "same score"),
        ("prompt_id,score\np9,1\n", "first", "'p9' is not one of the export's"),
        ("prompt_id,score\np1,good\n", "first", "'good' is no number"),
        ("prompt_id,score\np1,nan\n", "first", "no finite number"),
        ("prompt_id,score\np1,1\np1,1\n", "first", "there twice"),
    ):
        scores.write_text(content)
        with pytest.raises(ValueError, match=message):
            ratings.correlate_ratings(export, returned, scores, tmp_path / "out", system)
