"""A memory's storage: built as a stream, read by row group, extended, checked, whole or not at all."""

import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vimi_diffusers.retrieval import BM25Field, ImageTextMemory, RetrievalRecipe
from vimi_diffusers.retrieval.memory import building, lookup, shards, storage


WORDS = "fox wolf bear owl crab deer frog goat hare lynx".split()
PIXELS = {}


def image(number):
    """Encoded, of a colour that tells the number."""
    if number not in PIXELS:
        data = io.BytesIO()
        Image.new("RGB", (2, 2), (number // 256, number % 256, 0)).save(data, "BMP")
        PIXELS[number] = data.getvalue()
    return PIXELS[number]


def pair(number, **values):
    text = f"A {WORDS[number % 10]} and a {WORDS[number // 10 % 10]}, picture{number}"
    return {"id": f"pair {number}", "text": text, "image": image(number), **values}


def number_of(found):
    red, green, _ = found.image.getpixel((0, 0))
    return 256 * red + green


def contents(memory):
    return [(one.id, one.text, one.kind, dict(one.metadata), one.encoded) for one in memory]


def results(memory, prompts=("a fox", "a wolf and a bear, picture12", "owl crab", "zebra"), k=7):
    return [[(one.id, one.score) for one in found] for found in memory.search_batch(prompts, k=k)]


@pytest.fixture
def small_parts(monkeypatch):
    """Row groups of 4 pairs, shards of 12, sorted ids of 24."""
    monkeypatch.setattr(shards, "_GROUP_PAIRS", 4)
    monkeypatch.setattr(shards, "_SHARD_PAIRS", 12)
    monkeypatch.setattr(building, "SEGMENT_PAIRS", 20)


@pytest.fixture
def memory(tmp_path, small_parts):
    return ImageTextMemory.create(tmp_path / "memory", map(pair, range(57)))


def test_many_parts_are_one_memory(memory, tmp_path):
    names = sorted(os.listdir(memory._folder / "data"))
    assert names == [f"train-{number:05d}-of-00005.parquet" for number in range(5)]
    assert len(list((memory._folder / "lookup").glob("ids-*"))) == 3
    assert contents(memory) == [(f"pair {n}", pair(n)["text"], None, {}, image(n)) for n in range(57)]
    assert memory.ids == [f"pair {number}" for number in range(57)]
    assert [*memory.texts()] == [pair(number)["text"] for number in range(57)]
    assert [number_of(one) for one in memory.take([56, 0, 30, -1])] == [56, 0, 30, 56]
    for number in range(57):
        assert number_of(memory[f"pair {number}"]) == number and f"pair {number}x" not in memory
    with pytest.raises(IndexError):
        memory.take([57])


def test_parts_do_not_change_what_is_found(memory, tmp_path, monkeypatch):
    monkeypatch.undo()
    whole = ImageTextMemory.create(tmp_path / "whole", map(pair, range(57)))
    assert len(os.listdir(tmp_path / "whole/data")) == 1
    assert results(memory) == results(whole) and contents(memory) == contents(whole)


def test_rows_are_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(shards, "_SHARD_BYTES", 8 << 20)
    noise = np.random.default_rng(0).bytes(200_000)

    def rows():
        for number in range(200):
            yield {"id": str(number), "text": f"number{number}", "image": number.to_bytes(4, "little") + noise}

    tracemalloc.start()
    memory = ImageTextMemory.create(tmp_path / "memory", rows(), bad_images="keep")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6 < 40e6 < sum(file.stat().st_size for file in (tmp_path / "memory/data").iterdir())
    assert len(os.listdir(tmp_path / "memory/data")) == 5
    assert memory.search("number150")[0].encoded[:4] == (150).to_bytes(4, "little")


def test_an_image_is_read_with_few_others(tmp_path):
    ImageTextMemory.create(tmp_path / "memory", map(pair, range(250)))
    (file,) = (tmp_path / "memory/data").iterdir()
    metadata = pq.ParquetFile(file).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [100, 100, 50]


@pytest.mark.parametrize("again", [(0, 56), (3, 5), (20, 40)])
def test_an_id_that_is_given_twice(tmp_path, small_parts, again):
    first, second = again
    rows = [pair(number) for number in range(57)]
    rows[second]["id"] = rows[first]["id"]
    with pytest.raises(ValueError, match=f"Id 'pair {first}' is that of two pairs, {first} and {second}"):
        ImageTextMemory.create(tmp_path / "memory", rows)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("twice", [False, True])
def test_ids_with_equal_hashes_are_told_apart(tmp_path, small_parts, monkeypatch, twice):
    monkeypatch.setattr(lookup, "hash_of", lambda text: int(text.split()[1]) % 5)  # every hash is that of many ids
    rows = [pair(number) for number in range(57)]
    if twice:
        rows[50]["id"] = "pair 17"
        with pytest.raises(ValueError, match="Id 'pair 17' is that of two pairs, 17 and 50"):
            ImageTextMemory.create(tmp_path / "memory", rows)
        return
    memory = ImageTextMemory.create(tmp_path / "memory", rows)
    assert [number_of(memory[f"pair {number}"]) for number in range(57)] == [*range(57)]
    assert "pair 105" not in memory


@settings(max_examples=15, deadline=None)
@given(
    ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=30, unique=True)
)
def test_any_ids(tmp_path_factory, ids):
    rows = [{"id": id, "text": "a fox", "image": image(number)} for number, id in enumerate(ids)]
    memory = ImageTextMemory.create(tmp_path_factory.mktemp("ids") / "memory", rows)
    assert memory.ids == ids
    assert [number_of(memory[id]) for id in ids] == [*range(len(ids))]


# Adding pairs


def test_added_pairs_are_as_if_they_had_always_been_there(memory, tmp_path):
    assert memory.add(map(pair, range(57, 80))) == 23
    assert memory.add(map(pair, range(80, 81))) == 1
    whole = ImageTextMemory.create(tmp_path / "whole", map(pair, range(81)))
    for one in (memory, ImageTextMemory.load(memory._folder, verify=True)):
        assert results(one) == results(whole) and contents(one) == contents(whole)
        assert number_of(one["pair 80"]) == 80 and "pair 81" not in one


def test_added_pairs_of_kinds_and_groups(tmp_path, small_parts):
    def row(number):
        kind = {"kind": "place", "concept": f"p{number % 3}"} if number % 4 == 0 else {"kind": "subject"}
        return pair(number, keywords=[WORDS[number % 7], "thing"], **kind)

    memory = ImageTextMemory.create(tmp_path / "memory", map(row, [*range(1, 4), *range(5, 8)]))  # subjects alone
    memory.add(map(row, [0, 4, *range(8, 30)]))
    order = [*range(1, 4), *range(5, 8), 0, 4, *range(8, 30)]
    whole = ImageTextMemory.create(tmp_path / "whole", map(row, order))
    prompts = ["A fox in a wolf", "a bear, picture2 and thing in a crab, picture4", "thing on thing", "goat"]
    assert results(memory, prompts) == results(whole, prompts) and contents(memory) == contents(whole)
    assert repr(memory) == "ImageTextMemory(30 pairs, 22 of kind 'subject', 8 of kind 'place')"
    with pytest.raises(ValueError, match="of kind 'thing', which is none of the recipe's"):
        memory.add([pair(100, kind="thing")])


def test_readers_of_the_memory_before_go_on(memory):
    before = ImageTextMemory.load(memory._folder)  # opens a shard when it is asked for it
    far = pickle.loads(pickle.dumps(before))
    memory.add(map(pair, range(57, 70)))
    assert len(before) == 57 and "pair 60" not in before
    assert [number_of(one) for one in before] == [*range(57)]
    assert results(before) == results(far)
    other = ImageTextMemory.load(memory._folder)
    assert len(other) == len(far) + 13 == 70


def test_nothing_to_add(memory):
    before = sorted(memory._folder.rglob("*"))
    assert memory.add([]) == 0 and memory.add([pair(70, text=" ")]) == 0
    assert sorted(memory._folder.rglob("*")) == before and memory.num_dropped == 0
    memory.add([pair(70, text=" "), pair(71)])
    assert memory.num_dropped == 1 and ImageTextMemory.load(memory._folder).num_dropped == 1


@pytest.mark.parametrize(
    "rows, message",
    [
        ([pair(60), pair(3)], "Id 'pair 3' is that of two pairs, 3 and 58"),
        ([pair(60), pair(60)], "Id 'pair 60' is that of two pairs, 57 and 58"),
        ([pair(60), pair(61, image=b"junk")], "row 1 is not a readable image"),
        ([pair(60), pair(61, id=None)], "row 1: the id is empty"),
        ([pair(60), pair(61, text="\ud83d")], "row 1: a text is no valid Unicode"),
        (["pair"], "row 0 must be a mapping"),
    ],
)
def test_what_cannot_be_added_leaves_no_trace(memory, rows, message):
    files = {file: file.stat().st_mtime_ns for file in memory._folder.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=message):
        memory.add(rows)
    assert {file: file.stat().st_mtime_ns for file in memory._folder.rglob("*") if file.is_file()} == files
    assert memory.add([pair(60)]) == 1


def test_a_process_killed_while_adding(memory, tmp_path):
    code = (
        "import os, sys; from vimi_diffusers.retrieval.memory import ImageTextMemory, storage;"
        "storage.Manifest.write = lambda self, folder: os._exit(9);"
        "ImageTextMemory.load(sys.argv[1]).add([{'id': 'x', 'text': 'an x', 'image': open(sys.argv[2], 'rb').read()}])"
    )
    (tmp_path / "x.bmp").write_bytes(image(1))
    done = subprocess.run([sys.executable, "-c", code, str(memory._folder), str(tmp_path / "x.bmp")])
    assert done.returncode == 9 and len(os.listdir(memory._folder / "data")) == 6  # its shard is there
    assert len(ImageTextMemory.load(memory._folder)) == 57
    memory.add([pair(57)])
    assert len(os.listdir(memory._folder / "data")) == 6 and "x" not in memory and len(memory) == 58
    assert number_of(ImageTextMemory.load(memory._folder, verify=True)["pair 57"]) == 57


def test_one_process_adds_at_a_time(memory):
    other = ImageTextMemory.load(memory._folder)

    def rows():
        with pytest.raises(ValueError, match="Another process is adding pairs"):
            other.add([pair(70)])
        yield pair(71)

    assert memory.add(rows()) == 1
    assert other.add([pair(70)]) == 1  # it goes on from what the other left
    assert len(other) == 59 and number_of(other["pair 71"]) == 71 and number_of(other["pair 70"]) == 70


# Reading what is damaged


def test_another_memory_in_the_same_place_is_not_taken_for_this_one(memory, small_parts, monkeypatch):
    monkeypatch.setattr(storage, "_FEW_SHARDS", 0)
    opened = ImageTextMemory.load(memory._folder)
    assert number_of(opened[0]) == 0
    ImageTextMemory.create(memory._folder, [pair(number, text="a fox") for number in range(57)])
    with pytest.raises(ValueError, match="shard .* bytes instead of|was replaced since it was opened"):
        opened[50]
    assert number_of(opened[1]) == 1  # of a shard that is open


def test_damage_is_found_when_it_is_read(memory):
    file = sorted((memory._folder / "data").iterdir())[2]
    data = bytearray(file.read_bytes())
    data[data.index(image(25))] ^= 0xFF
    file.write_bytes(bytes(data))
    opened = ImageTextMemory.load(memory._folder, verify=False)
    assert number_of(opened[3]) == 3 and opened[25].text
    with pytest.raises(OSError, match="data/train-00002-of-00005.parquet cannot be read"):
        opened[25].image
    with pytest.raises(ValueError, match="train-00002-of-00005.parquet has other content"):
        ImageTextMemory.load(memory._folder)
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="train-00002-of-00005.parquet has 100 bytes instead of"):
        ImageTextMemory.load(memory._folder, verify=False)


