"""`vimi augment` from the command line."""

import json

import pytest
from media_files import numbered_folder
from shapes import draw, encode

from vimi_diffusers import ImageTextMemory
from vimi_diffusers.data import open_source


@pytest.fixture
def world(tmp_path):
    rows = [{"id": f"p{number}", "text": f"clip {number}", "image": encode(draw(number, 32))} for number in range(4)]
    ImageTextMemory.create(tmp_path / "memory", rows)
    return numbered_folder(tmp_path / "clips", 3, num_frames=2), tmp_path / "memory"


def test_augment(world, tmp_path, run_vimi):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Clip 0!\n")
    arguments = ("augment", *world, tmp_path / "out", "--k", 2, "--shard-size", 2, "--exclude-prompts", prompts)
    code, printed = run_vimi(*arguments)
    assert code == 0
    assert (
        "out: 2 of 3 samples in 2 shards, 4 pairs; 0 samples with fewer than 2 of a kind, 0 with none" in printed.out
    )
    assert "dropped captions: 1 of 3 dropped" in printed.out and "evaluation_prompt_normalised" in printed.out
    source = open_source(tmp_path / "out")
    assert [item["text"] for item in source.row(0)["context"]] == ["clip 1", "clip 2"]
    code, printed = run_vimi(*arguments)
    assert code == 0 and "2 of 3 samples" in printed.out  # done before
    code, printed = run_vimi(*arguments, "--compare-texts")
    assert code == 1 and "settings rules" in printed.err and printed.err.count("\n") == 1


def test_options_reach_the_settings(world, tmp_path, run_vimi):
    code, printed = run_vimi(
        "augment", *world, tmp_path / "out", "--k", 1, "--candidates", 7, "--format", "webdataset", "--embed-videos",
        "--source-column", "clip_id", "--source-column", "url", "--no-compare-images", "--compare-texts",
        "--frames", 2, "--shard-size", 9,
    )  # fmt: skip
    assert code == 0 and (tmp_path / "out/00000.tar").is_file()
    assert json.loads((tmp_path / "out/manifest.json").read_text())["settings"] == {
        "k": 1, "candidates": 7, "form": "webdataset", "shard_size": 9, "embed_videos": True, "num_frames": 2,
        "rules": {"source_columns": ["clip_id", "url"], "image_radius": None, "texts": True},
    }  # fmt: skip
    assert "leak/same_text" in printed.out  # each caption is the text of a pair


def test_errors_are_one_line(world, tmp_path, run_vimi):
    code, printed = run_vimi("augment", *world, tmp_path / "out", "--format", "csv")
    assert code == 1 and "one of parquet, webdataset, got 'csv'" in printed.err and printed.err.count("\n") == 1
    code, printed = run_vimi("augment", *world, tmp_path / "out", "--ray", "auto", "--num-proc", 2)
    assert code == 2 and "--num-proc is for one machine" in printed.err
    code, printed = run_vimi("augment", world[0], tmp_path, tmp_path / "out")
    assert code == 1 and "no memory at" in printed.err
    code, printed = run_vimi("augment", *world, tmp_path / "out", "--k", 0)
    assert code == 2 and "--k" in printed.err
