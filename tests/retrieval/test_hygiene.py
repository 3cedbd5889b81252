"""Copies and evaluation material are found and dropped, and the report tells what and why."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from shapes import draw, encode

from vimi_diffusers import ImageTextMemory
from vimi_diffusers.retrieval.hash_tables import NearHashTable
from vimi_diffusers.retrieval.hygiene import (
    Cleaner,
    Fingerprint,
    HygieneReport,
    HygieneRules,
    LeakIndex,
    PromptList,
    fingerprint,
    normalise_text,
)


def row(number: int, image: Image.Image | bytes | None = None, **values) -> dict:
    image = draw(number) if image is None else image
    data = image if isinstance(image, bytes) else encode(image)
    return {"id": f"r{number}", "text": f"picture {number}", "image": data, **values}


hashes64 = st.integers(0, 2**64 - 1)


@given(st.integers(0, 7), st.lists(hashes64, max_size=12), st.lists(st.lists(st.integers(0, 63), max_size=9)))
@settings(max_examples=60, deadline=None)
def test_neighbours_are_those_of_all_pairs(radius, hashes, flips):
    """Also those right at the radius: queries are stored hashes with some bits flipped."""
    queries = hashes[:3]
    for number, bits in enumerate(flips if hashes else ()):
        value = hashes[number % len(hashes)]
        for bit in bits:
            value ^= 1 << bit
        queries.append(value)
    table = NearHashTable(radius)
    for start in range(0, len(hashes), 5):
        table.add(np.array(hashes[start : start + 5], np.uint64))
    found = list(zip(*(part.tolist() for part in table.find(np.array(queries, np.uint64)))))
    assert found == [
        (position, number)
        for position, query in enumerate(queries)
        for number, value in enumerate(hashes)
        if (query ^ value).bit_count() <= radius
    ]


def test_many_hashes_need_no_comparison_of_all_pairs():
    """100,000 hashes, in batches, with 500 near copies among them: all found, and nothing else."""
    dice = np.random.default_rng(0)
    hashes = dice.integers(0, 2**64, 100_000, dtype=np.uint64)
    copies = hashes[:500] ^ np.uint64(0b1001 << 40)
    table = NearHashTable(4)
    for some in np.array_split(hashes, 20):
        table.add(some)
    positions, numbers = table.find(copies)
    assert positions.tolist() == numbers.tolist() == list(range(500))


def test_radius_out_of_range():
    with pytest.raises(ValueError, match="`image_radius` must be 0 to 7 bits or None, got 8"):
        HygieneRules(image_radius=8)
    with pytest.raises(ValueError, match="0 to 7 bits, not -1"):
        NearHashTable(-1)


def test_recoded_and_resized_images_are_the_same():
    rules = HygieneRules()
    originals = [draw(seed, 256) for seed in range(40)]
    copies = [encode(image.resize((150, 150)), "JPEG", quality=70) for image in originals]
    index = LeakIndex(rules, [row(seed, image) for seed, image in enumerate(originals)])
    for number, copy in enumerate(copies):
        assert index.leaks({"text": "x", "image": copy}) == [number]


def test_colour_tells_alike_shapes_apart():
    """pHash sees grey alone: without the colour a red and a yellow disc are one image, and all plain images are."""

    def disc(colour):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=colour)
        return image

    plain = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    images = [disc((200, 30, 30)), disc((60, 60, 220)), *plain]
    rules = HygieneRules()
    prints = [fingerprint(row(number, image), rules) for number, image in enumerate(images)]
    assert len({one.images[0][0] for one in prints[2:]}) == 1  # the hash alone would not do
    index = LeakIndex(rules)
    index.add(prints)
    assert [list(found) for found in index.find(prints)] == [[0], [1], [2], [3], [4]]


def test_sources_are_compared_by_column():
    rules = HygieneRules(source_columns=("video_id", "url"), image_radius=None)
    index = LeakIndex(rules, [{"video_id": 7}, {"url": "7"}, {"metadata": {"video_id": "7", "url": "b"}}, {"url": ""}])
    assert index.leaks({"video_id": "7"}) == [0, 2]
    assert index.leaks({"metadata": {"url": "7"}}) == [1]
    assert index.leaks({"url": "b", "video_id": None}) == [2]
    assert index.leaks({"text": "7"}) == index.leaks({"url": ""}) == []


@pytest.mark.parametrize(
    "one, other",
    [
        ("A fox, running.", " a  FOX “running”"),
        ("Cafe\u0301 au lait", "CAF\u00c9 AU LAIT"),  # combining and composed
        ("\uff21 fox", "a fox"),  # full width
        ("Straße", "STRASSE"),
    ],
)
def test_normalised_texts(one, other):
    assert normalise_text(one) == normalise_text(other)


def test_what_normalising_keeps_apart():
    texts = ["🦊", "🐻", "का", "की", "a fox", "a box", "...", "!!!", "no", ""]
    assert len({normalise_text(text) for text in texts}) == len(texts)
    assert normalise_text("word, " * 200_000) == "word " * 199_999 + "word"


def test_texts_count_only_if_asked():
    twins = [{**row(1), "text": "A dog"}, {**row(2), "text": "a dog!"}]
    assert len(list(Cleaner()(twins))) == 2
    cleaner = Cleaner(HygieneRules(texts=True))
    assert [kept["id"] for kept in cleaner(twins)] == ["r1"]
    assert cleaner.report.counts == {"duplicate/same_text": 1}


def test_cleaner_drops_and_reports():
    known = [row(1), row(50, url="http://a")]
    rows = [
        row(0),
        row(1),  # leaks into `known`
        row(2, encode(draw(0).resize((200, 200)), "JPEG", quality=80)),  # r0 again
        row(3, url="http://a"),  # the source of r50
        {**row(4), "text": "A fox runs"},
        {**row(5), "text": "a FOX runs!"},
        row(6, b"no image"),
        row(7, video_id="v"),
        row(8, video_id="v"),
    ]
    cleaner = Cleaner(against=known, prompts=PromptList(["A fox runs"]))
    assert [kept["id"] for kept in cleaner(iter(rows))] == ["r0", "r7"]
    report = cleaner.report
    assert report.total == 9 and report.dropped == 7
    assert report.counts == {
        "leak/same_image": 1,
        "leak/same_source": 1,
        "duplicate/same_image": 1,
        "duplicate/same_source": 1,
        "evaluation_prompt": 1,
        "evaluation_prompt_normalised": 1,
        "unreadable_image": 1,
    }
    assert report.examples["leak/same_source"] == [{"id": "r3", "text": "picture 3", "of": 1}]
    assert report.examples["duplicate/same_source"][0]["of"] == 1  # r7 is row 1 of those that stayed
    assert str(report).startswith("7 of 9 dropped\n") and "'a FOX runs!'" in str(report)
    again = HygieneReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict()
    again.merge(report)
    assert again.total == 18 and again.counts["leak/same_image"] == 2
    assert len(again.examples["leak/same_image"]) == 2


def test_cleaning_streams():
    """Rows come out while later ones have not been made."""
    made = []

    def rows():
        for number in range(1000):
            made.append(number)
            yield {"id": str(number), "text": str(number), "url": str(number // 2)}

    stream = Cleaner(HygieneRules(image_radius=None))(rows())
    assert next(iter(stream))["id"] == "0" and len(made) < 300
    assert [one["id"] for one in stream] == [str(number) for number in range(2, 1000, 2)]


def test_a_clean_memory_and_a_search_without_leaks(tmp_path):
    rows = [{**row(number), "text": f"a fox, number {number}"} for number in range(6)]
    rows[4] = {**row(1, encode(draw(1), "JPEG")), "id": "copy of r1"}
    cleaner = Cleaner()
    memory = ImageTextMemory.create(tmp_path / "memory", cleaner(rows))
    assert memory.ids == ["r0", "r1", "r2", "r3", "r5"] and cleaner.report.dropped == 1
    index = LeakIndex(
        HygieneRules(), ({"text": pair.text, "image": pair.image, "metadata": pair.metadata} for pair in memory)
    )
    frames = [draw(77), draw(0)]  # the second is the picture of r0
    leaks = [memory[number].id for number in index.leaks({"text": "a fox", "image": frames})]
    assert leaks == ["r0"]
    assert [pair.id for pair in memory.search("a fox", k=2)] == ["r0", "r1"]
    assert [pair.id for pair in memory.search("a fox", k=2, exclude=leaks)] == ["r1", "r2"]


prints = st.builds(
    Fingerprint,
    sources=st.lists(st.integers(0, 4), max_size=1).map(tuple),
    text=st.one_of(st.none(), st.integers(0, 6)),
    images=st.lists(
        st.tuples(st.sampled_from([0, 1, 0b11111, 0b1111100000]), st.sampled_from([(0, 0, 0), (9, 9, 9), (99, 0, 0)])),
        max_size=2,
    ).map(tuple),
)


@given(st.lists(prints, max_size=14), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_batches_keep_what_one_by_one_keeps(given_prints, batch):
    """The first of several stays, compared with those that stayed; the reference goes through all pairs."""
    from unittest.mock import patch

    rules, kept = HygieneRules(), []
    for number, one in enumerate(given_prints):
        if not any(one.leaks(given_prints[other], rules) for other in kept):
            kept.append(number)
    module = "vimi_diffusers.retrieval.hygiene"
    with patch(f"{module}._ROWS", batch), patch(f"{module}.fingerprint", lambda row, rules: row["print"]):
        rows = [{"id": number, "print": one} for number, one in enumerate(given_prints)]
        assert [one["id"] for one in Cleaner(rules)(rows)] == kept


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("A fox runs\n\n  A bear  \n", encoding="utf-8")
    prompts = PromptList.from_file(path)
    assert len(prompts) == 2 and prompts.match("A bear") == "evaluation_prompt"
    assert prompts.match("a bear.") == "evaluation_prompt_normalised" and prompts.match("A bee") is None
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"caption": "A bear"}\n{"prompt": "A fox runs"}\n')
    assert PromptList.from_file(lines).digest() == prompts.digest() != PromptList(["A bear"]).digest()
    lines.write_text('{"caption": "A bear"}\n{"words": "x"}\n')
    with pytest.raises(ValueError, match="line 2 has no `prompt`"):
        PromptList.from_file(lines)
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no prompt"):
        PromptList.from_file(path)
    with pytest.raises(FileNotFoundError, match="no file .*gone.txt"):
        PromptList.from_file(tmp_path / "gone.txt")
