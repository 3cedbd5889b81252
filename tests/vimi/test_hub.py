"""Pipelines to and from the Hub, against a small one on loopback."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline
from fake_hub import FakeHub

import vimi_diffusers
from vimi_diffusers import VIMIPipeline
from vimi_diffusers.vimi import MLLMConditioner, VIMITransformer3DModel


REPO = "user/tiny-vimi"


def run(pipe, seed=0):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipe("a red ball", num_inference_steps=1, generator=generator, output_type="np").frames


def assert_equal_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with FakeHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.mark.parametrize("loader", [VIMIPipeline, DiffusionPipeline])
def test_push_then_pull_is_exact(hub, tiny_pipeline, loader):
    tiny_pipeline.push_to_hub(REPO)
    assert {"model_index.json", "README.md", "scheduler/scheduler_config.json"} <= set(hub.files(REPO))
    loaded = loader.from_pretrained(REPO)
    assert type(loaded) is VIMIPipeline
    assert any(path.endswith("transformer/diffusion_pytorch_model.safetensors") for _, path in hub.requests)
    for name in ("transformer", "text_encoder"):
        assert_equal_weights(getattr(loaded, name), getattr(tiny_pipeline, name))
    np.testing.assert_array_equal(run(loaded), run(tiny_pipeline))


def test_sharded_weights(hub, tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(
        str(tmp_path / "saved"), max_shard_size="100KB", push_to_hub=True, repo_id=REPO, commit_message="Shards"
    )
    names = set(hub.files(REPO))
    assert sum(name.startswith("transformer/diffusion_pytorch_model-0") for name in names) > 1
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in names
    assert_equal_weights(VIMIPipeline.from_pretrained(REPO).transformer, tiny_pipeline.transformer)
    assert_equal_weights(AutoModel.from_pretrained(REPO, subfolder="transformer"), tiny_pipeline.transformer)


def test_variant(hub, tiny_pipeline):
    run(tiny_pipeline)
    tiny_pipeline.push_to_hub(REPO)
    with pytest.raises(ValueError, match="variant=fp16"):
        VIMIPipeline.from_pretrained(REPO, variant="fp16")
    tiny_pipeline.to(torch.float16).push_to_hub(REPO, variant="fp16")
    names = set(hub.files(REPO))
    assert {f"transformer/diffusion_pytorch_model{end}.safetensors" for end in ("", ".fp16")} <= names

    hub.requests.clear()
    half = DiffusionPipeline.from_pretrained(REPO, variant="fp16", dtype=torch.float16)
    assert not any(path.endswith("diffusion_pytorch_model.safetensors") for _, path in hub.requests)
    for name in ("transformer", "text_encoder"):
        assert getattr(half, name).dtype == torch.float16
        assert_equal_weights(getattr(half, name), getattr(tiny_pipeline, name))
    assert VIMIPipeline.from_pretrained(REPO).transformer.dtype == torch.float32


def test_revision_by_branch_and_by_commit(hub, tiny_pipeline):
    tiny_pipeline.push_to_hub(REPO)
    first = hub.revision(REPO)
    hub.branch(REPO, "before-training")
    old = {name: value.clone() for name, value in tiny_pipeline.transformer.state_dict().items()}
    with torch.no_grad():
        tiny_pipeline.transformer.proj_out.weight.add_(1)
    tiny_pipeline.push_to_hub(REPO)
    assert hub.revision(REPO) != first
    assert_equal_weights(VIMIPipeline.from_pretrained(REPO).transformer, tiny_pipeline.transformer)
    tiny_pipeline.transformer.load_state_dict(old)
    for revision in ("before-training", first):
        loaded = DiffusionPipeline.from_pretrained(REPO, revision=revision)
        assert_equal_weights(loaded.transformer, tiny_pipeline.transformer)
    with pytest.raises(OSError, match="tiny-vimi") as caught:
        VIMIPipeline.from_pretrained(REPO, revision="nowhere")
    assert "nowhere" in str(caught.getrepr(chain=True))


def test_a_component_alone_by_subfolder(hub, tiny_pipeline):
    tiny_pipeline.push_to_hub(REPO)
    hub.requests.clear()
    transformer = VIMITransformer3DModel.from_pretrained(REPO, subfolder="transformer")
    assert not any("text_encoder" in path for _, path in hub.requests)
    assert_equal_weights(transformer, tiny_pipeline.transformer)
    for subfolder, cls in (("transformer", VIMITransformer3DModel), ("text_encoder", MLLMConditioner)):
        model = AutoModel.from_pretrained(REPO, subfolder=subfolder)
        assert type(model) is cls
        assert_equal_weights(model, getattr(tiny_pipeline, subfolder))
    scheduler = vimi_diffusers.EDMVideoScheduler.from_pretrained(REPO, subfolder="scheduler")
    assert scheduler.config.sigma_in == tiny_pipeline.scheduler.config.sigma_in

    hub.requests.clear()
    pipe = VIMIPipeline.from_pretrained(REPO, transformer=transformer)
    assert pipe.transformer is transformer
    assert not any("transformer/" in path for _, path in hub.requests)


def test_private_repository(hub, tiny_pipeline, monkeypatch):
    tiny_pipeline.push_to_hub(REPO)
    hub.private.add(REPO)
    for load in (VIMIPipeline.from_pretrained, DiffusionPipeline.from_pretrained):
        with pytest.raises(OSError, match=REPO) as caught:
            load(REPO, token=False)
        assert "private or gated repo, make sure you are authenticated" in str(caught.getrepr(chain=True))
    with pytest.raises(OSError, match="private repository, make sure to pass a token"):
        VIMITransformer3DModel.from_pretrained(REPO, subfolder="transformer", token=False)
    assert type(VIMIPipeline.from_pretrained(REPO, token="hf_dummy")) is VIMIPipeline


OFFLINE = """
import json, sys, torch, vimi_diffusers
from diffusers import DiffusionPipeline
digests = []
for arguments in ({}, {"local_files_only": True}):
    pipe = DiffusionPipeline.from_pretrained(sys.argv[1], **arguments)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a red ball", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).frames
    digests.append(frames.tobytes().hex())
print(json.dumps([type(pipe).__name__, *digests]))
"""


def test_offline_after_one_download(hub, tiny_pipeline, tmp_path):
    tiny_pipeline.push_to_hub(REPO)
    first = VIMIPipeline.from_pretrained(REPO)
    hub.requests.clear()
    assert_equal_weights(VIMIPipeline.from_pretrained(REPO, local_files_only=True).transformer, first.transformer)
    assert not hub.requests
    source = os.path.dirname(os.path.dirname(vimi_diffusers.__file__))
    environment = {**os.environ, **hub.environment(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": source}
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE, REPO], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    frames = run(tiny_pipeline).tobytes().hex()
    assert json.loads(result.stdout.splitlines()[-1]) == ["VIMIPipeline", frames, frames]
    assert not hub.requests
