"""Whole runs of `vimi evaluate run` and `compare` on a tiny pipeline, and what the results say."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from protocol_cases import write_captions, write_toy

from vimi_diffusers.cli import main
from vimi_diffusers.evaluation.measures import measures
from vimi_diffusers.evaluation.metrics import FeatureExtractor
from vimi_diffusers.evaluation.protocols import load_protocol
from vimi_diffusers.evaluation.report import write_report
from vimi_diffusers.evaluation.results import (
    EvaluationResult,
    MetricValue,
    compare_results,
    format_value,
    wilson_interval,
)
from vimi_diffusers.evaluation.running import evaluate


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    """Folder of a run of the command line."""
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, tiny_checkpoint, write_toy(folder), write_captions(folder)) == 0
    return folder / "out"


def vimi(*arguments):
    with pytest.raises(SystemExit) as exit:
        main([*map(str, arguments)])
    return exit.value.code or 0


def run(folder, checkpoint, protocol, captions, *other):
    data = ("--data", f"captions={captions}", "--device", "cpu")
    return vimi("evaluate", "run", protocol, "--out", folder / "out", "--model", checkpoint, *data, *other)


def test_a_run_leaves_everything(made, tiny_checkpoint):
    result = EvaluationResult.load(made)
    (metric,) = result.metrics
    assert (metric.name, metric.view, metric.count) == ("dynamic_degree", "16x16", 5)
    assert metric.interval[0] <= metric.value <= metric.interval[1]
    assert result.samples == {"planned": 5, "controls": 0, "measured": 5} and not result.skipped
    assert set(result.weights) == {"text_encoder", "transformer"} and len(result.weights["transformer"]) == 64
    assert {"torch", "diffusers", "vimi_diffusers"} <= set(result.versions)
    assert result.model == str(tiny_checkpoint) and result.not_comparable_with == ("anything published",)
    rows = list(csv.DictReader(open(made / "samples.csv", newline="")))
    assert [row["id"] for row in rows] == [f"clip{n}-000" for n in range(5)]
    values = [float(row["dynamic_degree 16x16"]) for row in rows]
    assert np.mean(values) == pytest.approx(metric.value)
    (row,) = csv.DictReader(open(made / "results.csv", newline=""))
    assert float(row["value"]) == metric.value and row["protocol"] == "toy"


def test_the_report_needs_nothing_outside_its_folder(made):
    page = (made / "report/index.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "anything published" in page
    files = sorted(path.name for path in (made / "report/videos").iterdir())
    assert files == [f"video-clip{n}-000.mp4" for n in range(5)] and all(f"videos/{name}" in page for name in files)


def test_words_of_a_prompt_are_no_markup(made, tmp_path):
    result = EvaluationResult.load(made)
    shown = dataclasses.replace(result.shown[0], prompt="<script>alert(1)</script> & more")
    dataclasses.replace(result, shown=(shown,), model="<b>").save(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "not there" in page


def test_results_come_back_as_they_were(made, tmp_path):
    result = EvaluationResult.load(made)
    result.save(tmp_path)
    assert EvaluationResult.load(tmp_path) == result
    values = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(values | {"colour": 1}))
    with pytest.raises(ValueError, match="is no result of `vimi evaluate run`"):
        EvaluationResult.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="give a folder that `vimi evaluate run` wrote"):
        EvaluationResult.load(tmp_path / "nowhere")


def test_damaged_videos_are_named_skipped_and_counted(tmp_path, tiny_pipeline, monkeypatch):
    from vimi_diffusers.evaluation import running

    protocol = load_protocol(write_toy(tmp_path))
    generate = running.generate_samples

    def generate_and_damage(*args, **kwargs):
        made = generate(*args, **kwargs)
        path = tmp_path / "out/generated/samples/clip1-000.mp4"
        path.write_bytes(path.read_bytes()[: made[1].bytes // 2])
        (tmp_path / "out/generated/samples/clip3-000.mp4").unlink()
        return made

    monkeypatch.setattr(running, "generate_samples", generate_and_damage)
    data = {"captions": write_captions(tmp_path)}
    result = evaluate(protocol, lambda: tiny_pipeline, tmp_path / "out", data, batch_size=5)
    assert result.skipped == {
        "generated/samples/clip1-000.mp4": "the file is not what was generated (its SHA-256 differs)",
        "generated/samples/clip3-000.mp4": "the file is missing",
    }
    assert result.samples["measured"] == result.metrics[0].count == 3 and len(result.shown) == 3
    assert "2 videos could not be read" in result.not_comparable_with[0]
    assert "clip3-000.mp4: the file is missing" in write_report(tmp_path / "out").read_text()
    # the next run makes them anew
    monkeypatch.undo()
    again = evaluate(protocol, lambda: tiny_pipeline, tmp_path / "out", data, batch_size=5)
    assert not again.skipped and again.metrics[0].count == 5


# ------------------------------------------------------------------ before generation
def fails(capsys, *arguments):
    assert vimi(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1
    return error


def test_what_is_missing_is_said_at_once(tmp_path, capsys):
    error = fails(capsys, "evaluate", "run", "ucf101", "--out", tmp_path / "out", "--data", f"ucf101={tmp_path}")
    assert "needs --data NAME=PATH for i3d (" in error and "c3d (" in error and "memory (" in error
    given = [f"{name}={tmp_path / name}" for name in ("ucf101", "i3d", "c3d", "memory")]
    data = [part for one in given for part in ("--data", one)]
    assert "There is nothing at the path of ucf101: " in fails(
        capsys, "evaluate", "run", "ucf101", "--out", "x", *data
    )
    toy = write_toy(tmp_path)
    given = ("--data", f"captions={write_captions(tmp_path)}", "--data", f"i3d={tmp_path}")
    assert "takes no data i3d" in fails(capsys, "evaluate", "run", toy, "--out", tmp_path / "out", *given)
    assert "'steps' must be NAME=VALUE" in fails(capsys, "evaluate", "run", toy, "--out", "x", "--set", "steps")
    assert "no protocol 'ucf'" in fails(capsys, "evaluate", "run", "ucf", "--out", "x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["fvd"], "extractors": {"fvd": "/no/model"}}, "feature network '/no/model' .role fvd. cannot"),
        ({"metrics": ["clipsim"], "extractors": {"clip": "/no/clip"}}, "--set extractors.clip=NAME"),
        ({"metrics": ["temporal_consistency"], "extractors": {"frames": "/no/dino"}}, "--set extractors.frames=NAME"),
        ({"metrics": ["dynamic_degree"], "size": [8, 8]}, "sides of at least 16 pixels"),
    ],
)
def test_metrics_that_cannot_be_had_stop_before_the_pipeline(tmp_path, settings, message):
    protocol = load_protocol(write_toy(tmp_path, **settings))

    def load():
        raise AssertionError("loaded")

    with pytest.raises(ValueError, match=message):
        evaluate(protocol, load, tmp_path / "out", {"captions": write_captions(tmp_path)})
    assert not (tmp_path / "out").exists()


class FlatVideoNetwork(torch.nn.Module):
    """Means over places and frames: 3 features."""

    def forward(self, videos, rescale: bool = True, resize: bool = True, return_features: bool = True):
        return videos.mean(dim=(2, 3, 4)).repeat(1, 134)[:, :400]


def test_too_few_videos_for_a_covariance(tmp_path):
    torch.jit.script(FlatVideoNetwork()).save(tmp_path / "i3d.pt")
    for name in ("YoYo", "Punch"):
        (tmp_path / "ucf" / name).mkdir(parents=True)
        (tmp_path / "ucf" / name / "a.avi").write_bytes(b"")
    changes = {"metrics": ["fvd"], "num_samples": 20, "retrieved_pairs": 0, "size": [16, 16], "num_frames": 4}
    protocol = load_protocol("ucf101", changes)
    with pytest.raises(ValueError, match="at least 401 videos for its covariance; 20 would be generated, 2 are real"):
        evaluate(protocol, None, tmp_path / "out", {"ucf101": tmp_path / "ucf", "i3d": tmp_path / "i3d.pt"})


class MeanColours(FeatureExtractor):
    def __init__(self):
        super().__init__("mean colours", 3, {"kind": "mean colours"})

    def __call__(self, videos):
        return videos.mean(dim=(1, 3, 4))


def test_a_frechet_distance_of_a_whole_run(tmp_path, tiny_pipeline, monkeypatch):
    """Few dimensions instead of I3D's; real statistics are kept and used again."""
    from vimi_diffusers.evaluation import running
    from vimi_diffusers.evaluation.generation import write_lossless

    random = np.random.default_rng(0)
    for name, count in (("YoYo", 4), ("Punch", 5)):
        (tmp_path / "ucf" / name).mkdir(parents=True)
        for number in range(count):
            frames = random.integers(0, 256, (4, 24, 32, 3), dtype=np.uint8)
            write_lossless(frames, tmp_path / "ucf" / name / f"{number}.mp4", 25)
    monkeypatch.setattr(running, "load_extractors", lambda *_: {"fvd": MeanColours()})
    changes = {"metrics": ["fvd"], "num_samples": 6, "retrieved_pairs": 0, "size": [16, 16], "num_frames": 4}
    changes |= {"views": [{"name": "whole"}, {"name": "square", "generated": [8, 8], "real": [24, 24]}]}
    changes |= {"sampling.num_inference_steps": 2, "extractors": {"fvd": "tiny"}}
    protocol = load_protocol("ucf101", changes)
    data = {"ucf101": tmp_path / "ucf"}
    first = evaluate(protocol, lambda: tiny_pipeline, tmp_path / "out", data, batch_size=3)
    assert [(one.name, one.view, one.count, one.note) for one in first.metrics] == [
        ("fvd", "whole", 6, "9 real samples"),
        ("fvd", "square", 6, "9 real samples"),
    ]
    assert all(math.isfinite(one.value) and one.value > 0 for one in first.metrics)
    assert len(list((tmp_path / "out/statistics").iterdir())) == 2
    assert "num_samples 10000 -> 6" in first.not_comparable_with[0]
    (tmp_path / "ucf" / "YoYo" / "0.mp4").write_bytes(b"no longer read")
    again = evaluate(protocol, lambda: tiny_pipeline, tmp_path / "out", data, batch_size=3)
    assert again.metrics == first.metrics


