import dataclasses
import io
import json
import os
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vimi_diffusers.data import PromptSettings, VideoData, VideoDataSettings, open_source
from vimi_diffusers.data.decoding import read_image
from vimi_diffusers.data.instruct import InstructionSettings, PluginSettings, shards, write_instruction_data
from vimi_diffusers.data.validation import validate
from vimi_diffusers.evaluation.segmentation import OracleDetector
from vimi_diffusers.prompting.paraphrases import PARAPHRASES
from vimi_diffusers.training.config import TrainingConfig
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.vimi.tiny import build_tiny_components


SETTINGS = InstructionSettings(num_per_clip=3, background="fill")
SUBJECTS = InstructionSettings(tasks={"subject": 1})


def rows(folder):
    source = open_source(folder)
    return [source.record(number) for number in range(len(source))]


def contents(folder):
    """Bytes of a data set's shards by name."""
    files = [*folder.glob("data/*.parquet"), *folder.glob("*.tar")]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(clips, oracles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "set"
    return folder, write_instruction_data(clips, folder, SETTINGS, oracles, shard_size=5)


# ------------------------------------------------------------------ what is written
def test_samples_keep_to_the_schema_and_count_as_reported(written, clips):
    folder, manifest = written
    records, report = rows(folder), manifest["report"]
    assert Counter(record.task for record in records) == report["samples"]
    assert report["clips"] == 12 and sum(report["samples"].values()) == len(records) > 20
    dropped = sum(entry["count"] for task in report["dropped_samples"].values() for entry in task.values())
    assert len(records) + dropped == 36
    assert report["references"] == sum(len(record.references) for record in records)
    captions = {record.caption for record in rows(clips)}
    for record in records:
        assert record.caption in captions and record.video.is_absolute() and record.video.is_file()
        if record.task == "text-to-video":
            assert record.instruction is None  # depends on the pairs that training shows
        else:
            assert record.instruction in PARAPHRASES[record.task]
        assert bool(record.references) == (record.task == "subject")
    assert set(report["samples"]) == {"subject", "prediction", "text-to-video"}
    assert sum(shard["samples"] for shard in manifest["shards"]) == len(records)
    assert [shard["file"] for shard in manifest["shards"]] == [
        f"data/train-{n:05d}-of-00003.parquet" for n in range(3)
    ]


def test_references_show_what_they_stand_for(written):
    folder, _ = written
    names = Counter()
    for record in rows(folder):
        for reference in record.references:
            image = read_image(reference.image)
            assert max(image.size) <= 336
            assert record.caption.count(reference.name) == 1
            names[reference.name] += 1
        if record.references:
            assert record.prompt.count("<image_") == len(record.references)
            assert [reference.name for reference in record.references] == sorted(
                (reference.name for reference in record.references), key=record.caption.index
            )
    assert names["fox"] and len(names) > 3, "subjects and places"


def test_colours_of_a_subject_are_the_drawings(clips, oracles, tmp_path):
    """The fox of the small world is an orange disc, the park a gradient: a cut shows orange and white alone."""
    write_instruction_data(clips, tmp_path / "set", SUBJECTS, oracles)
    foxes = [each for record in rows(tmp_path / "set") for each in record.references if each.name == "fox"]
    assert foxes
    for fox in foxes:
        pixels = np.asarray(read_image(fox.image)).reshape(-1, 3).astype(int)
        orange, white = np.abs(pixels - (230, 120, 30)).sum(1) < 150, (pixels > 200).all(1)
        assert orange.mean() > 0.3 and (orange | white).mean() > 0.85


def test_subjects_can_keep_their_transparency(clips, oracles, tmp_path):
    settings = InstructionSettings(tasks={"subject": 1}, subject_background="alpha", background="none", augment=False)
    write_instruction_data(clips, tmp_path / "set", settings, oracles)
    references = [reference for record in rows(tmp_path / "set") for reference in record.references]
    images = [Image.open(io.BytesIO(reference.image)) for reference in references]
    assert {image.mode for image in images} == {"RGBA"}
    for image in images:
        assert image.getextrema()[3] == (0, 255) and image.width == image.height


def test_every_count_of_subjects_and_views_is_drawn(clips, oracles, tmp_path):
    settings = InstructionSettings(tasks={"subject": 1}, num_per_clip=4, background="none", max_views=3)
    write_instruction_data(clips, tmp_path / "set", settings, oracles)
    views = Counter(len(record.references) for record in rows(tmp_path / "set"))
    assert set(views) == {1, 2, 3} and views[1] > views[3], "with replacement, fewer are likelier"


def test_the_task_mix_is_the_one_asked_for(clips, tmp_path):
    settings = InstructionSettings(tasks={"prediction": 3, "text-to-video": 1}, num_per_clip=40)
    plugins = PluginSettings("no", "such", "parts")  # not needed without subjects, so not even looked for
    report = write_instruction_data(clips, tmp_path / "set", settings, plugins)["report"]
    assert abs(report["samples"]["prediction"] / 480 - 0.75) < 0.06
    assert len({record.instruction for record in rows(tmp_path / "set")}) > 80


def test_bad_clips_and_images_are_dropped_with_their_reasons(clips, oracles, tmp_path):
    shutil.copytree(clips, tmp_path / "clips")
    lines = (clips / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "clips/still.png").write_bytes(_png())
    (tmp_path / "clips/cut.mp4").write_bytes(b"nothing")
    extra = [{"video": "still.png", "caption": "A wall"}, {"video": "cut.mp4", "caption": "A wall"}, {"caption": "x"}]
    text = "\n".join([*lines, *map(json.dumps, extra), "no json"])
    (tmp_path / "clips/metadata.jsonl").write_text(text)
    settings = InstructionSettings(tasks={"prediction": 1})
    report = write_instruction_data(tmp_path / "clips", tmp_path / "set", settings, oracles)["report"]
    assert report["clips"] == 16 and report["samples"] == {"prediction": 12}
    assert {reason: entry["count"] for reason, entry in report["bad_clips"].items()} == {
        "unreadable_video": 1, "missing_file": 1, "bad_record": 1,
    }  # fmt: skip
    assert report["dropped_samples"] == {"prediction": {"still_image": {"count": 1, "first": ["metadata.jsonl:13"]}}}


def _png():
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "grey").save(file, "PNG")
    return file.getvalue()


