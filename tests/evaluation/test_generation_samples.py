import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from protocol_cases import write_captions, write_toy

from vimi_diffusers import VIMIPipeline
from vimi_diffusers.evaluation import generation
from vimi_diffusers.evaluation.generation import generate_samples, read_manifest, write_lossless
from vimi_diffusers.evaluation.metrics import VideoFiles
from vimi_diffusers.evaluation.protocols import load_protocol


@pytest.fixture
def toy(tmp_path):
    protocol = load_protocol(write_toy(tmp_path))
    return protocol, protocol.source.open(protocol, {"captions": write_captions(tmp_path)})


def bytes_of(out):
    return {path.name: path.read_bytes() for path in sorted((out / "samples").glob("*.mp4"))}


def read(path, frames=4):
    _, videos = next(iter(VideoFiles([path], frames)))
    return (videos[0].permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (3, 17, 19, 3)])
def test_files_lose_nothing(tmp_path, shape):
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_lossless(frames, tmp_path / "a.mp4", 16 / 3)
    assert np.array_equal(read(tmp_path / "a.mp4", shape[0]), frames)


def test_a_manifest_names_each_file(tmp_path, toy, tiny_pipeline):
    made = generate_samples(toy[0], tiny_pipeline, toy[1], tmp_path / "out", batch_size=2)
    assert [one.id for one in made] == [sample.id for sample in toy[1].samples]
    for one, sample in zip(made, toy[1].samples):
        data = (tmp_path / "out" / one.file).read_bytes()
        assert (one.prompt, one.seed, one.bytes) == (sample.prompt, sample.seed, len(data))
        assert one.sha256 == generation.hashlib.sha256(data).hexdigest()
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [one.id for one in made]


def test_noise_does_not_depend_on_the_batch(tmp_path, toy, tiny_pipeline, monkeypatch):
    """The pipeline is replaced by its noise."""
    protocol, samples = toy

    def noise(self, *args, generator, **kwargs):
        frames = np.stack([torch.rand(4, 16, 16, 3, generator=one).numpy() for one in generator])
        return type("Output", (), {"frames": frames})

    monkeypatch.setattr(type(tiny_pipeline), "__call__", noise)
    for batch_size in (1, 2, 5):
        generate_samples(protocol, tiny_pipeline, samples, tmp_path / str(batch_size), batch_size=batch_size)
    first = bytes_of(tmp_path / "1")
    assert first == bytes_of(tmp_path / "2") == bytes_of(tmp_path / "5")
    assert len(set(first.values())) == 5


def test_videos_hardly_depend_on_the_batch(tmp_path, toy, tiny_pipeline):
    for batch_size in (1, 3):
        generate_samples(toy[0], tiny_pipeline, toy[1], tmp_path / str(batch_size), batch_size=batch_size)
    for path in (tmp_path / "1/samples").glob("*.mp4"):
        other = read(tmp_path / "3/samples" / path.name)
        assert np.abs(read(path).astype(int) - other).max() <= 1  # rounding to bytes


def test_finished_videos_are_kept(tmp_path, toy, tiny_pipeline):
    out = tmp_path / "out"
    generate_samples(toy[0], tiny_pipeline, toy[1], out, batch_size=2)
    before = {path: path.stat().st_mtime_ns for path in (out / "samples").iterdir()}
    wanted = bytes_of(out)
    (out / "samples" / "clip2-000.mp4").unlink()
    (out / "samples" / "clip4-000.mp4").write_bytes(b"cut off")
    generate_samples(toy[0], tiny_pipeline, toy[1], out, batch_size=2)
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"clip2-000", "clip4-000"} and bytes_of(out) == wanted


def test_other_settings_are_refused(tmp_path, toy, tiny_pipeline):
    protocol, samples = toy
    out = tmp_path / "out"
    generate_samples(protocol, tiny_pipeline, samples, out, batch_size=5)
    other = protocol.replace(**{"sampling.num_inference_steps": 3})
    with pytest.raises(ValueError, match=r"other settings: sampling.num_inference_steps \(2, not 3\)"):
        generate_samples(other, tiny_pipeline, samples, out)
    with torch.no_grad():
        tiny_pipeline.transformer.proj_out.weight += 1
    with pytest.raises(ValueError, match="other settings: weights.transformer"):
        generate_samples(protocol, tiny_pipeline, samples, out)


def test_another_prompt_of_the_same_name_is_refused(tmp_path, toy, tiny_pipeline):
    protocol, samples = toy
    generate_samples(protocol, tiny_pipeline, samples, tmp_path / "out", batch_size=5)
    (tmp_path / "captions.csv").write_text("id,caption\nclip0,something else\n")
    changed = protocol.source.open(protocol, {"captions": tmp_path / "captions.csv"})
    with pytest.raises(ValueError, match="clip0-000.mp4 was made from another prompt"):
        generate_samples(protocol, tiny_pipeline, changed, tmp_path / "out")


def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, toy, tiny_pipeline):
    protocol, samples = toy
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        generate_samples(protocol, tiny_pipeline, samples, tmp_path / "out", batch_size=0)
    with pytest.raises(ValueError, match="give a memory"):
        generate_samples(protocol.replace(retrieved_pairs=1), tiny_pipeline, samples, tmp_path / "out")
    with pytest.raises(ValueError, match="`height` 18 does not fit"):
        generate_samples(protocol.replace(size=[18, 16]), tiny_pipeline, samples, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ processes
def start(checkpoint, folder, out, world=1, die_after=-1):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    workers = []
    for rank in range(world):
        settings = {"OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": root / "src"}
        if world > 1:
            settings |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
            settings |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        script = Path(__file__).with_name("protocol_cases.py")
        paths = (folder / "toy.yaml", checkpoint, folder / "captions.csv", out, die_after)
        workers.append(subprocess.Popen([sys.executable, script, *map(str, paths)], env=environment))
    return workers


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_two_processes_and_a_killed_one_give_the_files_of_one(tmp_path, toy, tiny_checkpoint, one_thread):
    workers = start(tiny_checkpoint, tmp_path, tmp_path / "two", world=2)
    workers += start(tiny_checkpoint, tmp_path, tmp_path / "killed", die_after=2)
    pipe = VIMIPipeline.from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    generate_samples(toy[0], pipe, toy[1], tmp_path / "one", batch_size=2)
    wanted, manifest = bytes_of(tmp_path / "one"), (tmp_path / "one/manifest.jsonl").read_bytes()
    assert len(wanted) == 5

    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, -9]
    assert bytes_of(tmp_path / "two") == wanted
    assert (tmp_path / "two/manifest.jsonl").read_bytes() == manifest

    assert len(bytes_of(tmp_path / "killed")) == 2
    journal = next((tmp_path / "killed/journal").glob("*.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-20])  # as if the last line was cut off
    assert len(read_manifest(tmp_path / "killed")) == 1
    generate_samples(toy[0], pipe, toy[1], tmp_path / "killed", batch_size=2)
    assert bytes_of(tmp_path / "killed") == wanted
    assert (tmp_path / "killed/manifest.jsonl").read_bytes() == manifest
