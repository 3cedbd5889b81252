"""`vimi memory` from the command line."""

import io
import json
import tarfile
from functools import partial

import pytest
from fake_hub import FakeHub
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = [("fox.png", "A red fox"), ("barn.png", "A red [bold] barn"), ("nothing.png", "")]
    for name, _ in rows:
        Image.new("RGB", (4, 4)).save(folder / name)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def run(run_vimi):
    return partial(run_vimi, "memory")


def test_build_and_search(folder, tmp_path, run):
    code, printed = run("build", folder, tmp_path / "memory")
    assert code == 0 and "2 pairs (1 with an empty text or a bad image left out)" in printed.out
    code, printed = run("search", tmp_path / "memory", "a red fox", "--k", 2)
    assert code == 0 and printed.out.index("fox.png") < printed.out.index("barn.png")
    assert "A red [bold] barn" in printed.out
    code, printed = run("search", tmp_path / "memory", "a red fox")
    assert code == 0 and "fox.png" in printed.out and "barn.png" not in printed.out
    code, printed = run("search", tmp_path / "memory", "zebra")
    assert code == 0 and "No pair shares a word with 'zebra'" in printed.out


def test_add_verify_and_info(folder, tmp_path, run):
    run("build", folder, tmp_path / "memory")
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (4, 4)).save(more / "wolf.png")
    (more / "metadata.jsonl").write_text(json.dumps({"file_name": "wolf.png", "text": "A wolf"}))
    code, printed = run("add", tmp_path / "memory", more)
    assert code == 0 and "1 pairs more, 3 in all" in printed.out
    code, printed = run("search", tmp_path / "memory", "wolf")
    assert code == 0 and "wolf.png" in printed.out
    code, printed = run("add", tmp_path / "memory", more)
    assert code == 1 and "Id 'wolf.png' is that of two pairs" in printed.err and printed.err.count("\n") == 1
    code, printed = run("verify", tmp_path / "memory")
    assert code == 0 and "3 pairs, all files are as they were written" in printed.out
    code, printed = run("info", tmp_path / "memory")
    assert code == 0 and "pairs: 3\n" in printed.out and "shards: 2\n" in printed.out
    assert "indexed: text (weight 1)" in printed.out and "dropped at build: 1" in printed.out
    shard = next((tmp_path / "memory/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    code, printed = run("verify", tmp_path / "memory")
    assert code == 1 and f"data/{shard.name} has other content" in printed.err and printed.err.count("\n") == 1


def test_push_and_search_on_the_hub(folder, tmp_path, run, monkeypatch):
    run("build", folder, tmp_path / "memory")
    with FakeHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        code, printed = run("push", tmp_path / "memory", "user/memory", "--license", "mit")
        assert code == 0 and printed.out.strip() == f"{hub.url}/datasets/user/memory"
        assert "license: mit" in (hub.folder("datasets/user/memory") / "README.md").read_text()
        code, printed = run("search", "user/memory", "a red fox", "--remote")
        assert code == 0 and "fox.png" in printed.out and hub.ranges
        code, printed = run("info", "user/memory")
        assert code == 0 and "pairs: 2\n" in printed.out
        code, printed = run("search", "user/nothing", "a red fox")
        assert code == 1 and "no data set 'user/nothing' on the Hub" in printed.err


def test_build_from_tar_shards_without_bad_images(tmp_path, run):
    with tarfile.open(tmp_path / "000.tar", "w") as archive:
        for name, data in (("0.png", b"junk"), ("0.txt", b"a fox"), ("1.png", None), ("1.txt", b"a wolf")):
            if data is None:
                picture = io.BytesIO()
                Image.new("RGB", (4, 4)).save(picture, "PNG")
                data = picture.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    code, printed = run("build", tmp_path / "*.tar", tmp_path / "memory")
    assert code == 1 and "000.tar/0 is not a readable image" in printed.err
    code, printed = run("build", tmp_path / "*.tar", tmp_path / "memory", "--bad-images", "drop")
    assert code == 0 and "1 pairs (1 with an empty text or a bad image left out)" in printed.out


def test_errors_are_one_line(folder, tmp_path, run):
    (folder / "fox.png").write_bytes(b"junk")
    code, printed = run("build", folder, tmp_path / "memory")
    assert code == 1 and "fox.png is not a readable image" in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "memory").exists()
    code, printed = run("search", folder, "fox")
    assert code == 1 and "is not a saved memory" in printed.err and printed.err.count("\n") == 1
    code, printed = run("search", folder, "fox", "--k", 0)
    assert code == 2 and "--k" in printed.err
