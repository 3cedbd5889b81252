import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler


SCALES = [(1.0, 0.5), (1.0, 1.0), (4.0, 0.5), (4.0, 1.0), (32.0, 0.5), (32.0, 1.0)]
SIGMAS = torch.logspace(math.log10(0.002), math.log10(80), 25, dtype=torch.float64)


def make(sigma_in=1.0, sigma_data=1.0, **kwargs):
    return EDMVideoScheduler(sigma_in=sigma_in, sigma_data=sigma_data, **kwargs)


def model_output(scheduler, denoised, sample, sigma):
    """The `F` for which the scheduler's denoiser gives `denoised`, from the paper's c_skip and c_out."""
    a, d = scheduler.config.sigma_in, scheduler.config.sigma_data
    c_skip = a * d**2 / (d**2 + a * sigma**2)
    c_out = -a * sigma * d * math.sqrt(sigma**2 + d**2) / (d**2 + a * sigma**2)
    return (denoised - c_skip * sample) / c_out


def sample_with(scheduler, denoise, start):
    """Runs the sampler on a denoiser `D(x_sigma, sigma)`, as a pipeline would."""
    state = start
    for timestep in scheduler.timesteps:
        sigma = math.exp(4 * timestep.item())
        scheduler.scale_model_input(state, timestep)
        output = model_output(scheduler, denoise(state.double(), sigma), state.double(), sigma)
        state = scheduler.step(output, timestep, state).prev_sample
    return state


def gaussian(a, d):
    return lambda sample, sigma: a * d**2 * sample / (d**2 + a**2 * sigma**2)


# ---------------------------------------------------------------------------------------------- equations, in fp64
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


def test_euler_sampling_with_sigma_in_of_one_equals_diffusers():
    ours, theirs = make(sigma_data=0.5, solver="euler"), EDMEulerScheduler(sigma_data=0.5)
    ours.set_timesteps(12)
    theirs.set_timesteps(12)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    start = 80 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    a = b = start
    for t, u in zip(ours.timesteps, theirs.timesteps):
        a = ours.step(-torch.sin(ours.scale_model_input(a, t) + t), t, a).prev_sample
        b = theirs.step(torch.sin(theirs.scale_model_input(b, u) + u), u, b).prev_sample
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- sampler
def relative_error(a, d, steps, solver):
    scheduler = make(a, d, solver=solver)
    scheduler.set_timesteps(steps)
    start = torch.tensor([80.0])
    exact = d * 80 / math.sqrt(d**2 / a**2 + 80**2)
    return 100 * (sample_with(scheduler, gaussian(a, d), start).item() / exact - 1)


@pytest.mark.parametrize(
    "a, d, expected",
    [
        (1, 0.5, {8: 39.4, 18: 5.53, 40: 0.977, 64: 0.366, 128: 0.088, 256: 0.021}),
        (1, 1.0, {8: 30.0, 18: 4.48, 40: 0.798, 64: 0.300, 128: 0.073, 256: 0.018}),
        (4, 1.0, {8: 47.5, 18: 6.82, 40: 1.20, 64: 0.446, 128: 0.105, 256: 0.023}),
        (32, 1.0, {8: 93.1, 18: 12.8, 40: 2.01, 64: 0.618, 128: -0.007, 256: -0.156}),
        (32, 0.5, {8: 92.2, 18: 15.1, 40: 1.90, 64: 0.192, 128: -0.570, 256: -0.751}),
    ],
)
def test_heun_on_a_gaussian(a, d, expected):
    for steps, error in expected.items():
        assert relative_error(a, d, steps, "heun") == pytest.approx(error, abs=max(6e-4, 6e-3 * abs(error))), steps


@pytest.mark.parametrize(
    "a, d, expected",
    [
        (1, 0.5, {18: -15.4, 40: -7.03, 64: -4.41, 256: -1.11}),
        (1, 1.0, {18: -14.0, 40: -6.39, 64: -4.00, 256: -1.00}),
        (4, 1.0, {18: -16.9, 40: -7.73, 64: -4.86, 256: -1.23}),
        (32, 1.0, {18: -22.0, 40: -10.4, 64: -6.63, 256: -1.83}),
        (32, 0.5, {18: -24.2, 40: -11.7, 64: -7.73, 256: -2.57}),
    ],
)
def test_euler_on_a_gaussian(a, d, expected):
    for steps, error in expected.items():
        assert relative_error(a, d, steps, "euler") == pytest.approx(error, rel=6e-3), steps