def test_emoji_world_has_floors_and_ceilings(tmp_path, tiny_pipeline, world):
    changes = {"source.concepts": 2, "source.colours": 2, "size": [16, 16], "num_frames": 8, "extractors": {}}
    changes |= {
        "metrics": ["grounding", "colour_identification", "first_frame_psnr", "first_frame_ssim", "dynamic_degree"]
    }
    protocol = load_protocol("emoji_world", {**changes, "sampling.num_inference_steps": 2})
    longer = type(tiny_pipeline.transformer).from_config({**tiny_pipeline.transformer.config, "num_frames": 8})
    tiny_pipeline.register_modules(transformer=longer.eval())
    result = evaluate(protocol, lambda: tiny_pipeline, tmp_path / "out", {"world": world}, batch_size=4)
    assert result.samples == {"planned": 8, "controls": 4, "measured": 12}
    found = {one.name: one for one in result.metrics}
    assert found["colour_top_5"].chance == 1 and found["colour_top_1"].ceiling is not None
    assert found["first_frame_psnr"].count == 2 and found["first_frame_psnr"].floor > 0
    assert found["dynamic_degree"].count == 8
    for task in ("text-to-video", "subject", "prediction"):
        for name in ("identification_top_1", "place_accuracy", "motion_compliance"):
            metric = found[f"{task}/{name}"]
            assert metric.count == 2 and metric.floor is not None and metric.ceiling is not None
    controls = [path.stem for path in (tmp_path / "out/generated/samples").glob("control-*")]
    assert sorted(controls) == ["control-colours-000", "control-colours-001", "control-words-000", "control-words-001"]


