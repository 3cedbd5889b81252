"""`vimi data` from the command line."""

import json
from functools import partial

import pytest
import yaml
from media_files import encode_image, encode_video, write_folder, write_shard


@pytest.fixture
def run(run_vimi, tiny_checkpoint):
    return partial(run_vimi, "data", "validate", "--model", tiny_checkpoint, "--bucket", "4x16x16@4", "--workers", 2)


@pytest.fixture
def folder(tmp_path):
    files = {f"{number}.mp4": encode_video(16, shade=number) for number in range(6)}
    files |= {"dog.png": encode_image((20, 12)), "still.png": encode_image((30, 30))}
    rows = [{"video": f"{number}.mp4", "caption": f"A dog runs, take {number}"} for number in range(6)]
    for row in rows[:2]:
        row["references"] = [{"image": "dog.png", "name": "dog"}]
    rows.append({"video": "still.png", "caption": "A red card", "context": [{"image": "dog.png", "text": "A dog"}]})
    return write_folder(tmp_path / "set", rows, files)


def test_a_good_data_set(folder, run):
    code, printed = run(folder, "--samples", 7)
    assert code == 0
    for line in (
        "folder, 7 samples, 0 of them bad (0.0%)",
        "4x16x16@4: 6 videos, 1 images",
        "length (s): 2, 2, 2",
        "frames/s: 8, 8, 8",
        "width: 30, 32, 32",
        "allow each task: subject: 2, text-to-video: 5",
        "number of references: 0: 5, 1: 2",
        "number of retrieved pairs: 0: 6, 1: 1",
        "images (width x height): 20x12",
        "A <image> runs, take",
    ):
        assert line in printed.out
    assert printed.out.count("\nstep ") == 7 and "refuse" not in printed.out
    assert "subject: " in printed.out and "tokens, text-to-video: " in printed.out


def test_damage_is_named_and_decides_the_exit_code(folder, run, tmp_path):
    (folder / "3.mp4").write_bytes((folder / "3.mp4").read_bytes()[:300])
    (folder / "4.mp4").unlink()
    (folder / "still.png").write_bytes(encode_image((64, 64), form="JPEG")[:-20])
    code, printed = run(folder, "--report", tmp_path / "bad.jsonl")
    assert code == 1 and "7 samples, 3 of them bad (42.9%)" in printed.out
    assert "1 x unreadable_video" in printed.out and "1 x missing_file" in printed.out
    assert "metadata.jsonl:7: " in printed.out and "1 x unreadable_image" in printed.out
    assert "Training would refuse this data set: over the share of 0.05." in printed.out
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {row["sample"]: row["reason"] for row in rows} == {
        "metadata.jsonl:4": "unreadable_video", "metadata.jsonl:5": "missing_file",
        "metadata.jsonl:7": "unreadable_image",
    }  # fmt: skip
    assert run(folder, "--max-bad-share", 0.5)[0] == 0
    code, printed = run(folder, "--quick")
    assert code == 1 and "2 of them bad" in printed.out  # decoding alone shows the third


def test_nothing_but_damage(tmp_path, run):
    folder = write_folder(tmp_path / "set", [{"video": "gone.mp4", "caption": "x"}], {})
    code, printed = run(folder, "--max-bad-share", 1)
    assert code == 1 and "1 of them bad (100.0%)" in printed.out and "would refuse" in printed.out


def test_shards_and_the_settings_of_a_training(tmp_path, run):
    members = {"0.mp4": encode_video(), "0.json": json.dumps({"text": "A long caption " * 20}).encode()}
    write_shard(tmp_path / "shards/0.tar", members)
    config = {
        "caption_column": "text",
        "task_weights": {"prediction": 1.0},
        "max_sequence_length": 32,
        "output_dir": "x",
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    code, printed = run(tmp_path / "shards", "--config", tmp_path / "train.yaml")
    assert code == 0 and "webdataset, 1 samples" in printed.out and "prediction: 1" in printed.out
    assert "1 prompts are over 32 tokens and lose words" in printed.out
    assert "images (width x height): 32x32" in printed.out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["gone/for/good"], "There is nothing at gone/for/good"),
        (["set", "--bucket", "4x16"], "A bucket is written as"),
        (["set", "--bucket", "4x10x16"], "`height` 10 does not fit the model"),
        (["set", "--config", "no.yaml"], "No configuration file at no.yaml"),
        (["set", "--model", "./nothing"], "There is no pipeline at ./nothing"),
    ],
)
def test_errors_are_one_line(folder, run, monkeypatch, arguments, said):
    monkeypatch.chdir(folder.parent)
    code, printed = run(*arguments)
    assert code == 1 and said in printed.err and printed.err.strip().count("\n") == 0