@pytest.mark.parametrize("name", ["ids-00001", "rows-00000"])
def test_a_missing_array_is_named(memory, name):
    (memory._folder / "lookup" / f"{name}.npy").unlink()
    with pytest.raises(ValueError, match=f"is damaged .lookup/{name}.npy is missing"):
        ImageTextMemory.load(memory._folder)


def test_large_memories_are_not_read_to_be_opened(memory, monkeypatch):
    def read(file):
        raise AssertionError(f"{file} is read")

    monkeypatch.setattr("vimi_diffusers.retrieval.memory.storage.sha256_of", read)
    with pytest.raises(AssertionError, match="is read"):
        ImageTextMemory.load(memory._folder)
    monkeypatch.setattr("vimi_diffusers.retrieval.memory.storage._SMALL", 100)
    monkeypatch.setattr(pq, "ParquetFile", read)
    assert len(ImageTextMemory.load(memory._folder)) == 57


def test_a_memory_of_the_format_before(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": storage.FORMAT, "version": 1, "num_pairs": 3}))
    with pytest.raises(ValueError, match="format version 1, this package reads 2: build it again with `vimi memory"):
        ImageTextMemory.load(tmp_path)


# Rows of many kinds


def test_images_in_every_form(tmp_path):
    (tmp_path / "a.bmp").write_bytes(image(1))
    path = str(tmp_path / "a.bmp")
    forms = [image(0), tmp_path / "a.bmp", path, {"bytes": image(2), "path": None}, {"bytes": None, "path": path}]
    forms += [Image.open(io.BytesIO(image(3))), bytearray(image(4))]
    rows = [{"id": str(number), "text": "a fox", "image": form} for number, form in enumerate(forms)]
    memory = ImageTextMemory.create(tmp_path / "memory", rows)
    assert [number_of(one) for one in memory] == [0, 1, 1, 2, 1, 3, 4]
    assert memory[5].encoded.startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [None, b"junk", {"bytes": None, "path": None}, 7, "nowhere.png", image(1)[:30]])