def test_retrieved_pairs_that_a_source_has_stay_with_text_to_video(clips, tmp_path):
    row = json.loads((clips / "metadata.jsonl").read_text().splitlines()[0])
    (tmp_path / "in/clips").mkdir(parents=True)
    shutil.copy(clips / row["video"], tmp_path / "in" / row["video"])
    (tmp_path / "in/pair.png").write_bytes(_png())
    row["context"] = [{"image": "pair.png", "text": "A grey wall"}]
    (tmp_path / "in/metadata.jsonl").write_text(json.dumps(row))
    settings = InstructionSettings(tasks={"text-to-video": 1, "prediction": 1}, num_per_clip=8)
    write_instruction_data(tmp_path / "in", tmp_path / "set", settings)
    for record in rows(tmp_path / "set"):
        pairs = [(pair.image, pair.text) for pair in record.context]
        assert pairs == ([(_png(), "A grey wall")] if record.task == "text-to-video" else [])


# ------------------------------------------------------------------ reproducible and resumable
def test_shards_do_not_change_samples_and_the_seed_does(written, clips, oracles, tmp_path):
    folder, _ = written
    write_instruction_data(clips, tmp_path / "one", SETTINGS, oracles, shard_size=100)
    assert [vars(record) for record in rows(tmp_path / "one")] == [vars(record) for record in rows(folder)]
    other = InstructionSettings(num_per_clip=3, background="fill", seed=1)
    write_instruction_data(clips, tmp_path / "other", other, oracles, shard_size=5)
    assert contents(tmp_path / "other") != contents(folder)


