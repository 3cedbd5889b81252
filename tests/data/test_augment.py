"""Captions get their pairs, none of which leaks; what was begun is finished, and the result is a data set."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import pytest
from augment_world import NUM_SAMPLES, make_data, make_memory, media_hash, pair, read_all, shard_hashes
from drawn_memory import draw_memory
from media_files import numbered_folder

from vimi_diffusers import ImageTextMemory
from vimi_diffusers.data import open_source
from vimi_diffusers.data.augment import AugmentSettings, augment
from vimi_diffusers.data.shard_folder import ShardFolder
from vimi_diffusers.retrieval.hygiene import HygieneRules, PromptList


PROMPTS = PromptList(["an evaluation PROMPT of a fox!"])
SETTINGS = {"k": 3, "shard_size": 7}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return make_data(folder / "clips"), make_memory(folder / "memory")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run(world, out, num_proc=1, **settings):
    settings = AugmentSettings(**{**SETTINGS, **settings})
    return augment(*world, out, settings, prompts=PROMPTS, num_proc=num_proc)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The result in parquet, and its manifest."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, run(world, out)


def test_pairs_are_those_that_the_memory_finds(world, whole):
    memory, found = ImageTextMemory.load(world[1]), read_all(whole[0])
    plain = set(range(NUM_SAMPLES)) - {2, 3, 4, 5, 6, 8, 10}  # 5, 6, 8, 10 are dropped
    for number in plain:
        caption, *_, pairs = found[f"metadata.jsonl:{number + 1}"]
        expected = memory.search(caption, k=3)
        assert [(id, text, score) for id, text, score, _ in pairs] == [
            (pair.id, pair.text, round(pair.score, 4)) for pair in expected
        ]
        assert len(pairs) == (0 if number == 7 else 3)


@pytest.mark.parametrize("number, reason", [(2, "same_image"), (3, "same_image"), (4, "same_source")])
def test_what_leaks_is_withheld(world, whole, number, reason):
    """The sample's own image or source would be its best pair; the next best takes its place."""
    found, key = read_all(whole[0]), f"metadata.jsonl:{number + 1}"
    caption, *_, pairs = found[key]
    best = ImageTextMemory.load(world[1]).search(caption, k=8)
    own = f"pair{number}"
    assert own in [pair.id for pair in best][:4]
    assert [pair[0] for pair in pairs] == [pair.id for pair in best if pair.id != own][:3]
    report = whole[1]["withheld_pairs"]
    assert {"sample": key, "pair": own} in [
        {name: example[name] for name in ("sample", "pair")} for example in report["examples"][f"leak/{reason}"]
    ]


def test_manifest_and_reports(whole):
    out, manifest = whole
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert manifest["counts"] == {
        "samples": 26, "written": 22, "pairs": 63, "fewer_than_k": 1, "without_pairs": 1, "context_replaced": 1,
    }  # fmt: skip
    assert manifest["dropped_captions"]["counts"] == {
        "evaluation_prompt_normalised": 1, "missing_caption": 1, "missing_file": 1, "unreadable_video": 1,
    }  # fmt: skip
    assert manifest["dropped_captions"]["examples"]["missing_file"][0]["key"] == "metadata.jsonl:7"
    assert manifest["withheld_pairs"]["counts"] == {"leak/same_image": 2, "leak/same_source": 1}
    assert [shard["samples"] for shard in manifest["shards"]] == [5, 5, 7, 5]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_other_fields_are_kept(world, whole):
    source = open_source(whole[0])
    assert source.kind == "datasets" and len(source) == 22
    number = next(number for number in range(22) if source.row(number)["key"] == "metadata.jsonl:10")
    record = source.record(number)
    original = open_source(world[0]).record(9)
    assert (record.fps, record.task, record.instruction) == (8, "text-to-video", "Do it")
    assert record.caption == original.caption and record.prompt == original.prompt
    assert record.video == original.video.resolve()  # a path, not a copy
    assert record.references[0].image == original.references[0].image.read_bytes()