def reference_sampler(denoise, sigma_in, grid, start, heun):
    """Snap Video section 3.3 word for word: EDM's Algorithm 1 on y = x / sigma_in, with D divided by sigma_in."""
    y = start
    for t, t_next in zip(grid, [*grid[1:], 0.0]):
        slope = (y - denoise(y, t) / sigma_in) / t
        y_next = y + (t_next - t) * slope
        if heun and t_next > 0:
            slope_next = (y_next - denoise(y_next, t_next) / sigma_in) / t_next
            y_next = y + (t_next - t) * (slope + slope_next) / 2
        y = y_next
    return sigma_in * y


def bimodal(sample, sigma, a):
    """The exact denoiser of data that is +1 or -1: far from linear."""
    return torch.tanh(sample / a / sigma**2)


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("a", [1.0, 4.0])
def test_sampler_equals_the_papers_algorithm(a, solver):
    scheduler = make(a, solver=solver, sigma_max=20.0, sigma_min=0.01)
    scheduler.set_timesteps(9)
    rho, n = 7, 9
    grid = [(20 ** (1 / rho) + i / (n - 1) * (0.01 ** (1 / rho) - 20 ** (1 / rho))) ** rho for i in range(n)]
    start = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0))

    def denoise(sample, sigma):
        return bimodal(sample, sigma, a)

    expected = reference_sampler(denoise, a, grid, start.double(), heun=solver == "heun")
    assert len(scheduler.timesteps) == (2 * n - 1 if solver == "heun" else n)
    torch.testing.assert_close(sample_with(scheduler, denoise, start).double(), expected, rtol=2e-4, atol=2e-4)
    assert (expected.abs() - 1).abs().median() < 0.05  # it does sample the data


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("a", [4.0, 32.0])
def test_scaled_sampler_is_plain_edm_on_the_scaled_grid(a, solver):
    grid = [20.0, 7.0, 2.0, 0.5, 0.1, 0.02]
    scaled, plain = make(a, solver=solver), make(1.0, solver=solver)
    scaled.set_timesteps(sigmas=grid)
    plain.set_timesteps(sigmas=[a * sigma for sigma in grid])
    start = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0))

    def denoise(x, sigma):  # in data units
        return torch.tanh(x / (1 + sigma**2)) + 0.1 * torch.cos(x)

    result = sample_with(scaled, lambda y, sigma: denoise(a * y, a * sigma), start)
    torch.testing.assert_close(result, sample_with(plain, denoise, a * start), rtol=1e-4, atol=1e-4)


def test_forgetting_the_division_by_sigma_in_would_explode():
    """Guards the table above: on the wrong slope the same test is off by orders of magnitude."""
    denoise = gaussian(4, 1.0)
    scheduler = make(4)
    scheduler.set_timesteps(64)
    grid = [math.exp(4 * t) for t in scheduler.timesteps[::2].tolist()]
    wrong = reference_sampler(lambda y, t: 4 * denoise(y, t), 4, grid, torch.tensor([80.0]).double(), heun=True)
    assert wrong.abs() > 1e3


def test_each_call_starts_afresh():
    scheduler = make(4.0, sigma_max=20.0)
    start = 20 * torch.randn(8, generator=torch.Generator().manual_seed(0))
    results = []
    for _ in range(2):
        scheduler.set_timesteps(4)
        scheduler.step(torch.zeros(8), scheduler.timesteps[0], start)  # a run that stopped between Heun's calls
        scheduler.set_timesteps(4)
        results.append(sample_with(scheduler, gaussian(4.0, 1.0), start))
    assert torch.equal(*results)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_a_run_may_start_in_the_middle(solver):
    """Noise a video to a level of the grid, then go on from there, as video-to-video does."""
    full, part = make(4.0, solver=solver), make(4.0, solver=solver)
    grid = [20.0, 5.0, 1.0, 0.2]
    full.set_timesteps(sigmas=grid)
    part.set_timesteps(sigmas=grid[1:])
    start = torch.randn(16, generator=torch.Generator().manual_seed(0))
    expected = sample_with(part, gaussian(4.0, 1.0), start)
    steps = full.timesteps[2 if solver == "heun" else 1 :]
    state = start
    for timestep in steps:
        sigma = math.exp(4 * timestep.item())
        output = model_output(full, gaussian(4.0, 1.0)(state.double(), sigma), state.double(), sigma)
        state = full.step(output, timestep, state).prev_sample
    torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_stays_in_fp32(dtype):
    scheduler = make(4.0)
    scheduler.set_timesteps(3)
    state = torch.randn(2, 3) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(state, timestep).to(dtype)
        output = scheduler.step(torch.sin(model_input), timestep, state)
        state = output.prev_sample
        assert state.dtype == output.pred_original_sample.dtype == torch.float32
    assert torch.equal(output.prev_sample, output.pred_original_sample)  # the last step returns the data


