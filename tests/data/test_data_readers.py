import json
import pickle

import pytest
from media_files import encode_image, encode_video, write_folder, write_shard

from vimi_diffusers.data import BadSample, open_source
from vimi_diffusers.data.decoding import probe, read_image
from vimi_diffusers.data.index import examine_all, load_index, save_index


VIDEO = encode_video(num_frames=4)
RED, BLUE = encode_image((8, 8), "red"), encode_image((6, 6), "blue")


def check_full_sample(record):
    """All layouts give the same record."""
    assert record.caption == "A dog in a park" and record.fps == 24 and record.task == "subject"
    assert record.instruction == "Film it."
    assert not probe(record.video).is_image
    assert [(read_image(one.image).size, one.name) for one in record.references] == [((8, 8), "dog")]
    assert [(read_image(one.image).size, one.text) for one in record.context] == [((6, 6), "A park")]


FULL = {
    "caption": "A dog in a park",
    "fps": 24.0,
    "task": "subject",
    "instruction": "Film it.",
    "references": [{"image": "dog.png", "name": "dog"}],
    "context": [{"image": "park.png", "text": "A park"}],
}


def test_folder(tmp_path):
    files = {"a/clip.mp4": VIDEO, "dog.png": RED, "park.png": BLUE}
    rows = [
        {"video": "a/clip.mp4", **FULL},
        "{not json",
        "",
        {"video": "b.mp4", "caption": "x"},
        {"video": "a/clip.mp4"},
    ]
    source = open_source(write_folder(tmp_path / "set", rows, files))
    assert (source.kind, len(source)) == ("folder", 4)
    check_full_sample(source.record(0))
    for number, reason in ((1, "bad_record"), (2, "missing_file"), (3, "missing_caption")):
        with pytest.raises(BadSample) as caught:
            source.record(number)
        assert caught.value.reason == reason and caught.value.key == source.key(number)
    assert source.key(2) == "metadata.jsonl:4"  # the line, as an editor counts
    before = source.identity()
    (tmp_path / "set/metadata.jsonl").write_text("{}")
    assert open_source(tmp_path / "set").identity() != before


def saved_dataset(tmp_path):
    from datasets import Dataset, Features, Image, List, Value, Video

    features = Features(
        {
            "clip": Video(),
            "caption": Value("string"),
            "fps": Value("float64"),
            "task": Value("string"),
            "instruction": Value("string"),
            "references": List({"image": Image(), "name": Value("string")}),
            "context": List({"image": Image(), "text": Value("string")}),
        }
    )
    full = {
        **FULL,
        "clip": {"bytes": VIDEO, "path": None},
        "references": [{"image": {"bytes": RED, "path": "dog.png"}, "name": "dog"}],
        "context": [{"image": {"bytes": BLUE, "path": None}, "text": "A park"}],
    }
    empty = dict.fromkeys(full) | {"caption": "x"}
    return Dataset.from_list([full, empty], features=features)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", ["disk", "dict", "parquet file", "parquet folder"])
def test_datasets(tmp_path, form):
    from datasets import DatasetDict

    dataset, path = saved_dataset(tmp_path), tmp_path / "set"
    if form == "disk":
        dataset.save_to_disk(path)
    elif form == "dict":
        DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(path)
        with pytest.raises(ValueError, match="no split 'val', it has"):
            open_source(path, split="val", video_column="clip")
    else:
        path.mkdir()
        dataset.to_parquet(path / "train.parquet")
        path = path / "train.parquet" if form == "parquet file" else path
    source = open_source(path, video_column="clip")
    assert (source.kind, len(source)) == ("datasets", 2)
    check_full_sample(source.record(0))
    with pytest.raises(BadSample, match="row 1: missing_file"):
        source.record(1)
    check_full_sample(pickle.loads(pickle.dumps(source)).record(0))
    with pytest.raises(ValueError, match="no column 'video', it has .*`video_column`"):
        open_source(path)