def test_tar_shards_say_the_same(world, whole, tmp_path):
    manifest = run(world, tmp_path / "tars", form="webdataset")
    assert [shard["file"] for shard in manifest["shards"]] == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    assert open_source(tmp_path / "tars").kind == "webdataset"
    tars, tables = read_all(tmp_path / "tars"), read_all(whole[0])
    assert tars.keys() == tables.keys()
    for key, (caption, path, *rest) in tables.items():
        assert tars[key][0] == caption and tars[key][2:] == tuple(rest)
        assert tars[key][1] == media_hash(path)


def test_embedded_videos(world, whole, tmp_path):
    run(world, tmp_path / "out", embed_videos=True)
    source = open_source(tmp_path / "out")
    assert all(isinstance(source.record(number).video, bytes) for number in range(len(source)))
    # and a data set of bytes or tar members is augmented like one of files
    again = augment(tmp_path / "out", world[1], tmp_path / "again", AugmentSettings(**SETTINGS), prompts=PROMPTS)
    assert again["counts"]["written"] == 22 and again["counts"]["pairs"] == 63
    run(world, tmp_path / "tars", form="webdataset")
    once = augment(tmp_path / "tars", world[1], tmp_path / "once", AugmentSettings(**SETTINGS))
    assert once["counts"]["written"] == 22 and once["withheld_pairs"]["counts"] == again["withheld_pairs"]["counts"]


def test_training_sees_the_pairs(whole, components):
    """As `vimi data validate` checks it, and in the prompt of a training sample."""
    from vimi_diffusers.data import PromptSettings, VideoDataSettings
    from vimi_diffusers.data.validation import validate

    settings = VideoDataSettings(
        buckets=["1x16x16"], prompts=PromptSettings(task_weights={"text-to-video": 1.0}, max_context=3),
        max_sequence_length=512,
    )  # fmt: skip
    parts = components["text_processor"], components["transformer"]
    findings = validate(open_source(whole[0]), *parts, settings, num_samples=8)
    assert findings.usable and not findings.report.bad and findings.context == {0: 1, 3: 21}
    with_pairs = [sample for sample in findings.samples if sample.images]
    assert with_pairs and all("picture" in sample.text for sample in with_pairs)


def test_processes_write_the_same(world, whole, tmp_path):
    run(world, tmp_path / "out", num_proc=2)
    assert shard_hashes(tmp_path / "out") == shard_hashes(whole[0])
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == whole[1]


class Stop(Exception):
    pass


def stop_after(count, monkeypatch):
    """Finishing the shard after `count` of them fails."""
    finish, finished = ShardFolder.finish, []

    def counted(self, shard, values):
        if len(finished) == count:
            raise Stop
        finished.append(shard)
        return finish(self, shard, values)

    monkeypatch.setattr(ShardFolder, "finish", counted)
    return finished


def test_a_stopped_run_goes_on(world, whole, tmp_path, monkeypatch):
    out, part = tmp_path / "out", tmp_path / "out.part"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(2, patch)
        run(world, out)
    assert part.is_dir() and not out.exists()
    shards = sorted((part / "result/data").iterdir())
    assert len(shards) == 3  # the third is there, but not noted: a run may have died before its end
    shards[1].write_bytes(shards[1].read_bytes()[:-9])  # damaged since
    (shards[0].parent / ".train-00003-of-00004.77.part.parquet").write_bytes(b"half")
    kept = shards[0].stat().st_mtime_ns
    with monkeypatch.context() as patch:
        again = stop_after(9, patch)
        assert run(world, out) == whole[1]
    assert again == [1, 2, 3]
    assert shard_hashes(out) == shard_hashes(whole[0])
    assert (out / "data" / shards[0].name).stat().st_mtime_ns == kept
    assert not part.exists() and not list(out.rglob(".*"))
    assert run(world, out) == whole[1]  # nothing to do


