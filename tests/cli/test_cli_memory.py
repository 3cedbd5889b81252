"""`vimi memory` from the command line."""

import json
from functools import partial

import pytest
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
    assert code == 0 and "2 pairs (1 with an empty text left out)" in printed.out
    code, printed = run("search", tmp_path / "memory", "a red fox", "--k", 2)
    assert code == 0 and printed.out.index("fox.png") < printed.out.index("barn.png")
    assert "A red [bold] barn" in printed.out
    code, printed = run("search", tmp_path / "memory", "a red fox")
    assert code == 0 and "fox.png" in printed.out and "barn.png" not in printed.out
    code, printed = run("search", tmp_path / "memory", "zebra")
    assert code == 0 and "No pair shares a word with 'zebra'" in printed.out


def test_errors_are_one_line(folder, tmp_path, run):
    (folder / "fox.png").write_bytes(b"junk")
    code, printed = run("build", folder, tmp_path / "memory")
    assert code == 1 and "fox.png is not a readable image" in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "memory").exists()
    code, printed = run("search", folder, "fox")
    assert code == 1 and "is not a saved memory" in printed.err and printed.err.count("\n") == 1
    code, printed = run("search", folder, "fox", "--k", 0)
    assert code == 2 and "--k" in printed.err
