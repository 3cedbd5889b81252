import json

import pytest
import typer
from typer.testing import CliRunner

from vimi_diffusers.cli.instruct_data import instruct_data, parse_tasks
from vimi_diffusers.evaluation.segmentation import render_clips


@pytest.fixture(scope="module")
def clips(world, tmp_path_factory):
    return render_clips(world, tmp_path_factory.mktemp("clips") / "set", 6, size=32)


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(instruct_data)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(each) for each in arguments])


def test_the_command_writes_a_data_set_and_reports(run, clips, tmp_path):
    name = f"vimi_diffusers.evaluation.segmentation:Oracle{{}}={clips}"
    out = tmp_path / "set"
    result = run(
        clips, out, "--entities", name.format("Extractor"), "--detector", name.format("Detector"), "--segmenter",
        name.format("Segmenter"), "--tasks", "subject=1,text-to-video=1", "--num-per-clip", 4, "--seed", 3,
        "--batch-size", 2, "--no-augment",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = json.loads((out / "manifest.json").read_text())
    samples = manifest["report"]["samples"]
    assert manifest["settings"]["seed"] == 3 and manifest["settings"]["augment"] is False
    expected = f"samples of 6 clips (subject: {samples['subject']}, text-to-video: {samples['text-to-video']})"
    assert f"{sum(samples.values())} {expected}" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--tasks", "subject=much"), "has 'subject=much': write a task as NAME or NAME=SHARE"),
        (("--tasks", "subject,subject"), "names 'subject' twice"),
        (("--tasks", "subjects"), "Unknown task 'subjects'"),
        (("--detector", "yolo"), "Unknown detector 'yolo'"),
        (("--background", "blur"), "`background` must be one of"),
    ],
)
def test_options_that_cannot_be_used_are_named_before_anything_is_written(run, clips, tmp_path, options, message):
    result = run(clips, tmp_path / "set", *options)
    assert isinstance(result.exception, ValueError) and message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_tasks_are_shares_or_names():
    assert parse_tasks("subject=0.4, prediction = 2") == {"subject": 0.4, "prediction": 2.0}
    assert parse_tasks("subject,text-to-video") == {"subject": 1.0, "text-to-video": 1.0}
