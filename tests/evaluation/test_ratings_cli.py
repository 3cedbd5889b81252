"""`vimi evaluate ratings`: out to the raters, back, and compared."""

import csv

import pytest
from drawn_memory import draw_memory
from typer.testing import CliRunner

from vimi_diffusers.cli.evaluate_retrieval import ratings


def run(*arguments):
    return CliRunner().invoke(ratings, [str(one) for one in arguments])


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "pictures").mkdir()
    draw_memory(tmp_path / "pictures").save(tmp_path / "memory")
    return tmp_path / "memory"


def test_export_and_correlate(memory, tmp_path):
    prompts = ["A fox in a park", "A sea turtle", "A fox over the sea"]
    (tmp_path / "prompts.csv").write_text(
        "prompt_id,prompt\n" + "".join(f"p{n},{one}\n" for n, one in enumerate(prompts))
    )
    result = run("export", memory, tmp_path / "prompts.csv", "--out", tmp_path / "out", "--k", 1)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "out" / "items.csv", newline="") as stream:
        items = list(csv.DictReader(stream))
    assert f"{len(items)} items of 3 prompts" in " ".join(result.output.split())

    with open(tmp_path / "ann.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("id", "rating"), *((row["id"], 1 + int(row["prompt_id"][1])) for row in items)])
    (tmp_path / "scores.csv").write_text("prompt_id,score\np0,3\np1,2\np2,1\n")
    result = run(
        "correlate",
        tmp_path / "out",
        tmp_path / "ann.csv",
        "--scores",
        tmp_path / "scores.csv",
        "--out",
        tmp_path / "r",
    )
    assert result.exit_code == 0, result.output
    assert "3 prompts, 1 raters, Krippendorff's alpha not defined" in result.output
    assert "spearman -1.000" in result.output and (tmp_path / "r" / "correlation.json").is_file()


def test_an_odd_prompt_file_is_refused_before_the_memory_is_opened(tmp_path):
    (tmp_path / "prompts.csv").write_text("id,text\n1,a fox\n")
    result = run("export", tmp_path / "no-memory", tmp_path / "prompts.csv", "--out", tmp_path / "out")
    assert isinstance(result.exception, ValueError) and "no column 'prompt_id'" in str(result.exception)
