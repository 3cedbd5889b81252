"""Against k-diffusion's and diffusers' samplers, on a network that has nothing to do with a Gaussian; and what
diffusers' tests ask of any scheduler."""

import importlib
import importlib.util
import inspect
import math
import sys
import types
from unittest import mock

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.utils import logging

from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler


START = torch.randn(4, 3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def k_diffusion():
    """Its `sampling` module alone: the package imports much that is not needed here, training code above all."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    unused = ("scipy", "torchdiffeq", "torchsde", "torchvision", "torchvision.transforms")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in unused} | {"k_diffusion": package}):
        return importlib.import_module("k_diffusion.sampling")


def network(model_input, timestep):
    """Stands for F: bounded, nonlinear, mixes neighbours and depends on the noise level."""
    t = torch.as_tensor(timestep).to(model_input)
    return torch.sin(model_input + t) + 0.5 * torch.tanh(model_input.roll(1, dims=-1) * (1 + t))


def denoiser(a, d, sign):
    """D by the paper's c_in, c_skip, c_out and c_noise; with `a` = 1 and `sign` = -1 those of EDM."""

    def denoise(sample, sigma):
        sigma = sigma.flatten()[0]
        output = network(sample / torch.sqrt(d**2 / a**2 + sigma**2), torch.log(sigma) / 4)
        c_out = -a * sigma * d * torch.sqrt(sigma**2 + d**2) / (d**2 + a * sigma**2)
        return a * d**2 / (d**2 + a * sigma**2) * sample + sign * c_out * output

    return denoise


def run(scheduler, start, generator=None, flip=1.0, draw=None):
    """A pipeline's loop. `draw` is called before each new step that adds no noise of its own."""
    state = start
    for timestep in scheduler.timesteps:
        churned = scheduler.add_churn_noise(state, timestep, generator)
        if draw is not None and churned is state and scheduler._heun_start is None:
            draw()
        state = churned
        model_input = scheduler.scale_model_input(state, timestep)
        output = flip * network(model_input, scheduler.current_timestep(timestep))
        state = scheduler.step(output, timestep, state, return_dict=False)[0]
    return state


# ---------------------------------------------------------------------------------------------- k-diffusion
@pytest.mark.parametrize("num_steps", [1, 2, 18, 100])
def test_schedules_equal_k_diffusion(k_diffusion, num_steps):
    for name, options in (("karras", {"rho": 7.0}), ("karras", {"rho": 3.0}), ("exponential", {})):
        scheduler = EDMVideoScheduler(0.01, 50.0, sigma_schedule=name, solver="euler", **options)
        scheduler.set_timesteps(num_steps)
        expected = getattr(k_diffusion, f"get_sigmas_{name}")(num_steps, 0.01, 50.0, **options)
        torch.testing.assert_close(torch.tensor(scheduler.sigmas), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.exp(4 * scheduler.timesteps), expected[:-1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a, d", [(1.0, 0.5), (1.0, 1.0), (4.0, 1.0), (32.0, 0.5)])
@pytest.mark.parametrize(
    "solver, reference", [("euler", "sample_euler"), ("heun", "sample_heun"), ("dpmsolver++", "sample_dpmpp_2m")]
)
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_solvers_equal_k_diffusion(k_diffusion, solver, reference, a, d, schedule, dtype):
    scheduler = EDMVideoScheduler(sigma_in=a, sigma_data=d, solver=solver, sigma_schedule=schedule)
    scheduler.set_timesteps(12)
    denoise = denoiser(a, d, 1.0)
    sigmas = torch.tensor([*dict.fromkeys(scheduler.sigmas)], dtype=torch.float64)
    start = 80 * START.to(dtype)
    # k-diffusion knows no sigma_in: in the scaled coordinates the denoiser is D / sigma_in
    expected = a * getattr(k_diffusion, reference)(
        lambda y, s: denoise(y, s) / a, start.double(), sigmas, disable=True
    )
    result = run(scheduler, start)
    assert result.dtype == dtype and len(sigmas) == 13
    torch.testing.assert_close(result.double(), expected, **EXACT)


@pytest.mark.parametrize("a", [1.0, 4.0])
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(
    "churn",
    [
        {"s_churn": 5.0},
        {"s_churn": 1e3, "s_noise": 1.007},  # gamma at its limit
        {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 30.0, "s_noise": 0.9},
        {"s_churn": 8.0, "s_tmax": math.inf},
    ],
)
def test_churn_equals_k_diffusion_on_the_same_noise(k_diffusion, solver, a, churn):
    scheduler = EDMVideoScheduler(sigma_in=a, solver=solver, **churn)
    scheduler.set_timesteps(10)
    denoise, start = denoiser(a, 1.0, 1.0), 80 * START.double()
    sigmas = torch.tensor([*dict.fromkeys(scheduler.sigmas)], dtype=torch.float64)
    sample = getattr(k_diffusion, f"sample_{solver}")
    # k-diffusion draws in every step, used or not
    generator = torch.Generator().manual_seed(1)
    with mock.patch("torch.randn_like", lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)):
        expected = a * sample(lambda y, s: denoise(y, s) / a, start, sigmas, disable=True, **churn)
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn
    result = run(scheduler, start, generator, draw=lambda: draw(START.shape, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(result, expected, **EXACT)
    plain = EDMVideoScheduler(sigma_in=a, solver=solver)
    plain.set_timesteps(10)
    assert (run(plain, start) - expected).abs().mean() > 0.01  # the noise matters


# ---------------------------------------------------------------------------------------------- diffusers
def warnings_of(function):
    logger, records = logging.get_logger("diffusers.configuration_utils"), []
    with mock.patch.object(logger, "warning", records.append):
        return function(), records


def run_diffusers(scheduler, start):
    state = start
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(state, timestep), timestep)
        state = scheduler.step(output, timestep, state, return_dict=False)[0]
    return state


PLAIN = [
    EDMEulerScheduler(),
    EDMEulerScheduler(sigma_data=1.0, sigma_max=120.0, sigma_schedule="exponential", prediction_type="v_prediction"),
    EDMEulerScheduler(sigma_min=0.01, rho=5.0),
    EDMDPMSolverMultistepScheduler(),
    EDMDPMSolverMultistepScheduler(
        sigma_schedule="exponential", prediction_type="v_prediction", num_train_timesteps=500
    ),
]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("theirs", PLAIN, ids=lambda each: type(each).__name__)
def test_plain_edm_checkpoints_give_the_same_samples_here(theirs, saved, tmp_path):
    """The same network, no sign to turn: `prediction_type` says which convention its output has."""
    solver = "euler" if isinstance(theirs, EDMEulerScheduler) else "dpmsolver++"
    if saved:
        theirs.save_pretrained(tmp_path)
        ours, records = warnings_of(lambda: EDMVideoScheduler.from_pretrained(tmp_path, solver=solver))
    else:
        ours, records = warnings_of(lambda: EDMVideoScheduler.from_config(theirs.config, solver=solver))
    assert records == [] and ours.config.sigma_in == 1
    for name in ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "num_train_timesteps"):
        assert ours.config[name] == theirs.config[name], name
    theirs.set_timesteps(14)
    ours.set_timesteps(14)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run(ours, 80 * START), run_diffusers(theirs, 80 * START), **EXACT)


@pytest.mark.parametrize(
    "class_name, solver", [("EDMEulerScheduler", "euler"), ("EDMDPMSolverMultistepScheduler", "dpmsolver++")]
)
@pytest.mark.parametrize(
    "options", [{}, {"sigma_data": 0.5}, {"prediction_type": "epsilon", "sigma_schedule": "exponential"}]
)
def test_diffusers_classes_sample_our_models_without_sigma_in(class_name, solver, options, tmp_path):
    ours = EDMVideoScheduler(solver=solver, **options)
    theirs_class = {each.__name__: each for each in ours.compatibles}[class_name]
    theirs, records = warnings_of(lambda: theirs_class.from_config(ours.config))
    assert records == [] and theirs.config.sigma_data == options.get("sigma_data", 1.0)
    theirs.set_timesteps(14)
    ours.set_timesteps(14)
    torch.testing.assert_close(run(ours, 80 * START), run_diffusers(theirs, 80 * START), **EXACT)
    back = EDMVideoScheduler.from_config(theirs.config)
    assert {name: back.config[name] for name in ours.config} == dict(ours.config)


def test_one_denoiser_in_both_signs():
    """-F in the one convention is F in the other; the targets have opposite signs and the weights are the same."""
    v = EDMVideoScheduler(sigma_data=0.5, solver="euler")
    epsilon = EDMVideoScheduler.from_config(v.config, prediction_type="epsilon")
    plain = EDMEulerScheduler(sigma_data=0.5)
    for each in (v, epsilon, plain):
        each.set_timesteps(14)
    expected = run_diffusers(plain, 80 * START)
    torch.testing.assert_close(run(v, 80 * START, flip=-1.0), expected, **EXACT)
    torch.testing.assert_close(run(epsilon, 80 * START), expected, **EXACT)
    v.set_timesteps(14)
    assert (run(v, 80 * START) - expected).abs().mean() > 0.1  # without the flip it is another model
    sigmas = torch.tensor([0.1, 1.0, 10.0, 40.0])
    noise = torch.randn(START.shape, generator=torch.Generator().manual_seed(1))
    target = epsilon.get_target(START, noise, sigmas)
    assert torch.equal(target, -v.get_target(START, noise, sigmas))
    assert torch.equal(epsilon.loss_weight(sigmas), v.loss_weight(sigmas))
    noisy = epsilon.add_noise(START, noise, sigmas=sigmas)
    sigma = sigmas.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(plain.precondition_outputs(noisy, target, sigma), START, rtol=0, atol=1e-5)


def test_a_file_that_leaves_values_to_the_defaults_of_its_class():
    config = {"_class_name": "EDMEulerScheduler", "sigma_max": 40.0}
    scheduler = EDMVideoScheduler.from_config(config, solver="euler")
    assert (scheduler.config.sigma_data, scheduler.config.prediction_type) == (0.5, "epsilon")
    assert scheduler.config.sigma_max == 40.0
    assert EDMVideoScheduler.from_config({"sigma_max": 40.0}).config.sigma_data == 1.0
    with pytest.raises(ValueError, match="Unknown `prediction_type` 'sample'; choose one of v_prediction, epsilon"):
        EDMVideoScheduler.from_config(EDMDPMSolverMultistepScheduler(prediction_type="sample").config)


def test_only_models_without_sigma_in_are_offered_diffusers_classes():
    assert set(EDMVideoScheduler().compatibles) == {
        EDMVideoScheduler,
        EDMEulerScheduler,
        EDMDPMSolverMultistepScheduler,
    }
    assert EDMVideoScheduler(sigma_in=4.0).compatibles == [EDMVideoScheduler]


# -------------------------------------------------------------------------------- as diffusers' tests want it
def test_scaling_before_any_run():
    x = torch.rand(4, 3, 8, 8)
    scheduler = EDMVideoScheduler(sigma_in=4.0, solver="euler")
    assert scheduler.init_noise_sigma == 80
    scaled = scheduler.scale_model_input(x, 0.0)  # c_noise = 0: the level nearest to 1
    torch.testing.assert_close(scaled, x / math.sqrt(1 / 16 + 1), rtol=1e-2, atol=0)
    assert len(scheduler.timesteps) == len(scheduler) == 1000 and len(scheduler.sigmas) == 1001


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmsolver++"])
@pytest.mark.parametrize("timestep", [0, 1, 0.0, torch.tensor(1), torch.tensor([0.3, 0.3])])
def test_a_saved_scheduler_steps_alike_at_any_timestep(solver, timestep, tmp_path):
    scheduler, x = EDMVideoScheduler(sigma_in=2.0, solver=solver), torch.rand(4, 3, 8, 8)
    scheduler.save_config(tmp_path)
    loaded = EDMVideoScheduler.from_pretrained(tmp_path)
    results = []
    for each in (scheduler, loaded):
        each.set_timesteps(10)
        scaled = each.scale_model_input(x, timestep)
        prev, denoised = each.step(0.1 * scaled, timestep, x, generator=torch.manual_seed(0), return_dict=False)
        each.set_timesteps(10)
        output = each.step(0.1 * each.scale_model_input(x, timestep), timestep, x)
        assert torch.equal(output.prev_sample, prev) and torch.equal(output.pred_original_sample, denoised)
        assert each.step(0.1 * scaled, timestep, x).prev_sample.shape == x.shape
        results.append(prev)
    assert torch.equal(*results)


def test_noise_at_one_timestep_for_the_batch():
    scheduler = EDMVideoScheduler(sigma_in=4.0)
    scheduler.set_timesteps(100)
    x, noise = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = scheduler.timesteps[5]
    expected = x / 4 + scheduler.sigmas[5] * noise
    for each in (timestep[None], timestep, timestep.item()):
        torch.testing.assert_close(scheduler.add_noise(x, noise, each), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scheduler.add_noise(x, noise, torch.tensor([0])), x / 4 + noise)
    rounded = timestep.to(torch.bfloat16)  # a coarse level, but exactly that one
    expected = x / 4 + math.exp(4 * rounded.item()) * noise
    torch.testing.assert_close(scheduler.add_noise(x, noise, rounded), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"sigma_max": 40.0, "s_tmax": math.inf}, {"sigma_in": 4.0}])
