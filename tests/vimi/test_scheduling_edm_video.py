import math

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler

from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler


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


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmsolver++"])
@pytest.mark.parametrize("a", [4.0, 32.0])
def test_scaled_sampler_is_plain_edm_on_the_scaled_grid(a, solver):
    grid = [20.0, 7.0, 2.0, 0.5, 0.1, 0.02]
    scaled, plain = make(a, solver=solver), make(1.0, solver=solver)
    scaled.set_timesteps(sigmas=grid)
    plain.set_timesteps(sigmas=[a * sigma for sigma in grid])
    start = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, sigma):  # in data units
        return torch.tanh(x / (1 + sigma**2)) + 0.1 * torch.cos(x)

    result = sample_with(scaled, lambda y, sigma: denoise(a * y, a * sigma), start)
    # 1e-5: `sample_with` reads the level back from the timestep, an fp32 number
    torch.testing.assert_close(result, sample_with(plain, denoise, a * start), rtol=1e-5, atol=1e-5)


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


def test_dpm_solver_is_second_order_with_one_call_per_step():
    """On the Gaussian of the tables above: the error falls by four when the steps double, far below Euler's."""
    for a, d in ((1, 0.5), (1, 1.0), (4, 1.0)):
        coarse, fine = (abs(relative_error(a, d, steps, "dpmsolver++")) for steps in (32, 64))
        assert 3 < coarse / fine < 5.5
        assert fine < abs(relative_error(a, d, 64, "euler")) / 8
    scheduler = make(solver="dpmsolver++")
    scheduler.set_timesteps(12)
    assert len(scheduler.timesteps) == 12 and scheduler.order == 1


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmsolver++"])
def test_a_finished_run_holds_no_video(solver):
    scheduler = make(solver=solver)
    scheduler.set_timesteps(3)
    sample_with(scheduler, gaussian(1.0, 1.0), torch.ones(4))
    held = [name for name, value in vars(scheduler).items() if isinstance(value, (torch.Tensor, tuple))]
    assert held == ["timesteps"]


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmsolver++"])
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
    scheduler.set_timesteps(3)
    assert scheduler.step(state.to(dtype), scheduler.timesteps[0], state.to(dtype)).prev_sample.dtype == torch.float32
    scheduler.set_timesteps(3)
    assert scheduler.step(state.to(dtype), scheduler.timesteps[0], state.double()).prev_sample.dtype == torch.float64


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


def test_exponential_grid():
    scheduler = make(solver="euler", sigma_schedule="exponential")
    scheduler.set_timesteps(5)
    steps = scheduler.timesteps.diff()
    torch.testing.assert_close(steps, torch.full((4,), math.log(0.002 / 80) / 16))


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_own_levels(kind):
    scheduler = make(solver="euler", sigma_max=80.0)
    scheduler.set_timesteps(sigmas=kind([10, 2.5, 0.1]))
    assert scheduler.init_noise_sigma == 10 and scheduler.num_inference_steps == 3
    assert torch.exp(4 * scheduler.timesteps).tolist() == pytest.approx([10, 2.5, 0.1], rel=1e-5)


# ---------------------------------------------------------------------------------------------- churn
def churned(scheduler, denoise, start, generator=None):
    """The loop of a pipeline, on a denoiser `D(x_sigma, sigma)`."""
    state = start
    for timestep in scheduler.timesteps:
        state = scheduler.add_churn_noise(state, timestep, generator)
        sigma = math.exp(4 * scheduler.current_timestep(timestep).item())
        assert sigma == pytest.approx(scheduler.current_sigma(timestep), rel=1e-5)
        output = model_output(scheduler, denoise(state, sigma), state, sigma)
        state = scheduler.step(output, timestep, state).prev_sample
    return state


