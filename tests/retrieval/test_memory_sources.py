"""Memories from image folders, tar shards, parquet and data sets, as streams."""

import io
import json
import tarfile

import datasets
import pytest
from PIL import Image

from vimi_diffusers.retrieval import ImageTextMemory
from vimi_diffusers.retrieval.memory.sources import open_rows


TEXTS = ["a red fox", "a grey wolf", "", "a brown bear"]


def encoded(number, form="PNG"):
    data = io.BytesIO()
    Image.new("RGB", (2, 2), (number, 0, 0)).save(data, form)
    return data.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def check(memory, ids, metadata=None):
    assert memory.ids == ids and memory.num_dropped == 1
    assert [*memory.texts()] == [text for text in TEXTS if text]
    assert [one.image.getpixel((0, 0))[0] for one in memory] == [0, 1, 3]
    if metadata is not None:
        assert [dict(one.metadata) for one in memory] == metadata


@pytest.fixture
def dataset():
    columns = {"picture": [Image.open(io.BytesIO(encoded(number))) for number in range(4)], "words": TEXTS}
    columns |= {"key": list("abcd"), "year": [1, 2, 3, None]}
    return datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())


COLUMNS = {"image_column": "picture", "text_column": "words"}
YEARS = [{"key": "a", "year": 1}, {"key": "b", "year": 2}, {"key": "d", "year": None}]


@pytest.mark.parametrize("name", ["pairs.parquet", "data/train-00000-of-00001.parquet"])
def test_parquet(dataset, tmp_path, name):
    (tmp_path / "source" / name).parent.mkdir(parents=True)
    dataset.to_parquet(tmp_path / "source" / name)
    source = tmp_path / "source" if "/" in name else tmp_path / "source" / name
    memory = ImageTextMemory.create(tmp_path / "memory", open_rows(source, **COLUMNS))
    check(memory, ["0", "1", "3"], YEARS)
    memory = ImageTextMemory.create(tmp_path / "memory", open_rows(source, id_column="key", **COLUMNS))
    check(memory, ["a", "b", "d"])


def test_a_saved_data_set(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits"):
        check(ImageTextMemory.create(tmp_path / "m", open_rows(tmp_path / name, **COLUMNS)), ["0", "1", "3"], YEARS)
    assert len(ImageTextMemory.create(tmp_path / "m", open_rows(tmp_path / "splits", split="test", **COLUMNS))) == 1
    with pytest.raises(ValueError, match="splits has no split 'val', it has train, test"):
        open_rows(tmp_path / "splits", split="val")
    with pytest.raises(ValueError, match="no column 'image'"):
        open_rows(tmp_path / "one")


def test_a_data_set_as_a_stream(dataset):
    memory = ImageTextMemory.from_dataset(dataset.to_iterable_dataset(), **COLUMNS)
    check(memory, ["0", "1", "3"], YEARS)


def test_a_memory_is_a_source(dataset, tmp_path):
    dataset.add_column("kind", list("wxyz")).save_to_disk(tmp_path / "saved")
    first = ImageTextMemory.create(tmp_path / "first", open_rows(tmp_path / "saved", **COLUMNS))
    again = ImageTextMemory.create(tmp_path / "again", open_rows(tmp_path / "first"))
    for one, other in zip(first, again, strict=True):
        assert (one.id, one.text, one.kind, one.metadata, one.encoded) == (
            other.id, other.text, other.kind, other.metadata, other.encoded
        )  # fmt: skip
    assert [one.kind for one in again] == ["w", "x", "z"] and dict(again[1].metadata) == YEARS[1]


def test_tar_shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(
        folder / "000.tar",
        {
            "__key__/0.JSON": json.dumps({"text": TEXTS[0], "url": "http://a", "keywords": ["dusk"]}).encode(),
            "__key__/0.png": encoded(0),
            "__key__/1.webp": encoded(1, "WEBP"),
            "__key__/1.txt": TEXTS[1].encode(),
            "__key__/2.png": encoded(2),
        },
    )
    write_tar(folder / "001.tar", {"3.png": encoded(3), "3.json": b'{"id": "own"}', "3.txt": TEXTS[3].encode()})
    for source in (folder, f"{folder}/*.tar"):
        memory = ImageTextMemory.create(tmp_path / "memory", open_rows(source))
        assert memory.ids == ["000/__key__/0", "000/__key__/1", "own"] and memory.num_dropped == 1
        assert memory[0].metadata == {"url": "http://a", "keywords": ["dusk"]}
        assert memory[2].image.getpixel((0, 0)) == (3, 0, 0)
    assert len([*open_rows(folder / "001.tar")]) == 1


@pytest.mark.parametrize(
    "members, message",
    [
        ({"0.png": encoded(0), "0.json": b"[1]"}, "bad.tar/0: its json or txt cannot be read"),
        ({"0.png": encoded(0), "0.txt": b"\xff"}, "bad.tar/0: its json or txt cannot be read"),
        ({"0.txt": b"a fox"}, "bad.tar/0 has no image: there are txt"),
        ({"0.png": b"junk", "0.txt": b"a fox"}, "bad.tar/0 is not a readable image"),
        (
            {"0.png": encoded(0), "0.txt": b"a fox", "1.png": encoded(1), "1.json": b'{"text": 3}'},
            "bad.tar/1: 'text' must",
        ),
    ],
)
def test_bad_tar_shards(tmp_path, members, message):
    write_tar(tmp_path / "bad.tar", members)
    with pytest.raises(ValueError, match=message):
        ImageTextMemory.create(tmp_path / "memory", open_rows(tmp_path / "bad.tar"))
    assert not (tmp_path / "memory").exists()


def test_a_truncated_tar_shard(tmp_path):
    write_tar(tmp_path / "cut.tar", {f"{n}.{end}": encoded(n) * 50 for n in range(9) for end in ("png",)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:20_000])
    with pytest.raises(ValueError, match="shard .*cut.tar cannot be read"):
        [*open_rows(tmp_path / "cut.tar")]


def test_what_is_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is nothing at .*/nowhere"):
        open_rows(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No shard matches .*nowhere.*tar"):
        open_rows(tmp_path / "nowhere*.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no pairs: no metadata.jsonl, no tar shards, no parquet"):
        open_rows(tmp_path / "empty")
    (tmp_path / "file.txt").touch()
    with pytest.raises(ValueError, match="file.txt holds no pairs"):
        open_rows(tmp_path / "file.txt")