@pytest.mark.slow
def test_processes_do_not_change_a_byte(written, clips, oracles, tmp_path):
    write_instruction_data(clips, tmp_path / "two", SETTINGS, oracles, shard_size=5, num_proc=2)
    assert contents(tmp_path / "two") == contents(written[0])


def test_a_stopped_run_goes_on_where_it_was(written, clips, oracles, tmp_path, monkeypatch):
    folder, manifest = written
    made = []
    call = shards.ShardWorker.__call__

    def stop_at_the_third(self, shard):
        made.append(shard)
        if len(made) == 3:
            raise KeyboardInterrupt
        return call(self, shard)

    monkeypatch.setattr(shards.ShardWorker, "__call__", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_instruction_data(clips, tmp_path / "set", SETTINGS, oracles, shard_size=5)
    assert not (tmp_path / "set").exists()
    part = tmp_path / "set.part/result/data"
    (part / "train-00001-of-00003.parquet").write_bytes(b"damaged")  # noticed by its hash and made again
    (part / ".train-00002-of-00003.1.part.parquet").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"set\.part was made with settings seed 0, now it is 1"):
        write_instruction_data(
            clips, tmp_path / "set", InstructionSettings(num_per_clip=3, background="fill", seed=1), oracles,
            shard_size=5,
        )  # fmt: skip
    again = write_instruction_data(clips, tmp_path / "set", SETTINGS, oracles, shard_size=5)
    assert made == [0, 1, 2, 1, 2]
    assert again == manifest and contents(tmp_path / "set") == contents(folder)
    assert not (tmp_path / "set.part").exists()
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["data", "manifest.json"]
    assert write_instruction_data(clips, tmp_path / "set", SETTINGS, oracles, shard_size=5) == manifest
    assert len(made) == 5, "a finished run is not done again"


def test_a_run_that_failed_before_its_first_shard_leaves_other_settings_free(clips, oracles, tmp_path):
    wrong = dataclasses.replace(oracles, segmenter=f"{oracles.segmenter}/nowhere")
    with pytest.raises(FileNotFoundError, match="There is no .*nowhere"):
        write_instruction_data(clips, tmp_path / "set", SUBJECTS, wrong)
    assert write_instruction_data(clips, tmp_path / "set", SUBJECTS, oracles)["report"]["samples"]


@pytest.mark.slow
def test_an_error_in_a_process_is_told_as_it_is(clips, oracles, tmp_path):
    plugins = PluginSettings(oracles.entities, oracles.detector, f"{oracles.segmenter}/nowhere", batch_size=4)
    with pytest.raises(FileNotFoundError, match="There is no .*nowhere"):
        write_instruction_data(clips, tmp_path / "set", SUBJECTS, plugins, shard_size=5, num_proc=2)


class DyingDetector(OracleDetector):
    """A process that the system kills."""

    def __call__(self, images, phrases):
        os._exit(9)


@pytest.mark.slow
def test_a_killed_process_leaves_what_is_finished(written, clips, oracles, tmp_path):
    dying = dataclasses.replace(oracles, detector=f"{__name__}:DyingDetector={clips}")
    with pytest.raises(ChildProcessError, match="A process was killed .* run the same again"):
        write_instruction_data(clips, tmp_path / "set", SETTINGS, dying, shard_size=5, num_proc=2)
    assert (tmp_path / "set.part/manifest.json").is_file() and not (tmp_path / "set").exists()