@pytest.mark.parametrize("a, d", [(1.0, 0.5), (4.0, 1.0)])
def test_churn_keeps_the_distribution(a, d):
    """With the exact denoiser of N(0, d**2) as much noise is taken away as was added (Euler's error would hide it)."""
    scheduler = make(a, d, solver="heun", s_churn=60.0, s_tmin=0.01, s_tmax=20.0)
    scheduler.set_timesteps(160)
    generator = torch.Generator().manual_seed(0)
    start = math.sqrt(80**2 + d**2 / a**2) * torch.randn(20000, generator=generator, dtype=torch.float64)
    result = churned(scheduler, gaussian(a, d), start, generator)
    assert result.std().item() == pytest.approx(d, rel=0.02)
    assert torch.corrcoef(torch.stack([start, result]))[0, 1].abs() < 0.6  # the ODE would give 1


def test_noise_comes_before_the_model_call():
    """Two points at -1 and 1: few steps with much churn still land on them. Noise behind the model's back does not."""
    generator = torch.Generator().manual_seed(0)
    start = 80 * torch.randn(4000, generator=generator, dtype=torch.float64)
    ours = make(1.0, 0.5, solver="euler", s_churn=10.0)
    ours.set_timesteps(10)
    result = churned(ours, lambda y, sigma: bimodal(y, sigma, 1.0), start, generator)
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(10)
    state = start.float()
    for timestep, sigma in zip(theirs.timesteps, theirs.sigmas):
        theirs.scale_model_input(state, timestep)
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        output = (torch.tanh(state / sigma**2) - c_skip * state) / c_out
        state = theirs.step(output, timestep, state, s_churn=10.0, generator=generator).prev_sample
    assert (result.abs() - 1).abs().mean() < 1e-4 < 1e-3 < (state.abs() - 1).abs().mean()


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_churn_is_that_of_plain_edm_on_the_scaled_levels(solver):
    grid, a = [20.0, 7.0, 2.0, 0.5, 0.1, 0.02], 4.0
    scaled = make(a, solver=solver, s_churn=2.0, s_tmin=0.3, s_tmax=10.0, s_noise=1.1)
    plain = make(1.0, solver=solver, s_churn=2.0, s_tmin=a * 0.3, s_tmax=a * 10.0, s_noise=1.1)
    scaled.set_timesteps(sigmas=grid)
    plain.set_timesteps(sigmas=[a * sigma for sigma in grid])
    start = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, sigma):  # in data units
        return torch.tanh(x / (1 + sigma**2)) + 0.1 * torch.cos(x)

    seed = [torch.Generator().manual_seed(1) for _ in range(2)]
    result = churned(scaled, lambda y, sigma: denoise(a * y, a * sigma), start, seed[0])
    expected = churned(plain, denoise, a * start, seed[1])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (result - sample_with(make_run(a, solver, grid), gaussian(a, 1.0), start)).abs().max() > 0.01


def make_run(a, solver, grid):
    scheduler = make(a, solver=solver)
    scheduler.set_timesteps(sigmas=grid)
    return scheduler


def test_what_churn_raises():
    scheduler = make(4.0, solver="heun", s_churn=1.0, s_tmin=0.3, s_tmax=10.0)
    scheduler.set_timesteps(sigmas=[20.0, 5.0, 1.0, 0.2])
    state = torch.zeros(2, 3, 4, 8, 8)
    raised = []
    for index, timestep in enumerate(scheduler.timesteps):
        after = scheduler.add_churn_noise(state, timestep, torch.Generator().manual_seed(index))
        told, sigma = scheduler.current_timestep(timestep), scheduler.sigmas[index]
        raised.append(after is not state)
        if raised[-1]:
            factor = scheduler.current_sigma(timestep) / sigma
            assert factor == pytest.approx(1.25)  # gamma = s_churn / N
            noise = (after - state).std().item()
            assert noise == pytest.approx(sigma * math.sqrt(1.25**2 - 1), rel=0.1)
            assert told.item() == pytest.approx(math.log(1.25 * sigma) / 4)
            assert told.shape == timestep.shape and told.dtype == timestep.dtype
        else:
            assert told is timestep and scheduler.current_sigma(timestep) == sigma
        expected = after / math.sqrt(1 / 16 + scheduler.current_sigma(timestep) ** 2)
        torch.testing.assert_close(scheduler.scale_model_input(after, timestep), expected)
        state = scheduler.step(torch.zeros_like(after), timestep, after).prev_sample
    # levels 20 5 5 1 1 .2 .2: each second call, and what lies outside of [.3, 10], is left alone
    assert raised == [False, False, True, False, True, False, False]