def test_the_configuration_survives_saving_and_its_relatives(options, tmp_path):
    scheduler = EDMVideoScheduler(**options)
    for each in scheduler.compatibles:
        back = EDMVideoScheduler.from_config(each.from_config(scheduler.config).config)
        assert {name: value for name, value in back.config.items() if name in scheduler.config} == dict(
            scheduler.config
        )
        assert not set(back.config) - set(scheduler.config) & set(inspect.signature(EDMVideoScheduler).parameters)
    scheduler.save_pretrained(tmp_path)
    expected = dict(scheduler.config)
    del expected["_use_default_values"]
    assert EDMVideoScheduler.from_pretrained(tmp_path).config == expected
    assert "Infinity" not in (tmp_path / "scheduler_config.json").read_text()  # it is not JSON
    assert not [name for name in scheduler.config if "beta" in name]
    config, unused = EDMVideoScheduler.from_config(scheduler.config, return_unused_kwargs=True, other=1)
    assert unused["other"] == 1 and isinstance(config, EDMVideoScheduler)


def test_attributes_are_those_of_any_scheduler():
    scheduler = EDMVideoScheduler()
    scheduler.register_to_config(test_attribute=5)
    with pytest.warns(FutureWarning):
        assert scheduler.test_attribute == 5
    with pytest.raises(AttributeError, match="'EDMVideoScheduler' object has no attribute 'does_not_exist'"):
        scheduler.does_not_exist
