"""Power-function averages against numerical references, their snapshots, and reconstruction."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from vimi_diffusers import VIMIPipeline
from vimi_diffusers.training import ema
from vimi_diffusers.training.ema import (
    PowerEMA,
    list_snapshots,
    posthoc_coefficients,
    power_gamma,
    profile_products,
    reconstruct,
    save_reconstruction,
)
from vimi_diffusers.vimi.tiny import build_tiny_components


WIDTHS = [0.01, 0.05, 0.1, 0.2, 0.28]


def profile(sigma_rel, step, grid):
    """The density of a profile at points of time, straight from its definition."""
    gamma = power_gamma(sigma_rel)
    return np.where(grid <= step, (gamma + 1) * (np.minimum(grid, step) / step) ** gamma / step, 0.0)


def trajectory(steps, size=50, seed=0):
    """An offset, a drift, a random walk and noise: weights of training as a table (steps, size)."""
    rng = np.random.default_rng(seed)
    time = np.arange(1, steps + 1)[:, None]
    walk = np.cumsum(rng.normal(size=(steps, size)) * 0.02, axis=0)
    return 3 + 0.5 * (1 - np.exp(-4 * time / steps)) + walk + 0.1 * rng.normal(size=(steps, size))


def follow(table, sigma_rels, folder=None, every=None):
    """Averages of a trajectory, with snapshots."""
    weight = nn.Parameter(torch.zeros(table.shape[1]))
    averages = PowerEMA({"net.weight": weight}, sigma_rels)
    for step, values in enumerate(table, start=1):
        weight.data.copy_(torch.from_numpy(values))
        averages.update(step)
        if every and step % every == 0:
            averages.save_snapshot(folder)
    return averages


def direct(table, sigma_rel):
    """The discretised profile's sum: the weights of a step count from one whole number of time to the next."""
    grid = (np.arange(1_000 * len(table)) + 0.5) / 1_000
    share = profile(sigma_rel, len(table), grid).reshape(len(table), 1_000).mean(axis=1)
    return share @ table


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_the_profiles_standard_deviation_is_sigma_rel(sigma_rel):
    grid = (np.arange(2_000_000) + 0.5) / 2_000_000
    density = profile(sigma_rel, 1.0, grid)
    mean = (density * grid).mean()
    assert density.mean() == pytest.approx(1, rel=1e-5)
    assert ((density * (grid - mean) ** 2).mean()) ** 0.5 == pytest.approx(sigma_rel, rel=1e-5)


def test_known_exponents_and_widths_out_of_range():
    assert power_gamma(0.05) == pytest.approx(16.97, abs=0.01) and power_gamma(0.1) == pytest.approx(6.94, abs=0.01)
    assert power_gamma(12**-0.5) == pytest.approx(0, abs=1e-6)
    for width in (0, -0.1, 0.29):
        with pytest.raises(ValueError, match="`sigma_rel` must be over 0 and at most 0.2887"):
            power_gamma(width)


def test_inner_products_are_the_integrals():
    grid = (np.arange(400_000) + 0.5) / 400_000 * 100
    for one in ((0.05, 100), (0.1, 60), (0.25, 100)):
        for other in ((0.05, 100), (0.2, 30)):
            expected = (profile(*one, grid) * profile(*other, grid)).mean() * 100
            gammas = [np.float64(power_gamma(width)) for width, _ in (one, other)]
            value = profile_products(np.float64(one[1]), gammas[0], np.float64(other[1]), gammas[1])
            assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", WIDTHS)
def test_averages_are_the_discretised_profiles_sum(sigma_rel):
    table = trajectory(200)
    tracked = follow(table, [sigma_rel]).averages[sigma_rel][0]
    np.testing.assert_allclose(tracked.numpy(), direct(table, sigma_rel), rtol=2e-5)