# ------------------------------------------------------------------ input that cannot be used
@pytest.mark.parametrize(
    "settings, options, message",
    [
        ({}, {"form": "zip"}, "`form` must be one of parquet, webdataset, got 'zip'"),
        ({}, {"shard_size": 0}, "`shard_size` must be at least 1"),
        ({}, {"num_proc": 0}, "`num_proc` must be at least 1"),
        ({"tasks": {"dance": 1}}, {}, "Unknown task 'dance'"),
        ({"tasks": {"subject": -1}}, {}, "The share of task 'subject'"),
        ({"tasks": {"subject": float("nan")}}, {}, "The share of task 'subject'"),
        ({"tasks": {"subject": 0}}, {}, "`tasks` must hold a positive share"),
        ({"background": "blur"}, {}, "`background` must be one of crop, fill, none"),
        ({"subject_background": "black"}, {}, "`subject_background` must be one of white, alpha"),
        ({"max_views": 0}, {}, "`max_views` must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(clips, tmp_path, settings, options, message):
    with pytest.raises(ValueError, match=message):
        write_instruction_data(clips, tmp_path / "set", InstructionSettings(**settings), **options)
    assert not list(tmp_path.iterdir())


def test_sources_and_folders_that_cannot_be_used_are_named(clips, oracles, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        write_instruction_data(tmp_path / "nowhere", tmp_path / "set", SUBJECTS, oracles)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no samples"):
        write_instruction_data(tmp_path / "empty", tmp_path / "set", SUBJECTS, oracles)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/diary.txt").write_text("")
    with pytest.raises(ValueError, match="taken exists already and holds something else"):
        write_instruction_data(clips, tmp_path / "taken", SUBJECTS, oracles)
    objects = PluginSettings(*oracles.load())
    with pytest.raises(ValueError, match="Several processes need plug-ins by name"):
        write_instruction_data(clips, tmp_path / "set", SUBJECTS, objects, num_proc=2)


def test_nothing_at_all_is_an_error_that_says_why(clips, oracles, tmp_path):
    words = tmp_path / "words.tsv"
    words.write_text("submarine\n")
    plugins = PluginSettings(f"vocabulary={words}", oracles.detector, oracles.segmenter)
    with pytest.raises(ValueError, match='No sample came out: .*"no_entity": {"count": 12'):
        write_instruction_data(clips, tmp_path / "set", SUBJECTS, plugins)
    assert not (tmp_path / "set").exists()


# ------------------------------------------------------------------ what comes after
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_the_result_is_valid_training_data(clips, oracles, tmp_path, form):
    folder = tmp_path / "set"
    write_instruction_data(clips, folder, SETTINGS, oracles, form=form, embed_videos=True, shard_size=5)
    shutil.move(folder, tmp_path / "moved")  # it carries its videos
    source, parts = open_source(tmp_path / "moved"), build_tiny_components()
    settings = VideoDataSettings(
        buckets=["4x16x16@5"], prompts=PromptSettings(), batch_size=2, max_sequence_length=150, num_workers=1
    )
    findings = validate(source, parts["text_processor"], parts["transformer"], settings)
    assert findings.usable and not findings.report.bad and findings.total == len(source)
    assert set(findings.tasks) == {"subject", "prediction", "text-to-video"}
    accelerator = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, device=torch.device("cpu"))
    data = VideoData(source, accelerator, settings)
    data.bind(parts["text_processor"], parts["transformer"])
    assert findings.samples and any("<image>" in sample.text for sample in findings.samples)


def test_a_few_steps_of_stage_two_train_on_it(written, tmp_path):
    from vimi_diffusers import VIMIPipeline

    VIMIPipeline(**build_tiny_components()).save_pretrained(tmp_path / "stage1")
    config = TrainingConfig(
        output_dir=str(tmp_path / "run"), train_data_dir=str(written[0]), max_sequence_length=150,
        pretrained_model_name_or_path=str(tmp_path / "stage1"), video_buckets=["4x16x16@5"],
        task_weights={"subject": 0.4, "prediction": 0.2, "text-to-video": 0.4}, train_batch_size=4, max_train_steps=3,
        dataloader_num_workers=0, learning_rate=1e-3, lr_warmup_steps=1, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(config)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    folder = trainer.run()
    assert trainer.global_step == 3 and (folder / "model_index.json").is_file()
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