# ------------------------------------------------------------------ comparison
def with_value(result, value, **other):
    metric = dataclasses.replace(result.metrics[0], value=value, direction="higher", **other)
    return dataclasses.replace(result, metrics=(metric,))


def test_two_results_are_compared(made, tmp_path, capsys):
    result = EvaluationResult.load(made)
    a, b = with_value(result, 0.5, interval=(0.4, 0.6)), with_value(result, 0.8, interval=(0.7, 0.9))
    assert [(row.change, row.verdict) for row in compare_results(a, b)] == [(pytest.approx(0.3), "B better")]
    assert compare_results(b, a)[0].verdict == "A better"
    wide = with_value(result, 0.8, interval=(0.5, 1.0))
    assert compare_results(a, wide)[0].verdict == "B better, intervals overlap"
    assert compare_results(a, a)[0].verdict == "equal"
    assert "5 and 4 videos" in compare_results(a, with_value(result, 0.8, count=4))[0].verdict
    assert "another feature network" in compare_results(a, with_value(result, 1, extractor_sha256="1"))[0].verdict
    none = dataclasses.replace(result, metrics=())
    assert compare_results(a, none)[0].verdict == "not comparable: only A has it"

    assert vimi("evaluate", "compare", made, made, "--out", tmp_path / "pages") == 0
    assert "dynamic_degree" in capsys.readouterr().out
    page = (tmp_path / "pages/index.html").read_text()
    assert "videos/a-clip0-000.mp4" in page and "videos/b-clip0-000.mp4" in page
    assert len(list((tmp_path / "pages/videos").iterdir())) == 10
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").touch()
    assert "is no report" in fails(capsys, "evaluate", "compare", made, made, "--out", tmp_path / "notes")


def test_different_protocols_are_refused_unless_told(made, tmp_path, capsys):
    result = EvaluationResult.load(made)
    protocol = {**result.protocol, "fps": 12.0}
    dataclasses.replace(result, protocol=protocol, protocol_sha256="0").save(tmp_path / "other")
    error = fails(capsys, "evaluate", "compare", made, tmp_path / "other", "--out", tmp_path / "page")
    assert "different protocols: fps (8.0, 12.0)" in error and not (tmp_path / "page").exists()
    given = ("evaluate", "compare", made, tmp_path / "other", "--out", tmp_path / "page", "--different")
    assert vimi(*given) == 0
    page = (tmp_path / "page/index.html").read_text()
    assert "not comparable: another protocol" in page and "not there" in page


# ------------------------------------------------------------------ small things
def test_wilson_by_hand():
    low, high = wilson_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(1, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.12345, "0.1235"), (193.71, "193.7"), (12345.6, "12345.6")]
)
def test_figures_are_short(value, text):
    assert format_value(value) == text


def test_every_measure_says_what_it_is():
    for name, measure in measures().items():
        assert measure.name == name and measure.about and measure.direction in ("higher", "lower", "neither")
        assert bool(measure.role) == bool(measure.default)


def test_metric_values_are_plain():
    assert dataclasses.asdict(MetricValue("a", "b", 1.0, 2, "higher"))["note"] == ""