def test_steps_left_out_count_as_steps_with_the_same_weights():
    weight = nn.Parameter(torch.zeros(1))
    sparse, dense = (PowerEMA({"w": weight}, [0.1]) for _ in range(2))
    for step in range(1, 31):
        weight.data.fill_(float((step - 1) // 10))
        dense.update(step)
        if step % 10 == 0:
            sparse.update(step)
    torch.testing.assert_close(sparse.averages[0.1][0], dense.averages[0.1][0])
    with pytest.raises(ValueError, match="Step 30 was taken in already: the averages are at step 30"):
        sparse.update(30)


def test_averages_of_bf16_weights_are_fp32():
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    averages = PowerEMA({"w": weight}, [0.05])
    for step in range(1, 1001):
        weight.data.fill_(1 if step <= 500 else 1 + 2**-7)  # the next number of bf16
        averages.update(step)
    value = averages.averages[0.05][0]
    assert value.dtype == torch.float32 and 1 + 2**-8 < value.item() < 1 + 2**-7
    with averages.applied():
        assert weight.dtype == torch.bfloat16


def test_coefficients_of_a_stored_profile_pick_it():
    steps, widths = np.repeat(np.arange(128, 4097, 128), 2), [0.05, 0.1] * 32
    for wanted in (5, 62, 63):
        coefficients, error = posthoc_coefficients(steps, widths, steps[wanted], widths[wanted])
        np.testing.assert_allclose(coefficients, np.eye(64)[wanted], atol=1e-9)
        assert error < 1e-6
    coefficients, error = posthoc_coefficients([1000], [0.05], 1000, 0.1)  # one profile cannot become another
    assert coefficients == pytest.approx([1]) and error > 0.3


def test_the_fits_error_is_the_distance_of_the_profiles():
    steps, widths = [60, 60, 100, 100], [0.05, 0.1] * 2
    coefficients, error = posthoc_coefficients(steps, widths, 100, 0.15)
    grid = (np.arange(400_000) + 0.5) / 400_000 * 100
    wanted = profile(0.15, 100, grid)
    fit = sum(share * profile(width, step, grid) for share, step, width in zip(coefficients, steps, widths))
    assert error == pytest.approx((((fit - wanted) ** 2).mean() / (wanted**2).mean()) ** 0.5, rel=1e-3)
    assert coefficients.sum() == pytest.approx(1, abs=1e-12)


def test_reconstruction(tmp_path):
    """Sixteen snapshots of two profiles: what was stored comes back, others within 1 % of their differences."""
    table = trajectory(512)
    averages = follow(table, [0.05, 0.1], tmp_path, every=32)
    for width, tracked in averages.averages.items():
        weights, error = reconstruct(tmp_path, width)
        torch.testing.assert_close(weights["net.weight"], tracked[0], rtol=0, atol=1e-6)
        assert error < 1e-6
    spread = np.abs(direct(table, 0.05) - direct(table, 0.1)).mean()
    for width in (0.04, 0.07, 0.15):
        weights, _ = reconstruct(tmp_path, width)
        assert np.abs(weights["net.weight"].numpy() - direct(table, width)).mean() < 0.01 * spread
    weights, _ = reconstruct(tmp_path, 0.07, step=256)
    early = np.abs(weights["net.weight"].numpy() - direct(table[:256], 0.07)).mean()
    assert early < 0.01 * spread


def test_few_snapshots_do_not_scale_the_weights(tmp_path):
    follow(np.full((40, 3), 7.0), [0.05, 0.1], tmp_path, every=10)
    for width in (0.03, 0.2):
        torch.testing.assert_close(reconstruct(tmp_path, width)[0]["net.weight"], torch.full((3,), 7.0))


def test_a_cut_run_goes_on_bit_for_bit(tmp_path):
    table = trajectory(40)
    whole = follow(table, [0.05, 0.2], tmp_path / "whole", every=10)
    first = follow(table[:25], [0.05, 0.2], tmp_path / "cut", every=10)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    weight = nn.Parameter(torch.zeros(50))
    second = PowerEMA({"net.weight": weight}, [0.05, 0.2])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(26, 41):
        weight.data.copy_(torch.from_numpy(table[step - 1]))
        second.update(step)
        if step % 10 == 0:
            second.save_snapshot(tmp_path / "cut")
    assert whole.snapshots == second.snapshots == list(list_snapshots(tmp_path / "cut")) == [10, 20, 30, 40]
    for width in (0.05, 0.2):
        assert torch.equal(whole.averages[width][0], second.averages[width][0])
        one, other = (reconstruct(tmp_path / name, width)[0]["net.weight"] for name in ("whole", "cut"))
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"profiles \[0.05, 0.2\], this run \[0.1\]"):
        PowerEMA({"net.weight": weight}, [0.1]).load_state_dict(second.state_dict())
    with pytest.raises(ValueError, match="other parameters: other is on one side only"):
        PowerEMA({"net.weight": weight, "other": weight}, [0.05, 0.2]).load_state_dict(second.state_dict())


def test_snapshots_of_another_run_are_never_mixed_in(tmp_path):
    follow(trajectory(40, seed=1), [0.05, 0.1], tmp_path, every=8)
    table = trajectory(40, seed=2)
    averages = follow(table, [0.05, 0.1], tmp_path, every=10)
    assert list(list_snapshots(tmp_path)) == [10, 20, 30, 40] == averages.snapshots
    follow(table, [0.05, 0.1], tmp_path / "alone", every=10)
    one, other = (reconstruct(folder, 0.07)[0]["net.weight"] for folder in (tmp_path, tmp_path / "alone"))
    assert torch.equal(one, other)


def test_snapshots_are_written_whole(tmp_path, monkeypatch):
    averages = follow(trajectory(4), [0.05, 0.1], tmp_path, every=2)
    saved = ema.save_file
    calls = []

    def fail(tensors, path, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        saved(tensors, path, **kwargs)

    averages.update(5)
    monkeypatch.setattr(ema, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        averages.save_snapshot(tmp_path)
    assert list(list_snapshots(tmp_path)) == [2, 4]
    monkeypatch.undo()
    averages.save_snapshot(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002", "step-000000004", "step-000000005"]
    assert averages.save_snapshot(tmp_path / "elsewhere", is_main_process=False).exists() is False


def test_applied_takes_averages_and_gives_weights_back():
    table = trajectory(20)
    averages = follow(table, [0.05, 0.2])
    weight = averages.parameters[0]
    own = weight.detach().clone()
    with averages.applied():
        assert torch.equal(weight, averages.averages[0.05][0])
    with pytest.raises(RuntimeError), averages.applied(0.2):
        assert torch.equal(weight, averages.averages[0.2][0])
        raise RuntimeError
    assert torch.equal(weight, own) and weight.requires_grad


def test_bad_input(tmp_path):
    weight = {"w": nn.Parameter(torch.zeros(1))}
    for widths in ([], [0.1, 0.1]):
        with pytest.raises(ValueError, match="`sigma_rels` must hold"):
            PowerEMA(weight, widths)
    with pytest.raises(ValueError, match="no parameters to average"):
        PowerEMA({}, [0.1])
    with pytest.raises(ValueError, match="holds no snapshots"):
        reconstruct(tmp_path, 0.1)
    follow(trajectory(4), [0.1], tmp_path, every=2)
    with pytest.raises(ValueError, match=r"no snapshot of step 3 in .*: choose from \[2, 4\]"):
        reconstruct(tmp_path, 0.1, step=3)
    facts = tmp_path / "step-000000002" / "snapshot.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "version": 9}))
    with pytest.raises(ValueError, match="has version 9, this release reads 1"):
        reconstruct(tmp_path, 0.1)


# ------------------------------------------------------------------ pipelines
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run of twelve random steps of the generator, the conditioner frozen."""
    folder, components = tmp_path_factory.mktemp("run"), build_tiny_components()
    components["text_encoder"].requires_grad_(False)
    VIMIPipeline(**components).save_pretrained(folder / "pipeline")
    averages = PowerEMA.from_components(components, [0.05, 0.1])
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 13):
        with torch.no_grad():
            for parameter in components["transformer"].parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        averages.update(step)
        if step % 4 == 0:
            averages.save_snapshot(folder / "ema")
    return folder


def test_a_pipeline_with_reconstructed_weights(run, tmp_path):
    assert save_reconstruction(run, tmp_path / "out", 0.07) < 0.2
    weights, _ = reconstruct(run / "ema", 0.07)
    assert all(name.startswith("transformer.") for name in weights)
    made, base = (VIMIPipeline.from_pretrained(folder) for folder in (tmp_path / "out", run / "pipeline"))
    for name, parameter in made.transformer.named_parameters():
        assert torch.equal(parameter, weights[f"transformer.{name}"])
    for one, other in zip(made.text_encoder.parameters(), base.text_encoder.parameters()):
        assert torch.equal(one, other)
    save_reconstruction(run, tmp_path / "early", 0.05, step=4, model=tmp_path / "out")
    early, _ = reconstruct(run / "ema", 0.05, step=4)
    made = VIMIPipeline.from_pretrained(tmp_path / "early").transformer
    assert torch.equal(made.proj_out.weight, early["transformer.proj_out.weight"])


def test_a_pipeline_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(VIMIPipeline, "save_pretrained", lambda self, folder: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_reconstruction(run, out, 0.07)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(run / "ema", tmp_path / "other" / "ema")
    with pytest.raises(ValueError, match="has no folder 'pipeline' yet: wait for its end, or name another"):
        save_reconstruction(tmp_path / "other", out, 0.07)
    components = build_tiny_components(num_layers=2)
    components["transformer"] = type(components["transformer"]).from_config(
        {**components["transformer"].config, "num_latents": 32}
    )
    VIMIPipeline(**components).save_pretrained(tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"hold transformer.latents of shape \(16, 48\), .*wrong one of \(32, 48\)"):
        save_reconstruction(run, out, 0.07, model=tmp_path / "wrong")
    assert not out.exists()
    with pytest.raises(ValueError, match="exists already: choose a new folder"):
        save_reconstruction(run, tmp_path / "wrong", 0.07)