def test_churn_takes_a_generator_for_each_video():
    def run(generator):
        scheduler = make(solver="euler", s_churn=1.0)
        scheduler.set_timesteps(4)
        return scheduler.add_churn_noise(torch.zeros(2, 3), scheduler.timesteps[0], generator)

    both = run([torch.Generator().manual_seed(seed) for seed in (0, 1)])
    assert torch.equal(both[1:], run([torch.Generator().manual_seed(seed) for seed in (5, 1)])[1:])
    assert run(torch.Generator().manual_seed(0)).dtype == torch.float32
    assert not torch.equal(both[0], both[1])


def test_churn_cannot_be_forgotten():
    scheduler, state = make(solver="heun", s_churn=1.0, s_tmax=10.0), torch.zeros(2, 3)
    scheduler.set_timesteps(sigmas=[20.0, 5.0, 1.0])
    for timestep in scheduler.timesteps[:2]:  # the level of 20 has no churn
        state = scheduler.step(scheduler.scale_model_input(state, timestep), timestep, state).prev_sample
    timestep = scheduler.timesteps[2]
    for call in (
        lambda: scheduler.scale_model_input(state, timestep),
        lambda: scheduler.current_timestep(timestep),
        lambda: scheduler.step(state, timestep, state),
    ):
        with pytest.raises(
            ValueError, match=r"`s_churn=1.0` needs noise before the model call: call `add_churn_noise"
        ):
            call()
    scheduler.add_churn_noise(state, timestep)
    with pytest.raises(ValueError, match="already called in this step"):
        scheduler.add_churn_noise(state, timestep)


# ---------------------------------------------------------------------------------------------- dynamic thresholding
@pytest.mark.parametrize("ratio, limit", [(0.995, 1.0), (0.995, 100.0), (0.9, 1.5), (0.5, 100.0), (1.0, 100.0)])
def test_thresholding_of_the_estimate(ratio, limit):
    options = {"dynamic_thresholding_ratio": ratio, "sample_max_value": limit}
    scheduler = make(4.0, thresholding=True, solver="euler", **options)
    scheduler.set_timesteps(sigmas=[5.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 3.0]).view(3, 1, 1, 1, 1)  # below, around and above the range of the data
    estimate = scale * torch.randn(3, 3, 2, 7, 5, generator=generator)
    sample = torch.randn(estimate.shape, generator=generator)
    output = model_output(scheduler, estimate, sample, 5.0)
    result = scheduler.step(output, scheduler.timesteps[0], sample)
    s = estimate.flatten(1).abs().quantile(ratio, dim=1).clamp(1, limit).view(3, 1, 1, 1, 1)
    expected = torch.minimum(torch.maximum(estimate, -s), s) / s
    torch.testing.assert_close(result.pred_original_sample, expected, rtol=1e-4, atol=1e-5)
    euler = sample + (1 - 5) * (sample - expected / 4) / 5  # the step follows the clipped estimate
    torch.testing.assert_close(result.prev_sample, euler, rtol=1e-4, atol=1e-4)
    assert result.pred_original_sample.abs().max() <= 1
    assert torch.allclose(result.pred_original_sample[0], estimate[0], atol=1e-5)  # nothing to clip


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmsolver++"])
def test_thresholding_equals_a_denoiser_that_clips(solver):
    def overshooting(sample, sigma):  # as strong guidance does
        return 3 * torch.tanh(sample * 4)

    results = []
    for thresholding in (True, False):
        scheduler = make(4.0, solver=solver, thresholding=thresholding)
        scheduler.set_timesteps(sigmas=[20.0, 5.0, 1.0, 0.2, 0.02])
        start = 20 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        denoise = overshooting if thresholding else lambda y, sigma: overshooting(y, sigma).clamp(-1, 1)
        results.append(sample_with(scheduler, denoise, start))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert results[0].abs().max() <= 1