def test_step_returns_a_tuple_on_demand():
    for return_dict in (True, False):
        scheduler = make(solver="euler")
        scheduler.set_timesteps(2)
        output = scheduler.step(torch.ones(3), scheduler.timesteps[0], torch.ones(3), return_dict=return_dict)
        first, second = output if not return_dict else (output.prev_sample, output.pred_original_sample)
        assert first.shape == second.shape == (3,)


def test_timesteps_off_the_grid_are_taken_to_the_nearest_level():
    scheduler = make(4.0, solver="euler")
    scheduler.set_timesteps(8)
    sample = torch.ones(3)
    for index in (0, 3, 7):
        exact = scheduler.timesteps[index]
        scheduler.set_timesteps(8)
        expected = scheduler.precondition_inputs(sample, scheduler.sigmas[index])
        nudged = scheduler.scale_model_input(sample, exact + 0.003)
        assert torch.equal(nudged, expected) and scheduler.step_index == index
        scheduler.set_timesteps(8)
        rounded = scheduler.scale_model_input(sample, exact.to(torch.bfloat16))
        torch.testing.assert_close(rounded, expected)


def test_heuns_grid_and_order():
    scheduler = make(solver="heun")
    scheduler.set_timesteps(5)
    assert scheduler.order == 2 and len(scheduler.timesteps) == 9 and scheduler.num_inference_steps == 5
    levels = [math.exp(4 * t) for t in scheduler.timesteps.tolist()]
    assert levels[0] == pytest.approx(80, rel=1e-5) and levels[-1] == pytest.approx(0.002, rel=1e-4)
    assert levels[1::2] == levels[2::2] and scheduler.init_noise_sigma == pytest.approx(80)
    scheduler.set_timesteps(1)
    assert len(scheduler.timesteps) == 1
    assert make(solver="euler").order == 1


def test_own_levels():
    scheduler = make(solver="euler", sigma_max=80.0)
    scheduler.set_timesteps(sigmas=[10, 2.5, 0.1])
    assert scheduler.init_noise_sigma == 10 and scheduler.num_inference_steps == 3
    assert torch.exp(4 * scheduler.timesteps).tolist() == pytest.approx([10, 2.5, 0.1], rel=1e-5)


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


# ---------------------------------------------------------------------------------------------- saving, errors
def test_save_and_load(tmp_path):
    scheduler = make(4.0, 0.5, sigma_min=0.005, sigma_max=40.0, rho=5.0, solver="euler", p_mean=-0.4, p_std=1.5)
    scheduler.save_pretrained(tmp_path)
    loaded = EDMVideoScheduler.from_pretrained(tmp_path)
    for name in ("sigma_min", "sigma_max", "sigma_data", "sigma_in", "rho", "solver", "p_mean", "p_std"):
        assert loaded.config[name] == scheduler.config[name]
    for each in (loaded, scheduler):
        each.set_timesteps(7)
    assert torch.equal(loaded.timesteps, scheduler.timesteps)
    heun = EDMVideoScheduler.from_config(scheduler.config, solver="heun")
    assert heun.order == 2 and heun.config.sigma_in == 4.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sigma_min": 0.0}, "got 0.0 and 80.0"),
        ({"sigma_min": 90.0}, "got 90.0 and 80.0"),
        ({"sigma_data": -1.0}, "`sigma_data` must be positive, got -1.0"),
        ({"sigma_in": 0.0}, "`sigma_in` must be positive, got 0.0"),
        ({"rho": 0.0}, "`rho` must be positive"),
        ({"p_std": -2.0}, "`p_std` must be positive"),
        ({"solver": "dpm"}, "Unknown `solver` 'dpm'; choose one of euler, heun"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EDMVideoScheduler(**change)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of `num_inference_steps` and `sigmas`"),
        ({"num_inference_steps": 3, "sigmas": [2.0, 1.0]}, "exactly one of"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
        ({"sigmas": []}, "strictly decreasing"),
        ({"sigmas": [1.0, 2.0]}, r"strictly decreasing, got \[1.0, 2.0\]"),
        ({"sigmas": [1.0, 1.0]}, "strictly decreasing"),
        ({"sigmas": [1.0, 0.0]}, "must be positive"),
    ],
)
def test_wrong_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make().set_timesteps(**arguments)


def test_wrong_calls_are_refused():
    scheduler, x = make(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="Call `set_timesteps` before sampling"):
        scheduler.scale_model_input(x, 0.0)
    with pytest.raises(ValueError, match="Call `set_timesteps` before sampling"):
        scheduler.step(x, 0.0, x)
    for arguments in ({}, {"timesteps": torch.zeros(2), "sigmas": torch.ones(2)}):
        with pytest.raises(ValueError, match="exactly one of `timesteps` and `sigmas`"):
            scheduler.add_noise(x, x, **arguments)
