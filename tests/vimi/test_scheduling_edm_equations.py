import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler


SCALES = [(1.0, 0.5), (1.0, 1.0), (4.0, 0.5), (4.0, 1.0), (32.0, 0.5), (32.0, 1.0)]
SIGMAS = torch.logspace(math.log10(0.002), math.log10(80), 25, dtype=torch.float64)


def make(sigma_in=1.0, sigma_data=1.0, **kwargs):
    return EDMVideoScheduler(sigma_in=sigma_in, sigma_data=sigma_data, **kwargs)


@pytest.mark.parametrize("a, d", SCALES)
def test_the_target_recovers_the_data(a, d):
    scheduler = make(a, d)
    generator = torch.Generator().manual_seed(0)
    x = d * torch.randn(len(SIGMAS), 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    noisy = scheduler.add_noise(x, noise, sigmas=SIGMAS)
    sigma = SIGMAS.view(-1, 1, 1, 1, 1)
    assert torch.equal(noisy, x / a + sigma * noise)
    target = scheduler.get_target(x, noise, SIGMAS)
    assert (scheduler.precondition_outputs(noisy, target, sigma) - x).abs().max() < 1e-12
    assert (scheduler.predict_noise(noisy, target, sigma) - noise).abs().max() < 1e-9
    # the sampler's slope is (x_sigma - D / sigma_in) / sigma, for any F
    output = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    slope = (noisy - scheduler.precondition_outputs(noisy, output, sigma) / a) / sigma
    torch.testing.assert_close(scheduler.predict_noise(noisy, output, sigma), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("a, d", SCALES)
def test_the_weight_is_lambda_times_c_out_squared(a, d):
    scheduler = make(a, d)
    zero, one = torch.zeros(25, dtype=torch.float64), torch.ones(25, dtype=torch.float64)
    c_out = scheduler.precondition_outputs(zero, one, SIGMAS)
    lambda_ = 1 / d**2 + 1 / SIGMAS**2
    torch.testing.assert_close(scheduler.loss_weight(SIGMAS), lambda_ * c_out**2, rtol=1e-12, atol=0)
    assert scheduler.loss_weight(0.5) == pytest.approx(scheduler.loss_weight(torch.tensor(0.5)).item())
    assert scheduler.loss_weight(1e-9) == pytest.approx(a**2)  # limits of the paper's 3.3
    assert scheduler.loss_weight(1e9) == pytest.approx(1)


@pytest.mark.parametrize(
    "a, expected", [(4.0, [15.99, 15.09, 10.28, 2.56, 1.015]), (32.0, [1018, 599.5, 80.8, 3.76, 1.020])]
)
def test_weights_of_snap_videos_configuration(a, expected):
    weights = make(a).loss_weight(torch.tensor([0.01, 0.1, 0.3, 1, 10], dtype=torch.float64))
    assert weights.tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("a, d", SCALES)
def test_network_input_and_target_have_unit_variance(a, d):
    scheduler = make(a, d)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for sigma in SIGMAS.view(-1, 1):
        # linear in data and noise: the squared responses to a data std and to a unit of noise add up
        data = scheduler.precondition_inputs(scheduler.add_noise(d * one, zero, sigmas=sigma), sigma)
        noise = scheduler.precondition_inputs(scheduler.add_noise(zero, one, sigmas=sigma), sigma)
        assert (data**2 + noise**2).item() == pytest.approx(1, abs=1e-12)
        data, noise = scheduler.get_target(d * one, zero, sigma), scheduler.get_target(zero, one, sigma)
        assert (data**2 + noise**2).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("d", [0.5, 1.0])
def test_sigma_in_of_one_is_edm_with_the_sign_of_f_flipped(d):
    ours, theirs = make(1.0, d), EDMEulerScheduler(sigma_data=d)
    generator = torch.Generator().manual_seed(0)
    sample, output = torch.randn(2, len(SIGMAS), generator=generator, dtype=torch.float64)
    for ours_value, theirs_value in (
        (ours.precondition_inputs(sample, SIGMAS), theirs.precondition_inputs(sample, SIGMAS)),
        (ours.precondition_outputs(sample, output, SIGMAS), theirs.precondition_outputs(sample, -output, SIGMAS)),
        (ours.precondition_noise(SIGMAS), theirs.precondition_noise(SIGMAS)),
    ):
        torch.testing.assert_close(ours_value, theirs_value, rtol=1e-13, atol=1e-13)
    assert torch.equal(ours.loss_weight(SIGMAS), torch.ones_like(SIGMAS))


# ---------------------------------------------------------------------------------------------- training
def test_noise_levels_cover_their_distribution():
    scheduler = make(p_mean=-0.4, p_std=1.5)
    generator = torch.Generator().manual_seed(0)
    for batch_size in (4, 64):
        normal = torch.distributions.Normal(-0.4, 1.5)
        for _ in range(20):
            sigmas = scheduler.sample_sigmas(batch_size, generator=generator)
            assert sigmas.shape == (batch_size,) and sigmas.dtype == torch.float32
            slices = (normal.cdf(sigmas.log()) * batch_size).floor().long()
            assert slices.tolist() == list(range(batch_size))
    logs = torch.cat([scheduler.sample_sigmas(64, generator=generator).log() for _ in range(300)])
    assert logs.mean().item() == pytest.approx(-0.4, abs=0.01)
    assert logs.std().item() == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_noise_levels_of_all_processes_cover_their_distribution(world_size):
    scheduler, batch_size = make(p_mean=-0.4, p_std=1.5), 8
    normal, slices = torch.distributions.Normal(-0.4, 1.5), []
    for rank in range(world_size):
        generator = torch.Generator().manual_seed(rank)
        sigmas = scheduler.sample_sigmas(batch_size, generator=generator, rank=rank, world_size=world_size)
        quantile = normal.cdf(sigmas.log())
        assert (quantile * batch_size).floor().tolist() == list(range(batch_size))  # each process alone covers it too
        slices += (quantile * batch_size * world_size).floor().tolist()
    assert sorted(slices) == list(range(batch_size * world_size))


def test_one_process_draws_as_before():
    """Written out: the stratified draw on which the shipped weights were trained."""
    expected = torch.rand(16, generator=torch.Generator().manual_seed(2))
    expected = torch.special.ndtri((torch.arange(16) + expected) / 16).mul(1.2).sub(1.2).exp()
    for options in ({}, {"rank": 0, "world_size": 1}):
        sigmas = make().sample_sigmas(16, generator=torch.Generator().manual_seed(2), **options)
        torch.testing.assert_close(sigmas, expected)


@pytest.mark.parametrize("a, expected", [(4.0, 9.4), (32.0, 247.0)])
def test_initial_loss_of_snap_videos_configuration(a, expected):
    """With F = 0 the expected loss is E[w], since the target has unit variance (paper: 9.4 and 247)."""
    scheduler = make(a)
    sigmas = scheduler.sample_sigmas(200_000, generator=torch.Generator().manual_seed(0)).double()
    assert scheduler.loss_weight(sigmas).mean().item() == pytest.approx(expected, rel=5e-3)


def test_the_same_seed_gives_the_same_levels():
    scheduler = make()
    first, second = (scheduler.sample_sigmas(8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, scheduler.sample_sigmas(8, generator=torch.Generator().manual_seed(4)))


def test_add_noise_by_timestep_equals_add_noise_by_level():
    scheduler = make(4.0)
    scheduler.set_timesteps(6)
    x, noise = torch.randn(2, len(scheduler.timesteps), 3, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor(scheduler.sigmas[:-1])
    by_timestep = scheduler.add_noise(x, noise, scheduler.timesteps)
    torch.testing.assert_close(by_timestep, scheduler.add_noise(x, noise, sigmas=levels), rtol=1e-5, atol=1e-5)


def test_wrong_calls_are_refused():
    scheduler, x = make(), torch.zeros(2, 3)
    for arguments in ({}, {"timesteps": torch.zeros(2), "sigmas": torch.ones(2)}):
        with pytest.raises(ValueError, match="exactly one of `timesteps` and `sigmas`"):
            scheduler.add_noise(x, x, **arguments)
    with pytest.raises(ValueError, match=r"must have one shape, got \(2,\) and \(2, 3\)"):
        scheduler.add_noise(x, x[:, 0], sigmas=torch.ones(2))
    with pytest.raises(ValueError, match="one noise level, or one for each of 2, got 3"):
        scheduler.add_noise(x, x, sigmas=torch.ones(3))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        scheduler.sample_sigmas(0)
    for rank, world_size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"Need 0 <= `rank` < `world_size`, got {rank} and {world_size}"):
            scheduler.sample_sigmas(4, rank=rank, world_size=world_size)