def test_thresholding_of_a_large_video():
    """torch.quantile refuses more than 2**24 values."""
    scheduler = make(thresholding=True, solver="euler", sample_max_value=100.0)
    scheduler.set_timesteps(sigmas=[5.0])
    estimate = torch.linspace(-4, 4, 2**24 + 2).view(1, -1)
    zero = torch.zeros(1, 1)
    output = estimate * (1 / scheduler.precondition_outputs(zero, zero + 1, 5.0).item())
    result = scheduler.step(output, scheduler.timesteps[0], torch.zeros_like(output)).prev_sample
    assert (result == 1).sum().item() == pytest.approx(0.0025 * 2**24, rel=1e-3)
    assert result[0, 2**23 + 2**21].item() == pytest.approx(1.0 / (4 * 0.995), rel=1e-3)


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
        ({"sigma_min": math.nan}, "`sigma_min` must be a finite number, got nan"),
        ({"sigma_max": math.inf}, "`sigma_max` must be a finite number, got inf"),
        ({"sigma_max": "80"}, "`sigma_max` must be a finite number, got '80'"),
        ({"p_mean": None}, "`p_mean` must be a finite number, got None"),
        ({"sigma_in": True}, "`sigma_in` must be a finite number, got True"),
        ({"solver": "dpm"}, r"Unknown `solver` 'dpm'; choose one of euler, heun, dpmsolver\+\+"),
        ({"sigma_schedule": "linear"}, "Unknown `sigma_schedule` 'linear'; choose one of karras, exponential"),
        ({"prediction_type": "sample"}, "Unknown `prediction_type` 'sample'; choose one of v_prediction, epsilon"),
        ({"s_churn": -1.0}, "`s_churn` must not be negative, got -1.0"),
        ({"s_noise": -1.0}, "`s_noise` must not be negative, got -1.0"),
        ({"s_tmin": -1.0}, "`s_tmin` must not be negative, got -1.0"),
        ({"s_tmin": 2.0, "s_tmax": 1.0}, "Need `s_tmin` <= `s_tmax`, got 2.0 and 1.0"),
        ({"s_churn": 5.0, "solver": "dpmsolver++"}, r"`s_churn=5.0` breaks the history of `solver='dpmsolver\+\+'`"),
        ({"thresholding": "false"}, "`thresholding` must be True or False, got 'false'"),
        ({"dynamic_thresholding_ratio": 99.5}, r"`dynamic_thresholding_ratio` must lie in \(0, 1\], got 99.5"),
        ({"sample_max_value": 0.5}, "`sample_max_value` must be at least 1, got 0.5"),
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be an integer, at least 1, got 0"),
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
        ({"sigmas": [1.0, 0.0]}, "must be positive .* Leave the final 0 out"),
        ({"sigmas": [math.inf, 1.0]}, "must be positive"),
        ({"sigmas": [1.0, math.nan]}, "must be positive"),
        ({"num_inference_steps": 2.5}, "must be an integer, at least 1, got 2.5"),
        ({"num_inference_steps": "8"}, "must be an integer, at least 1, got '8'"),
    ],
)
def test_wrong_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make().set_timesteps(**arguments)


def test_wrong_calls_are_refused():
    scheduler, x = make(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="Call `set_timesteps` before sampling"):
        scheduler.step(x, 0.0, x)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 1\) and \(2, 3\)"):
        scheduler.step(x[:, :1], 0.0, x)
    for index in (1, 4, -2):  # timestep 1 is the second call of the first step
        with pytest.raises(ValueError, match=f"`begin_index` must be a multiple of 2 from 0 to 2, got {index}"):
            scheduler.set_begin_index(index)
    scheduler.set_begin_index(2)
    scheduler.step(x, 0.0, x)
    with pytest.raises(ValueError, match="All 3 timesteps are used up. Call `set_timesteps`"):
        scheduler.step(x, 0.0, x)
