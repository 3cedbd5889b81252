"""An index on disk: created in a stream, added to, saved, loaded, and refused by name when it is damaged."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vimi_diffusers.retrieval import BM25Index
from vimi_diffusers.retrieval.bm25.vocabulary import Vocabulary


DOCUMENTS = [
    "red fox snow".split(),
    "grey wolf deep snow snow".split(),
    [],
    "sea turtle".split(),
    "old sea chart cold sea ruins".split(),
    "desert fox".split(),
    "\U0001f98a caf\u00e9".split(),
]
QUERIES = [["fox"], ["snow", "sea", "fox"], ["caf\u00e9"], ["zebra"], [], ["snow", "snow", "wolf"]]
corpora = st.lists(st.lists(st.sampled_from("fox wolf sea old snow".split()), max_size=5), max_size=8)


def assert_same_index(index, other, queries=QUERIES):
    assert len(index) == len(other)
    for query in queries:
        assert index.scores(query).tolist() == other.scores(query).tolist()
    for values, expected in zip(index.search(queries, 4), other.search(queries, 4)):
        np.testing.assert_array_equal(values, expected)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    BM25Index.create(tmp_path / "index", DOCUMENTS, shard_size=3)
    return tmp_path / "index"


def test_created_saved_and_built_indexes_are_the_same(tmp_path, folder):
    built = BM25Index.build(DOCUMENTS)
    built.save(tmp_path / "saved")
    created = BM25Index.load(folder)
    created.save(tmp_path / "again")
    assert (created.num_shards, created.k1, created.b) == (3, 1.5, 0.75)
    assert files(tmp_path / "again") == files(folder)
    for path in (folder, tmp_path / "saved"):
        for mmap in (True, False):
            assert_same_index(BM25Index.load(path, mmap=mmap), built)
    assert isinstance(created._shards[0].scores.base, np.memmap)


def test_documents_are_a_stream_and_files_always_the_same(tmp_path, folder):
    alive = 0

    class Words(list):
        def __init__(self, words):
            nonlocal alive
            super().__init__(words)
            alive += 1

        def __del__(self):
            nonlocal alive
            alive -= 1

    def documents():
        for words in DOCUMENTS:
            assert alive <= 1
            yield Words(words)

    BM25Index.create(tmp_path / "other", documents(), shard_size=3)
    assert files(tmp_path / "other") == files(folder)


@settings(max_examples=40, deadline=None)
@given(st.lists(corpora, min_size=1, max_size=4), st.integers(1, 5))
def test_adding_is_building_anew(tmp_path_factory, parts, shard_size):
    folder = tmp_path_factory.mktemp("index") / "bm25"
    index = BM25Index.create(folder, parts[0], shard_size=shard_size)
    for part in parts[1:]:
        index.add(part, shard_size=shard_size)
    whole = BM25Index.create(folder.parent / "whole", [words for part in parts for words in part])
    assert_same_index(index, whole)
    assert_same_index(BM25Index.load(folder), whole)
    named = json.loads((folder / "manifest.json").read_text())
    entries = [named["vocabulary"], *(shard["files"] for shard in named["shards"])]
    assert {file["path"] for entry in entries for file in entry.values()} | {"manifest.json"} == set(
        os.listdir(folder)
    )


def test_adding_to_an_open_part(folder):
    part = BM25Index.load(folder, shards=[1])
    part.add([["fox", "turtle"]])
    whole = BM25Index.build([*DOCUMENTS, ["fox", "turtle"]])
    assert len(part) == len(whole) and part.num_shards == 4
    assert part.scores(["turtle"])[3] == whole.scores(["turtle"])[3]
    assert part.search([["turtle"]], 3)[0].tolist() == [[3, -1, -1]]


def test_an_interrupted_addition_leaves_the_old_index(folder, monkeypatch):
    before = files(folder)

    def documents():
        yield ["new", "words"]
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        BM25Index.load(folder).add(documents(), shard_size=1)
    assert files(folder) == before

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("vimi_diffusers.retrieval.bm25.storage.Manifest.write", fail)
    with pytest.raises(OSError, match="disk full"):
        BM25Index.load(folder).add([["new", "words"]])
    assert files(folder) == before


def test_what_a_killed_addition_left_is_removed_by_the_next(folder):
    (folder / "00003.terms.0a1b2c3d.npy").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    index = BM25Index.load(folder)
    index.add([["fox"]])
    assert not (folder / "00003.terms.0a1b2c3d.npy").exists() and (folder / "notes.txt").exists()
    assert_same_index(BM25Index.load(folder), BM25Index.build([*DOCUMENTS, ["fox"]]))


def test_an_index_open_elsewhere_lives_through_an_addition(folder):
    reader = BM25Index.load(folder)
    writer = BM25Index.load(folder)
    writer.add([["fox", "fox"]])
    assert_same_index(reader, BM25Index.build(DOCUMENTS))
    with pytest.raises(ValueError, match="was changed since it was opened"):
        reader.add([["wolf"]])


def test_an_interrupted_creation_leaves_nothing(tmp_path):
    def documents():
        yield from DOCUMENTS
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        BM25Index.create(tmp_path / "index", documents(), shard_size=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_nothing_to_index(tmp_path, documents):
    index = BM25Index.create(tmp_path / "index", documents)
    assert len(index) == len(documents)
    assert index.search([["fox"], []], 2)[0].tolist() == [[-1, -1]] * 2
    assert index.scores(["fox"]).tolist() == [0] * len(documents)
    index.add(DOCUMENTS)
    assert_same_index(index, BM25Index.build([*documents, *DOCUMENTS]))


# Damage


KINDS = ("terms", "starts", "documents", "counts", "lengths", "frequent", "bits", "scores", "bounds")


@pytest.mark.parametrize("name", [f"00001.{kind}" for kind in KINDS] + ["vocabulary.letters", "vocabulary.hashes"])
@pytest.mark.parametrize(
    "damage, message",
    [("remove", "is missing"), ("cut", r"has \d+ bytes instead of"), ("change", "has other content")],
)
def test_a_damaged_file_is_refused_by_name(folder, name, damage, message):
    path = folder / f"{name}.npy"
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "cut" else bytes([content[-1] ^ 1])))
    what = "shard 1" if name[0] == "0" else "the vocabulary"
    with pytest.raises(ValueError, match=f"damaged \\({what}: {name}.npy {message}.*build it again"):
        BM25Index.load(folder)
    if name[0] == "0":
        assert len(BM25Index.load(folder, shards=[0, 2])) == len(DOCUMENTS)  # the others are whole
    if damage != "change":
        with pytest.raises(ValueError, match=message):
            BM25Index.load(folder, verify=False)


def test_a_file_that_holds_no_array_is_refused(folder):
    path = folder / "00001.scores.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ValueError, match="shard 1: 00001.scores.npy is not readable"):
        BM25Index.load(folder, verify=False)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "{" + text, "manifest.json is not readable"),
        (lambda text: text.replace('"k1"', '"k2"'), "manifest.json is not readable"),
        (lambda text: text.replace('"words"', '"word"'), "manifest.json is not readable"),
        (lambda text: text.replace('"bits"', '"bit"'), "names no bits of shard 0"),
        (lambda text: text.replace('"version": 2', '"version": 3'), "in version 3, this package reads .* version 2"),
        (lambda text: text.replace("vimi_diffusers.BM25Index", "other"), "holds 'other'"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        BM25Index.load(folder)


def test_folders_that_are_no_index(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no BM25 index at"):
        BM25Index.load(tmp_path / "nowhere")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no whole BM25 index"):
        BM25Index.load(folder)
    with pytest.raises(ValueError, match="exists already"):
        BM25Index.create(folder, DOCUMENTS)
    with pytest.raises(ValueError, match="exists already"):
        BM25Index.build(DOCUMENTS).save(folder)


def test_wrong_uses(tmp_path, folder):
    with pytest.raises(ValueError, match="has no shard 3: it has 3"):
        BM25Index.load(folder, shards=[0, 3])
    with pytest.raises(ValueError, match="1 of 3 shards are open"):
        BM25Index.load(folder, shards=[1]).save(tmp_path / "part")
    with pytest.raises(ValueError, match="in memory alone"):
        BM25Index.build(DOCUMENTS).add([["fox"]])


def test_words_that_share_a_hash():
    # CRC-32 of both is 1306201125
    words = ["plumless", "fox", "buckeroo", ""]
    vocabulary = Vocabulary.from_words(words)
    assert vocabulary.numbers([*reversed(words), "wolf"]).tolist() == [3, 2, 1, 0, -1]
    assert list(vocabulary) == words and len(vocabulary) == 4
    assert Vocabulary.from_words(words[:2]).numbers(["buckeroo"]).tolist() == [-1]
    assert len(set(np.asarray(vocabulary.arrays["hashes"]).tolist())) == 3
