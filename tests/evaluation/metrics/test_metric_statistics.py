import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import identity

from vimi_diffusers.evaluation.metrics import FeatureStatistics, InceptionStatistics, ScalarStatistics


def feature_statistics(features, **other):
    return FeatureStatistics(identity(features.shape[1], **other)).update(features)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 5), st.sampled_from([0.0, 1e3, 1e7]))
def test_any_batches_and_parts_give_the_moments_of_all_samples(sizes, cut, offset):
    features = torch.randn(sum(sizes) + 2, 5, dtype=torch.float64) + offset
    parts = [FeatureStatistics(identity(5)), FeatureStatistics(identity(5))]
    for number, batch in enumerate(features.split([*sizes, 2])):
        parts[number > cut].update(batch)
    whole = parts[0].merge(parts[1])
    assert whole.count == len(features)
    assert np.allclose(whole.mean, features.numpy().mean(0), rtol=1e-12)
    # far from zero only the input's own rounding is lost, not the square of it
    assert np.allclose(whole.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-10 + offset * 1e-14)


def test_float32_features_far_from_zero_keep_their_spread():
    features = 1000 + torch.randn(20000, 3)
    statistics = FeatureStatistics(identity(3))
    for batch in features.split(64):
        statistics.update(batch)
    assert np.allclose(statistics.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-11)


def test_scalars_are_means_with_standard_errors():
    values = torch.rand(50, dtype=torch.float64)
    statistics = ScalarStatistics("clipsim")
    for batch in values.split(7):
        statistics.update(batch)
    assert statistics.mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert statistics.standard_error == pytest.approx(values.std().item() / 50**0.5, rel=1e-12)
    share = ScalarStatistics("dynamic degree").update(torch.tensor([True, False, True, True]))
    assert share.mean == 0.75
    with pytest.raises(ValueError, match="no value of clipsim yet"):
        ScalarStatistics("clipsim").mean  # noqa: B018


def test_files_come_back_and_those_of_another_extractor_are_refused(tmp_path):
    statistics = feature_statistics(torch.randn(9, 4), preprocessing={"height": 224})
    statistics.save(tmp_path / "deep/real.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "deep/real.safetensors", statistics.settings["identity"])
    assert loaded.count == 9 and torch.equal(loaded.covariance, statistics.covariance)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["real.safetensors"]

    moved = {**identity(4, preprocessing={"height": 224}), "name": "the same under another path"}
    FeatureStatistics.load(tmp_path / "deep/real.safetensors", moved)
    for other in (
        identity(4, preprocessing={"height": 112}),
        identity(4, preprocessing={"height": 224}, kind="new"),
        {**moved, "weights_sha256": "1" * 64},
        {**moved, "output": "logits"},
    ):
        with pytest.raises(ValueError, match="real.safetensors is of another extractor"):
            FeatureStatistics.load(tmp_path / "deep/real.safetensors", other)


def test_the_refusal_says_what_differs():
    one = feature_statistics(torch.randn(9, 4), preprocessing={"height": 224})
    with pytest.raises(ValueError, match=r"different: preprocessing.height \(112, not 224\)"):
        one.merge(feature_statistics(torch.randn(9, 4), preprocessing={"height": 112}))
    with pytest.raises(ValueError, match=r"dimension \(5, not 4\)"):
        one.merge(feature_statistics(torch.randn(9, 5), preprocessing={"height": 224}))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none"):
        FeatureStatistics.load(tmp_path / "none")
    (tmp_path / "text").write_text("no statistics")
    with pytest.raises(ValueError, match="no file of statistics"):
        FeatureStatistics.load(tmp_path / "text")
    feature_statistics(torch.randn(9, 4)).save(tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut is no file of statistics, or is damaged"):
        FeatureStatistics.load(tmp_path / "cut")
    with pytest.raises(ValueError, match="holds FeatureStatistics in format 1, not ScalarStatistics"):
        ScalarStatistics.load(tmp_path / "whole")


def test_bad_features_are_named():
    statistics = FeatureStatistics(identity(4))
    with pytest.raises(ValueError, match=r"shape \(B, 4\), got \(2, 3\)"):
        statistics.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="1 of 3 features are not finite, first of sample 2"):
        statistics.update(torch.tensor([[0.0] * 4, [1.0] * 4, [0.0, torch.nan, 0.0, 0.0]]))
    assert statistics.count == 0
    with pytest.raises(ValueError, match="at least 2 samples, there are 1"):
        statistics.update(torch.zeros(1, 4)).covariance  # noqa: B018
    with pytest.raises(ValueError, match="values of psnr are not finite, first of sample 0"):
        ScalarStatistics("psnr").update(torch.tensor([torch.inf]))


_WORKER = """
import sys, torch
from accelerate import PartialState
from metric_cases import identity
from vimi_diffusers.evaluation.metrics import FeatureStatistics, InceptionStatistics, ScalarStatistics
state, out = PartialState(cpu=True), sys.argv[1]
numbers = torch.arange(13)[state.process_index::2]
samples = torch.randn(13, 5, generator=torch.Generator().manual_seed(0))
FeatureStatistics(identity(5)).update(samples[numbers]).gather(state).save(f"{out}/{state.process_index}.features")
scalars = ScalarStatistics("clipsim").update(samples[numbers, 0]).gather(state)
logits = InceptionStatistics(identity(5, "logits"), 13, 3, 1).update(samples[numbers], numbers).gather(state)
scalars.save(f"{out}/{state.process_index}.scalars")
logits.save(f"{out}/{state.process_index}.logits")
try:
    FeatureStatistics(identity(5 + state.process_index)).gather(state)
except ValueError as error:
    open(f"{out}/{state.process_index}.error", "w").write(str(error))
state.destroy_process_group()
"""


def test_two_processes_get_the_whole(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[3]
    paths = [str(root / "src"), str(Path(__file__).parent)]
    workers = []
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        settings = {**ranks, "OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths)}
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        workers.append(subprocess.Popen([sys.executable, "-c", _WORKER, str(tmp_path)], env=environment))
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    samples = torch.randn(13, 5, generator=torch.Generator().manual_seed(0))
    features, logits = feature_statistics(samples), InceptionStatistics(identity(5, "logits"), 13, 3, 1)
    logits.update(samples, torch.arange(13))
    for rank in range(2):
        gathered = FeatureStatistics.load(tmp_path / f"{rank}.features")
        assert gathered.count == 13
        assert torch.allclose(gathered.covariance, features.covariance, rtol=1e-12)
        assert ScalarStatistics.load(tmp_path / f"{rank}.scalars").mean == pytest.approx(samples[:, 0].mean().item())
        assert InceptionStatistics.load(tmp_path / f"{rank}.logits").score() == pytest.approx(logits.score())
        other = "The part of process 1" if rank == 0 else "The part of process 0"
        assert (tmp_path / f"{rank}.error").read_text().startswith(f"{other} is of another extractor")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_moments():
    features = torch.randn(300, 40)
    on_gpu = FeatureStatistics(identity(40), device="cuda").update(features[:100].cuda()).update(features[100:])
    on_cpu = feature_statistics(features)
    assert torch.allclose(on_gpu.covariance.cpu(), on_cpu.covariance, rtol=1e-12, atol=1e-14)
    on_cpu.merge(on_gpu)
    assert on_cpu.count == 600 and on_cpu.device.type == "cpu"