def test_bad_images(tmp_path, value):
    rows = [pair(0), pair(1, image=value), pair(2, text=""), pair(3)]
    with pytest.raises(ValueError, match="row 1.*(is not a readable image|nowhere.png is missing)"):
        ImageTextMemory.create(tmp_path / "memory", rows)
    memory = ImageTextMemory.create(tmp_path / "memory", rows, bad_images="drop")
    assert memory.ids == ["pair 0", "pair 3"] and memory.num_dropped == 2
    assert [number_of(one) for one in memory] == [0, 3]
    with pytest.raises(ValueError, match="`bad_images` is one of raise, drop, keep, not 'ignore'"):
        ImageTextMemory.create(tmp_path / "memory", rows, bad_images="ignore")


def test_odd_texts(tmp_path):
    huge = "word " * 200_000 + "needle"
    texts = [huge, "un caf\u00e9 \U0001f98a", "un cafe\u0301", "\u72d0\u72f8", "\U0001f98a\U0001f98a", "\u200b fox"]
    memory = ImageTextMemory.create(tmp_path / "memory", [pair(n, text=text) for n, text in enumerate(texts)])
    assert [*memory.texts()] == [text.strip() for text in texts]
    assert [one.id for one in memory.search("needle", k=99)] == ["pair 0"]
    assert [one.id for one in memory.search("caf\u00e9", k=99)] == ["pair 1", "pair 2"]
    assert [one.id for one in memory.search("\u72d0\u72f8")] == ["pair 3"]
    assert memory.search("\U0001f98a") == [] and memory.search(huge, k=1)[0].id == "pair 0"


def test_metadata_of_every_kind(tmp_path):
    values = {"n": 1, "f": 0.5, "list": ["a", "b"], "none": None, "nested": {"a": [1]}, "path": tmp_path}
    memory = ImageTextMemory.create(tmp_path / "memory", [pair(0, **values)])
    assert memory[0].metadata == {**values, "path": str(tmp_path)}


def test_a_recipe_is_checked_before_images_are_read(tmp_path):
    recipe = RetrievalRecipe(kinds=("subject",))
    with pytest.raises(ValueError, match="'pair 1' is of kind None"):
        ImageTextMemory.create(tmp_path / "memory", [pair(0, kind="subject"), pair(1, image=b"junk")], recipe)
    with pytest.raises(ValueError, match="uses 'tags', which no pair has"):
        ImageTextMemory.create(tmp_path / "memory", [pair(0)], RetrievalRecipe(fields=(BM25Field("tags"),)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()

    def never():
        raise AssertionError("the rows are read")
        yield

    with pytest.raises(FileExistsError, match="other content"):
        ImageTextMemory.create(tmp_path / "other", never())