def test_json_files_with_paths(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    rows = [{"video": name, "caption": "x"} for name in ("clip.mp4", "gone.mp4")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(tmp_path / "rows.jsonl")
    assert source.kind == "datasets" and probe(source.record(0).video).fps == 8
    with pytest.raises(BadSample, match="missing_file.*gone.mp4"):
        source.record(1)


def shard_members(name):
    return {
        f"{name}.mp4": VIDEO,
        f"{name}.json": json.dumps(FULL).encode(),
        f"{name}.dog.png": RED,
        f"{name}.park.png": BLUE,
    }


def test_webdataset(tmp_path):
    one = write_shard(tmp_path / "s/00.tar", {**shard_members("x/0001"), "x/0002.txt": b"Only text"})
    two = write_shard(
        tmp_path / "s/01.tar", {"0001.jpg": encode_image(form="JPEG"), "0001.txt": b"A card", "0002.mp4": VIDEO}
    )
    source = open_source(tmp_path / "s")
    assert (source.kind, len(source), source.problems) == ("webdataset", 4, [])
    check_full_sample(source.record(0))
    assert source.record(2).caption == "A card" and probe(source.record(2).video).is_image
    for number, reason in ((1, "missing_file"), (3, "missing_caption")):
        with pytest.raises(BadSample) as caught:
            source.record(number)
        assert caught.value.reason == reason
    assert source.key(3) == "01.tar/0002"
    assert len(open_source(one)) == len(open_source(two)) == 2
    assert len(open_source(f"{tmp_path}/s/{{00..01}}.tar")) == len(open_source(f"{tmp_path}/s/*.tar")) == 4
    with pytest.raises(FileNotFoundError, match="02.tar"):
        open_source(f"{tmp_path}/s/{{00..02}}.tar")


def test_shards_written_by_webdataset_itself(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        references = {"references": FULL["references"], "caption": "A dog"}
        writer.write({"__key__": "k", "mp4": VIDEO, "json": references, "dog.png": RED})
    record = open_source(tmp_path).record(0)
    assert record.prompt == "A <image_1>" and read_image(record.references[0].image).size == (8, 8)


def test_damaged_shards(tmp_path):
    whole = write_shard(tmp_path / "0.tar", {**shard_members("a"), **shard_members("b")})
    data = whole.read_bytes()
    write_shard(tmp_path / "1.tar", {"c.json": b"{oops", "c.mp4": VIDEO, "d.json": b"[1]", "d.mp4": VIDEO,
                                     "e.json": json.dumps(FULL).encode(), "e.mp4": VIDEO})  # fmt: skip
    (tmp_path / "2.tar").write_bytes(data[: data.rfind(b"b.dog.png") + 600])
    (tmp_path / "3.tar").write_bytes(b"no archive" * 200)
    source = open_source(tmp_path)
    infos = examine_all(source, range(len(source)), workers=2)
    assert {info.key: info.bad and info.bad.reason for info in infos} == {
        "0.tar/a": None, "0.tar/b": None, "1.tar/c": "bad_record", "1.tar/d": "bad_record",
        "1.tar/e": "missing_file", "2.tar/a": None, "2.tar/b": "missing_file",
    }  # fmt: skip
    assert [(bad.key, bad.reason) for bad in source.problems] == [
        ("2.tar", "truncated"),
        ("3.tar", "unreadable_shard"),
    ]


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        open_source(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no data set: no metadata.jsonl"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt is none of .parquet"):
        open_source(tmp_path / "a.txt")


def test_an_index_is_kept_with_the_data_set_that_it_is_of(tmp_path):
    files = {"a.mp4": VIDEO, "dog.png": RED, "park.png": BLUE, "bad.png": b"x"}
    rows = [{"video": "a.mp4", **FULL}, {"video": "dog.png", "caption": "x"}, {"video": "gone.mp4", "caption": "x"},
            {"video": "a.mp4", "caption": "x", "context": [{"image": "bad.png", "text": "y"}]}]  # fmt: skip
    source = open_source(write_folder(tmp_path / "set", rows, files))
    infos = examine_all(source, range(4))
    assert [info.bad and info.bad.reason for info in infos] == [None, None, "missing_file", "unreadable_image"]
    assert infos[0].tasks == ("subject",) and (infos[0].num_references, infos[0].num_context) == (1, 1)
    path = tmp_path / "out/index.parquet"
    assert load_index(path, "one") is None
    save_index(path, infos, "one", num_held_out=7)
    loaded, num_held_out = load_index(path, "one")
    assert num_held_out == 7 and [vars(info) | {"bad": str(info.bad)} for info in loaded] == [
        vars(info) | {"bad": str(info.bad)} for info in infos
    ]
    assert load_index(path, "two") is None
