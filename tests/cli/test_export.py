"""`vimi export` from the command line."""

import json
from functools import partial

import pytest


@pytest.fixture
def run(run_vimi):
    return partial(run_vimi, "export")


def test_export_with_code(tiny_checkpoint, tmp_path, run):
    (tmp_path / "facts.json").write_text(json.dumps({"name": "Tiny", "evaluation": {"FVD": 1}}))
    out = tmp_path / "deep" / "out"
    code, printed = run(
        tiny_checkpoint, out, "--with-code", "--facts", tmp_path / "facts.json", "--repo-id", "user/tiny"
    )
    assert code == 0 and f"{out}: 14 files" in printed.out and 'custom_pipeline="pipeline"' in printed.out
    assert (out / "pipeline.py").is_file() and (out / "transformer" / "vimi.py").is_file()
    card = (out / "README.md").read_text()
    assert "# Tiny" in card and "| FVD | 1 |" in card and 'from_pretrained("user/tiny")' in card


def test_export_without_code(tiny_checkpoint, tmp_path, run):
    code, printed = run(tiny_checkpoint, tmp_path / "out")
    assert code == 0 and "10 files" in printed.out and "trust_remote_code" not in printed.out


def test_errors_are_one_line(tiny_checkpoint, tmp_path, run):
    (tmp_path / "facts.json").write_text("{}}")
    for arguments, message in (
        ((tmp_path, tmp_path / "out"), "has no model_index.json"),
        ((tiny_checkpoint, tmp_path), "exists already: choose a new folder"),
        ((tiny_checkpoint, tmp_path / "out", "--facts", tmp_path / "facts.json"), "Cannot read the facts"),
        ((tmp_path / "nothing", tmp_path / "out"), "There is no folder"),
    ):
        code, printed = run(*arguments)
        assert code == 1 and message in printed.err and printed.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