def test_a_run_goes_on_with_what_it_began_with_only(world, tmp_path, monkeypatch):
    out, source, settings = tmp_path / "out", tmp_path / "clips", AugmentSettings(k=2, shard_size=7)
    shutil.copytree(world[0], source)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(1, patch)
        augment(source, world[1], out, settings)
    for change, message in (
        ({"k": 3}, "settings k 2, now it is 3"),
        ({"rules": HygieneRules(image_radius=None)}, "settings rules .* now it is"),
    ):
        with pytest.raises(ValueError, match=message):
            augment(source, world[1], out, replace(settings, **change))
    with pytest.raises(ValueError, match="evaluation_prompts count 0, now it is 1"):
        augment(source, world[1], out, settings, prompts=PROMPTS)
    with pytest.raises(ValueError, match="memory sha256"):
        augment(source, make_memory(tmp_path / "memory", [pair(number) for number in range(9)]), out, settings)
    with open(source / "metadata.jsonl", "a") as file:
        file.write('{"video": "clips/0.png", "caption": "one more"}\n')
    with pytest.raises(ValueError, match="source samples 26, now it is 27"):
        augment(source, world[1], out, settings)


def test_a_killed_process_costs_nothing_that_was_finished(world, whole, tmp_path):
    """SIGKILL for a worker in the middle: one clear error, and the next call does what is missing."""
    out, killed = tmp_path / "out", []

    def kill():
        while not list((tmp_path / "out.part/done").glob("*.json")):
            time.sleep(0.01)
        child = active_children()[0]
        os.kill(child.pid, signal.SIGKILL)
        killed.append(child.pid)

    thread = Thread(target=kill)
    thread.start()
    with pytest.raises(ChildProcessError, match="run the same again to go on"):
        run(world, out, num_proc=2, shard_size=1)
    thread.join()
    assert killed and not out.exists()
    done = {path.name for path in (tmp_path / "out.part/done").glob("*.json")}
    assert 0 < len(done) < NUM_SAMPLES
    run(world, out, shard_size=1)
    assert read_all(out) == read_all(whole[0])


def test_a_memory_with_kinds(tmp_path, world):
    """K of each kind, in the order of the recipe, from the search of the whole memory."""
    (tmp_path / "drawn").mkdir()
    draw_memory(tmp_path / "drawn").save(tmp_path / "memory")
    source = numbered_folder(tmp_path / "set", 2)
    lines = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    lines[0]["caption"], lines[1]["caption"] = "A fox in a park", "A calm sea"
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    augment(source, tmp_path / "memory", tmp_path / "out", AugmentSettings(k=1, rules=HygieneRules(image_radius=None)))
    found = open_source(tmp_path / "out")
    memory = ImageTextMemory.load(tmp_path / "memory")
    for number, caption in enumerate(("A fox in a park", "A calm sea")):
        assert [item["id"] for item in found.row(number)["context"]] == [pair.id for pair in memory.search(caption)]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"k": 0}, "`k` must be 1 or more, got 0"),
        ({"k": 5, "candidates": 4}, r"`candidates` must be `k` \(5\) or more, got 4"),
        ({"form": "csv"}, "one of parquet, webdataset, got 'csv'"),
        ({"shard_size": 0}, "`shard_size` must be 1 or more, got 0"),
    ],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**values)


def test_places_that_cannot_be(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="no memory at"):
        augment(world[0], tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        augment(tmp_path / "gone", world[1], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("x")
    with pytest.raises(ValueError, match="full exists already"):
        augment(*world, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no samples"):
        augment(tmp_path / "empty", world[1], tmp_path / "out")
    (tmp_path / "empty/metadata.jsonl").write_text('{"video": "gone.mp4", "caption": "a fox"}\n')
    with pytest.raises(ValueError, match="(?s)No sample of .* can be used: 1 of 1 dropped.*missing_file"):
        augment(tmp_path / "empty", world[1], tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
