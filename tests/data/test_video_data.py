import json
import math
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from media_files import encode_image, encode_video, numbered_folder, write_folder, write_shard

from vimi_diffusers.data import TooManyBadSamples, VideoData


MIX = {"task_weights": {"text-to-video": 1, "prediction": 1}, "condition_dropout": 0.1, "image_dropout": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return numbered_folder(tmp_path_factory.mktemp("good") / "set", 12)


def take(data, count, start=0):
    return [{name: value.clone() for name, value in batch.items()} for batch in islice(data.batches(start), count)]


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def members(data, count, start=0):
    """Numbers of the samples of `count` steps."""
    return [[int(data.members[d.bucket][d.member]) for d in draws] for draws in islice(data.order(start), count)]


def test_what_a_batch_holds(folder, make_data):
    data = make_data(folder, batch_size=3)
    (batch,) = take(data, 1)
    assert batch["video"].shape == (3, 3, 4, 16, 16) and batch["video"].dtype == torch.float32
    assert -1 <= batch["video"].min() < batch["video"].max() <= 1
    assert batch["fps"].tolist() == [4.0] * 3 and batch["input_ids"].shape == batch["attention_mask"].shape == (3, 64)
    assert "resolution" not in batch and "pixel_values" not in batch
    # 4 frames a second out of 8: every other one
    steps = (batch["video"][:, 0, :, 8, 8].diff(dim=1) * 127.5 / 8).round()
    assert (steps == 2).all()


def test_pixels_come_with_their_own_caption(folder, make_data, components):
    data = make_data(folder, batch_size=4)
    tokenizer = components["text_processor"].tokenizer
    starts = set()
    for batch in take(data, 6):
        for video, ids in zip(batch["video"], batch["input_ids"]):
            number = int(tokenizer.decode(ids, skip_special_tokens=True).split()[-1])
            shade = (video[0, 0, 8, 8].item() + 1) * 127.5 - 4 * number
            assert abs(shade / 8 - round(shade / 8)) < 0.3 and 0 <= round(shade / 8) <= 9
            starts.add(round(shade / 8))
    assert len(starts) > 3  # clips begin anywhere


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_equals_the_uninterrupted_one(folder, make_data, workers):
    straight = take(make_data(folder, prompts=MIX), 16)  # past the first epoch of 6 steps
    for start in (3, 8):
        resumed = take(make_data(folder, prompts=MIX, num_workers=workers), 16 - start, start)
        assert_equal(straight[start:], resumed)
    other = take(make_data(folder, prompts=MIX, seed=1), 16)
    assert not all(torch.equal(one["video"], two["video"]) for one, two in zip(straight, other))


def test_two_ranks_with_two_workers_share_each_epoch(folder, make_data, components):
    tokenizer = components["text_processor"].tokenizer
    ranks = [make_data(folder, rank=rank, world_size=2, num_workers=2, batch_size=2) for rank in range(2)]
    seen = []
    for data in ranks:
        batches = take(data, 6)  # 2 epochs of 12 samples in global batches of 4
        seen.append([[int(tokenizer.decode(ids, skip_special_tokens=True).split()[-1]) for ids in batch["input_ids"]]
                     for batch in batches])  # fmt: skip
    for epoch in (slice(0, 3), slice(3, 6)):
        numbers = [number for rank in seen for batch in rank[epoch] for number in batch]
        assert sorted(numbers) == list(range(12))
    alone = take(make_data(folder, batch_size=4), 3)
    split = [take(data, 3) for data in ranks]
    for step, batch in enumerate(alone):
        assert torch.equal(batch["video"], torch.cat([split[0][step]["video"], split[1][step]["video"]]))


def damaged(folder, numbers, damage):
    files = {f"{number}.mp4": encode_video(shade=4 * number, form="matroska", noise=True) for number in range(12)}
    rows = [{"video": name, "caption": f"clip {number}"} for number, name in enumerate(files)]
    for number in numbers:
        files[f"{number}.mp4"] = damage(files[f"{number}.mp4"])
    return write_folder(folder, rows, files)


def cut_off(data):
    return data[: len(data) // 2]


def test_a_bad_sample_is_replaced_and_the_others_keep_their_places(tmp_path, make_data):
    good = make_data(damaged(tmp_path / "good", [], None))
    bad = make_data(damaged(tmp_path / "bad", [3, 4], cut_off), max_bad_share=0.5, output_dir=str(tmp_path / "out"))
    assert not bad.report.bad and members(good, 12) == members(bad, 12)  # the headers are whole
    damage, replaced = set(), 0
    for numbers, one, other in zip(members(good, 12), take(good, 12), take(bad, 12)):
        for place, number in enumerate(numbers):
            same = torch.equal(one["video"][place], other["video"][place])
            assert same or number in (3, 4)
            replaced += not same
            damage |= set() if same else {number}
    assert replaced and damage <= {3, 4}
    rows = [json.loads(line) for line in (tmp_path / "out/bad_samples.jsonl").read_text().splitlines()]
    assert {row["sample"] for row in rows} == {f"metadata.jsonl:{number + 1}" for number in damage}
    assert {row["reason"] for row in rows} <= {"truncated", "unreadable_video"}
    again = make_data(tmp_path / "bad", max_bad_share=0.5, num_workers=2)
    assert_equal(take(bad, 6, 5), take(again, 6, 5))
    assert set(again.report.bad) <= {row["sample"] for row in rows}


def test_the_replacement_is_the_next_good_sample_of_the_data_set(tmp_path, make_data):
    data = make_data(damaged(tmp_path / "set", [], None), max_bad_share=1.0)
    for number in (3, 4):  # after the data set was opened
        (tmp_path / f"set/{number}.mp4").unlink()
    draw = data.order().draw(0, 0)._replace(member=3)
    loaded = data.dataset.__getitems__([draw])
    assert [each.key for each in loaded.bad] == ["metadata.jsonl:4", "metadata.jsonl:5"] and loaded.drawn == 3
    assert {each.reason for each in loaded.bad} == {"missing_file"}
    frames, _ = data.dataset.read(5, draw)
    assert torch.equal(loaded.tensors["video"][0], torch.from_numpy(frames))


def test_too_many_bad_samples_stop_the_run_with_the_report(tmp_path, make_data):
    folder = damaged(tmp_path / "set", [0, 5], lambda data: b"")
    with pytest.raises(TooManyBadSamples, match=r"2 of 12 samples(.|\n)*2 x zero_frames(.|\n)*metadata.jsonl:1: "):
        make_data(folder, output_dir=str(tmp_path / "out"))
    assert len((tmp_path / "out/bad_samples.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "out/data_index.parquet").exists()  # the mended data set is looked at anew
    data = make_data(folder, max_bad_share=0.2)
    assert len(data.members[0]) == 10

    late = make_data(damaged(tmp_path / "late", range(6), lambda data: data[: len(data) // 3]), max_bad_share=0.1,
                     num_workers=2)  # fmt: skip
    with pytest.raises(TooManyBadSamples, match="met so far, of 12, samples"):
        take(late, 200)


def test_clips_that_fit_no_bucket_count_too(tmp_path, make_data):
    rows = [{"video": f"{number}.mp4", "caption": "x"} for number in range(3)]
    files = {"0.mp4": encode_video(16), "1.mp4": encode_video(3), "2.mp4": encode_video(8, fps=2)}
    data = make_data(write_folder(tmp_path / "set", rows, files), max_bad_share=0.9)
    assert {key: bad.reason for key, bad in data.report.bad.items()} == {
        "metadata.jsonl:2": "too_short", "metadata.jsonl:3": "too_slow",
    }  # fmt: skip
    with pytest.raises(TooManyBadSamples):
        make_data(tmp_path / "set", max_bad_share=0.5)


def test_a_prompt_that_the_processor_refuses_costs_that_sample_alone(folder, make_data):
    data = make_data(folder, batch_size=4, max_bad_share=1.0)
    encoder, refused = data.dataset.encoder, 0

    def fussy(prompts):
        nonlocal refused
        if any(prompt.text.endswith("clip 7") for prompt in prompts):
            refused += 1
            raise TypeError("I do not like it")
        return type(encoder).__call__(encoder, prompts)

    fussy.processor = encoder.processor
    good = take(make_data(folder, batch_size=4), 3)
    data.dataset.encoder = fussy
    for numbers, one, other in zip(members(data, 3), good, take(data, 3)):
        assert [torch.equal(a, b) for a, b in zip(one["video"], other["video"])] == [n != 7 for n in numbers]
    assert refused and [(bad.reason, bad.detail) for bad in data.report.bad.values()] == [
        ("bad_prompt", "I do not like it")
    ]


def test_buckets_and_joint_batches_of_images(tmp_path, make_data):
    rows = [{"video": f"{number}.mp4", "caption": "x"} for number in range(6)]
    rows += [{"video": f"{number}.png", "caption": "y"} for number in range(6)]
    files = {f"{number}.mp4": encode_video(width=32 if number < 3 else 64) for number in range(6)}
    files |= {f"{number}.png": encode_image((20, 20)) for number in range(6)}
    folder = write_folder(tmp_path / "set", rows, files)
    data = make_data(folder, buckets=["4x16x16@4", "2x16x32", "1x16x16"])
    assert [len(numbers) for numbers in data.members] == [3, 3, 6]
    shapes = set()
    for batch in take(data, 12):
        shape = tuple(batch["video"].shape[2:])
        shapes.add(shape)
        rate = {(4, 16, 16): 4.0, (2, 16, 32): 8.0, (1, 16, 16): math.inf}[shape]
        assert batch["fps"].tolist() == [rate, rate]
    assert len(shapes) == 3
    joint = make_data(folder, buckets=["4x16x16@4"], batch_size=6)
    both = set()
    for batch in take(joint, 4):
        for video, fps in zip(batch["video"], batch["fps"].tolist()):
            assert torch.equal(video[:, 0], video[:, 1]) == math.isinf(fps)
            both.add(fps)
    assert both == {4.0, math.inf}


def test_the_models_own_shape_is_the_default_and_others_must_fit(folder, make_data, components):
    data = make_data(folder, buckets=None, max_bad_share=1.0)
    assert [str(bucket) for bucket in data.buckets] == ["4x16x16@5.33333"]
    with pytest.raises(ValueError, match="`height` 10 does not fit"):
        make_data(folder, buckets=["4x10x16@4"])
    with pytest.raises(ValueError, match="'subject'"):
        make_data(folder, prompts={"task_weights": {"subject": 1.0}})


def test_held_out_samples_are_fixed_and_never_trained_on(tmp_path, make_data, components):
    rows = [{"video": f"{n}.mp4", "caption": f"A dog, clip {n}",
             "references": [{"image": "dog.png", "name": "dog"}]} for n in range(20)]  # fmt: skip
    files = {f"{n}.mp4": encode_video(shade=4 * n) for n in range(20)} | {"dog.png": encode_image()}
    folder = write_folder(tmp_path / "set", rows, files)
    prompts = {"task_weights": {"text-to-video": 1, "subject": 1}}
    data = make_data(folder, prompts=prompts, num_held_out=99)
    held_out = set(data.held_out_numbers)
    assert len(held_out) == 2
    assert held_out.isdisjoint(number for numbers in members(data, 40) for number in numbers)
    batches = list(data.held_out(5, 1))
    assert [name for name, _ in batches] == ["text-to-video"] * 2 + ["subject", "subject_without_images"] * 2
    other = make_data(folder, prompts=prompts, num_held_out=99, seed=5, rank=1, world_size=2)
    assert_equal([batch for _, batch in batches], [batch for _, batch in other.held_out(5, 1)])
    assert len(list(data.held_out(1, 8))) == 3
    subject, bare = dict(batches)["subject"], dict(batches)["subject_without_images"]
    assert torch.equal(subject["video"], bare["video"]) and "pixel_values" not in bare
    with pytest.raises(ValueError, match="too few to hold out"):
        make_data(numbered_folder(tmp_path / "few", 3), num_held_out=1)


def test_a_resumed_run_keeps_its_data_set_and_what_it_held_out(tmp_path, make_data):
    folder, out = numbered_folder(tmp_path / "set", 12), str(tmp_path / "out")
    first = make_data(folder, num_held_out=1, output_dir=out)
    resumed = make_data(folder, num_held_out=0, output_dir=out, resume=True)
    assert resumed.held_out_numbers == first.held_out_numbers and len(first.held_out_numbers) == 1
    numbered_folder(tmp_path / "set", 11)
    with pytest.raises(ValueError, match="not the one that .*data_index.parquet was made from"):
        make_data(folder, output_dir=out, resume=True)
    assert len(make_data(folder, output_dir=out).members[0]) == 11  # a new run may


def test_a_resumed_run_does_not_open_everything_again(tmp_path, make_data, monkeypatch):
    folder, out = numbered_folder(tmp_path / "set", 6), str(tmp_path / "out")
    straight = take(make_data(folder, output_dir=out), 5)
    from vimi_diffusers.data import video_data

    monkeypatch.setattr(video_data, "examine_all", None)
    assert_equal(straight[2:], take(make_data(folder, output_dir=out, resume=True), 3, start=2))


def test_all_layouts_give_the_same_batches(tmp_path, make_data, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    clips = [encode_video(shade=8 * number) for number in range(4)]
    rows = [{"video": f"{n}.mp4", "caption": f"clip {n}"} for n in range(4)]
    folder = write_folder(tmp_path / "folder", rows, {f"{n}.mp4": data for n, data in enumerate(clips)})
    for n in (0, 2):
        pair = {f"{m}.{kind}": value for m in (n, n + 1)
                for kind, value in (("mp4", clips[m]), ("txt", f"clip {m}".encode()))}  # fmt: skip
        write_shard(tmp_path / f"shards/{n}.tar", pair)
    features = datasets.Features({"video": datasets.Video(), "caption": datasets.Value("string")})
    saved = [{"video": {"bytes": data, "path": None}, "caption": f"clip {n}"} for n, data in enumerate(clips)]
    datasets.Dataset.from_list(saved, features=features).save_to_disk(tmp_path / "saved")
    expected = take(make_data(folder, prompts=MIX), 4)
    for path in ("shards", "saved"):
        assert_equal(expected, take(make_data(tmp_path / path, prompts=MIX), 4))


def test_texts_for_a_tokenizer(folder, make_data):
    texts = list(make_data(folder, bind=False).texts())
    assert {f"clip {number}" for number in range(12)} <= set(texts)
    assert "Generate a video with the text and image." in texts


def test_the_original_size_for_a_model_that_is_told(folder, make_data):
    data = make_data(folder)
    data.dataset.resolution = True
    assert take(data, 1)[0]["resolution"].tolist() == [[32.0, 32.0]] * 2


def test_from_a_training_configuration(folder, tmp_path, components):
    from accelerate import Accelerator

    from vimi_diffusers.training.config import TrainingConfig

    options = {"output_dir": str(tmp_path / "out"), "model": {"vocab_size": 300}, "train_data_dir": str(folder)}
    config = TrainingConfig(**options, video_buckets=["4x16x16@4"], train_batch_size=2, max_sequence_length=64,
                            dataloader_num_workers=0)  # fmt: skip
    data = VideoData.from_config(config, Accelerator(cpu=True))
    data.bind(components["text_processor"], components["transformer"])
    assert take(data, 1)[0]["video"].shape == (2, 3, 4, 16, 16)
    assert (tmp_path / "out/data_index.parquet").is_file() and (tmp_path / "out/bad_samples.jsonl").read_text() == ""
    captured = TrainingConfig(**options, cuda_graph=True, task_weights={"prediction": 1.0})
    with pytest.raises(ValueError, match="`cuda_graph` needs batches of one shape"):
        VideoData.from_config(captured, Accelerator(cpu=True))


PROCESS = """
import json, sys
from itertools import islice
import torch
from accelerate import Accelerator
from vimi_diffusers.data import PromptSettings, TooManyBadSamples, VideoData, VideoDataSettings, open_source
from vimi_diffusers.data import video_data
from vimi_diffusers.vimi.tiny import build_tiny_components

video_data.SYNC_STEPS = 4
folder, out, share = sys.argv[1:]
accelerator = Accelerator(cpu=True)
settings = VideoDataSettings(buckets=["4x16x16@4"], prompts=PromptSettings({"text-to-video": 1.0}), batch_size=1,
                             max_sequence_length=64, num_workers=2, max_bad_share=float(share), output_dir=out)
data = VideoData(open_source(folder), accelerator, settings)
components = build_tiny_components()
data.bind(components["text_processor"], components["transformer"])
steps, stopped = 0, False
try:
    for batch in islice(data.batches(), 48):
        steps += 1
except TooManyBadSamples:
    stopped = True
result = {"steps": steps, "stopped": stopped, "drawn": data.report.drawn, "bad": sorted(data.report.bad)}
with open(f"{out}/rank{accelerator.process_index}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.2])
def test_two_processes_count_together_and_stop_at_the_same_step(tmp_path, share):
    folder = damaged(tmp_path / "set", [1, 2, 6, 7, 8], lambda data: data[: len(data) // 3])
    (tmp_path / "run.py").write_text(PROCESS)
    (tmp_path / "out").mkdir()
    # accelerate's own launcher starts one process alone on a machine without GPUs
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "run.py"), str(folder), str(tmp_path / "out"), str(share)]  # fmt: skip
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"out/rank{rank}.json").read_text()) for rank in range(2))
    assert one == two
    rows = [json.loads(line) for line in (tmp_path / "out/bad_samples.jsonl").read_text().splitlines()]
    assert sorted(row["sample"] for row in rows) == one["bad"]
    assert set(one["bad"]) <= {f"metadata.jsonl:{number + 1}" for number in (1, 2, 6, 7, 8)} and len(one["bad"]) >= 3
    if share == 1.0:
        assert one["steps"] == 48 and not one["stopped"] and one["drawn"] > 2 * 48
    else:
        assert one["stopped"] and one["steps"] < 48
