import json
import logging
import math

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.hooks import LayerSkipConfig
from diffusers.models.cache_utils import CacheMixin
from diffusers.modular_pipelines.modular_pipeline import BlockState

from vimi_diffusers import EDMVideoScheduler
from vimi_diffusers.vimi.guidance import VIMIGuidance, predict_branches
from vimi_diffusers.vimi.tiny import build_tiny_components


SHAPE = (2, 3, 4, 16, 16)
SKIP_FEED_FORWARDS = {"indices": [0], "skip_attention": False}
SKIP_ATTENTION = {"indices": [0], "skip_ff": False}
SKIP_BLOCK = {"indices": [0]}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def transformer():
    return build_tiny_components(num_layers=2)["transformer"]


@pytest.fixture
def scheduler():
    return EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0)


@pytest.fixture
def conditions():
    """C and its mask for the whole prompt, the empty one and the text alone."""
    mask = torch.arange(7).expand(2, 7)
    return {
        "encoder_hidden_states": tuple(noise(2, 7, 32, seed=seed) for seed in (1, 2, 3)),
        "encoder_attention_mask": (None, mask < 3, mask < 5),
    }


def denoise(guider, model, scheduler, latents, conditions, steps=4):
    """The loop of the pipeline; the states of the guider's branches after each model call come with the result."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    latents, order, history = latents * scheduler.init_noise_sigma, scheduler.order, []
    for i, t in enumerate(scheduler.timesteps):
        guider.set_state(i // order, scheduler.num_inference_steps, scheduler.timesteps[i // order * order])
        shared = {"hidden_states": scheduler.scale_model_input(latents, t), "timestep": t.expand(len(latents))}
        branches = guider.prepare_inputs({**shared, **conditions})
        with torch.no_grad():
            predict_branches(guider, model, branches, {"step_index": i}, attention_kwargs=None)
        latents = scheduler.step(guider(branches)[0], t, latents, return_dict=False)[0]
        history.append([branch.__dict__[guider._identifier_key] for branch in branches])
    return latents, history


# ---------------------------------------------------------------- the equation
@pytest.mark.parametrize("text_scale, image_scale", [(7.0, 2.0), (2.0, 7.0), (1.0, 4.0), (4.0, 1.0), (0.5, 0.0)])
def test_two_scales_match_the_written_equation(text_scale, image_scale):
    whole, empty, text = (noise(*SHAPE, seed=seed) for seed in range(3))
    guided = VIMIGuidance(text_scale, image_scale).forward(whole, empty, text)
    expected = empty + text_scale * (text - empty) + image_scale * (whole - text)
    torch.testing.assert_close(guided.pred, expected, atol=1e-5, rtol=1e-5)
    assert guided.pred_cond is whole and guided.pred_uncond is empty


@pytest.mark.parametrize(
    "scales, names",
    [
        ((1.0, None), ["pred_cond"]),
        ((1.0, 1.0), ["pred_cond"]),
        ((3.0, None), ["pred_cond", "pred_uncond"]),
        ((3.0, 3.0), ["pred_cond", "pred_uncond"]),
        ((1.0, 3.0), ["pred_cond", "pred_text"]),
        ((3.0, 1.0), ["pred_cond", "pred_uncond", "pred_text"]),
        ((8.0, 3.0), ["pred_cond", "pred_uncond", "pred_text"]),
    ],
)
def test_only_branches_of_nonzero_weight_are_evaluated(scales, names):
    guider = VIMIGuidance(*scales)
    values = {"pred_cond": noise(*SHAPE), "pred_uncond": noise(*SHAPE, seed=1), "pred_text": noise(*SHAPE, seed=2)}
    branches = guider.prepare_inputs({"value": tuple(values.values()), "shared": values["pred_cond"]})
    assert guider.num_conditions == len(names)
    assert [branch.__guidance_identifier__ for branch in branches] == names
    for branch in branches:
        assert branch.value is values[branch.__guidance_identifier__] and branch.shared is values["pred_cond"]
        branch.noise_pred = branch.value
    text, image = scales[0], scales[0] if scales[1] is None else scales[1]
    expected = values["pred_uncond"] + text * (values["pred_text"] - values["pred_uncond"])
    expected = expected + image * (values["pred_cond"] - values["pred_text"])
    torch.testing.assert_close(guider(branches)[0], expected, atol=1e-5, rtol=1e-5)


def test_block_states_are_sorted_like_tensors():
    state = BlockState(whole=noise(2), empty=noise(2, seed=1), text=noise(2, seed=2), t=noise(1))
    guider = VIMIGuidance(3.0, 2.0)
    branches = guider.prepare_inputs_from_block_state(state, {"c": ("whole", "empty", "text"), "time": "t"})
    for branch, value in zip(branches, (state.whole, state.empty, state.text), strict=True):
        assert branch.c is value
    assert all(branch.time is state.t for branch in branches)


@pytest.mark.parametrize("settings", [{}, {"guidance_rescale": 0.7}, {"start": 0.3, "stop": 0.8}, {"enabled": False}])
def test_one_scale_is_the_classifier_free_guidance_of_diffusers(settings):
    ours, theirs = VIMIGuidance(4.0, **settings), ClassifierFreeGuidance(4.0, **settings)
    whole, empty = noise(*SHAPE), noise(*SHAPE, seed=1)
    for step in range(10):
        results = []
        for guider in (ours, theirs):
            guider.set_state(step, 10, torch.tensor(0.0))
            branches = guider.prepare_inputs({"noise_pred": (whole, empty)})
            results.append(guider(branches)[0])
        assert ours.num_conditions == theirs.num_conditions
        torch.testing.assert_close(*results, atol=0, rtol=0)


def test_full_rescale_restores_the_spread_of_the_conditional_output():
    whole, empty, text = (noise(*SHAPE, seed=seed) for seed in range(3))
    guided = VIMIGuidance(9.0, 4.0, guidance_rescale=1.0).forward(whole, empty, text).pred
    torch.testing.assert_close(guided.flatten(1).std(dim=1), whole.flatten(1).std(dim=1))


# ---------------------------------------------------------------- when it applies
def guided_steps(guider, steps, timesteps=None):
    flags = []
    for step in range(steps):
        guider.set_state(step, steps, torch.tensor(0.0) if timesteps is None else timesteps[step])
        assert guider.num_conditions == (2 if guider.current_scales() != (1.0, 1.0) else 1)
        flags.append(guider.num_conditions == 2)
    return flags


def test_before_a_run_guidance_is_on():
    settings = {"start": 0.5, "oscillation_start": 0.0, "guidance_interval": (1.0, 2.0), "sigma_in": 1.0}
    assert VIMIGuidance(3.0, **settings).num_conditions == 2


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, "GGGGGGGGGG"),
        ({"oscillation_start": 0.0}, "G-G-G-G-G-"),  # Instruct-Imagen: guided and unguided steps alternate
        ({"oscillation_start": 0.3}, "GGGG-G-G-G"),  # three constant steps, then guided, unguided, ...
        ({"start": 0.2, "stop": 0.7}, "--GGGGG---"),
        ({"start": 0.2, "oscillation_start": 0.3}, "--GG-G-G-G"),
        ({"stop": 0.5, "oscillation_start": 0.0}, "G-G-G-----"),
        ({"enabled": False}, "----------"),
    ],
)
def test_steps_of_window_and_oscillation(settings, expected):
    assert guided_steps(VIMIGuidance(3.0, **settings), 10) == [flag == "G" for flag in expected]


def test_interval_is_half_open_and_in_units_of_plain_edm():
    sigmas = [20.0, 8.0, 4.0, 2.0, 1.0, 0.5]  # times `sigma_in` 2: 40, 16, 8, 4, 2, 1
    timesteps = EDMVideoScheduler().precondition_noise(torch.tensor(sigmas))
    guider = VIMIGuidance(3.0, guidance_interval=(2.0, 16.0), sigma_in=2.0)
    assert guided_steps(guider, 6, timesteps) == [False, True, True, True, False, False]
    assert guided_steps(guider.new(sigma_in=1.0), 6, timesteps) == [False, True, True, False, False, False]
    assert guided_steps(guider.new(guidance_interval=(0, math.inf)), 6, timesteps) == 6 * [True]
    both = guider.new(oscillation_start=0.0)
    assert guided_steps(both, 6, timesteps) == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"oscillation_start": 0.0}, [2, 2, 1, 1, 2, 2, 1]),
        ({"start": 0.5}, [1, 1, 1, 1, 2, 2, 2]),
        ({"guidance_interval": (0.05, 10.0), "sigma_in": 2.0}, [1, 1, 2, 2, 2, 2, 1]),
    ],
)
def test_both_calls_of_a_heun_step_have_the_same_guidance(settings, expected, transformer, scheduler, conditions):
    _, history = denoise(VIMIGuidance(3.0, **settings), transformer, scheduler, noise(*SHAPE), conditions)
    assert [2 * sigma for sigma in scheduler.sigmas[::2]] == pytest.approx([40.0, 5.65, 0.37, 0.004], rel=0.01)
    assert [len(names) for names in history] == expected


def test_scales_may_change_between_steps():
    whole, empty = noise(*SHAPE), noise(*SHAPE, seed=1)
    guider = VIMIGuidance(3.0)
    guider.guidance_scale = 5.0
    torch.testing.assert_close(guider.forward(whole, empty).pred, empty + 5.0 * (whole - empty))


# ---------------------------------------------------------------- closed-form Gaussians
class GaussianDenoiser(torch.nn.Module, CacheMixin):
    """The perfect network for data ~ N(condition, spread**2), through Bayes' rule."""

    def __init__(self, scheduler, spread):
        super().__init__()
        self.scheduler, self.spread = scheduler, spread

    def forward(self, hidden_states, timestep, encoder_hidden_states, attention_kwargs=None, return_dict=False):
        config, shape = self.scheduler.config, (-1, 1, 1, 1, 1)
        sigma, mean = torch.exp(4 * timestep.double()).view(shape), encoder_hidden_states.double().view(shape)
        sample = hidden_states.double() * (config.sigma_data**2 / config.sigma_in**2 + sigma**2) ** 0.5
        scaled_variance = (self.spread / config.sigma_in) ** 2
        gain = scaled_variance / (scaled_variance + sigma**2)
        denoised = mean + config.sigma_in * gain * (sample - mean / config.sigma_in)
        zero = torch.zeros_like(sample)
        skip = self.scheduler.precondition_outputs(sample, zero, sigma)
        out = self.scheduler.precondition_outputs(zero, zero + 1, sigma)
        return (((denoised - skip) / out).float(),)


MEANS = (0.5, -0.2, 0.3)  # of the data for the whole prompt, for the empty one, for the text alone
SPREAD = 0.4


def sample_gaussians(guider, scheduler):
    """Mean and standard deviation of the samples; the starting noise is symmetric, its mean is zero."""
    quantiles = torch.special.ndtri((torch.arange(512) + 0.5) / 512).float().view(-1, 1, 1, 1, 1)
    conditions = {"encoder_hidden_states": tuple(torch.full((512, 1, 1), mean) for mean in MEANS)}
    model = GaussianDenoiser(scheduler, SPREAD)
    samples, _ = denoise(guider, model, scheduler, quantiles, conditions, steps=160)
    return samples.mean().item(), (samples.std() / quantiles.std()).item()


@pytest.mark.parametrize("scales", [(1.0, None), (3.0, None), (1.0, 4.0), (3.0, 1.0), (2.5, 4.0)])
@pytest.mark.parametrize("sigma_in", [1.0, 4.0])
def test_samples_move_to_the_mean_of_the_sharpened_gaussian(scales, sigma_in):
    """`p(x) p(T|x)^s p(I|x,T)^r` of Gaussians of one width is a Gaussian of that width; its mean is known."""
    scheduler = EDMVideoScheduler(sigma_in=sigma_in)
    mean, spread = sample_gaussians(VIMIGuidance(*scales), scheduler)
    whole, empty, text = MEANS
    text_scale, image_scale = scales[0], scales[0] if scales[1] is None else scales[1]
    goal = empty + text_scale * (text - empty) + image_scale * (whole - text)
    lost = SPREAD / math.hypot(SPREAD, sigma_in * 80.0)  # what is left at the end of the mean that the start lacks
    assert mean == pytest.approx(goal * (1 - lost), abs=2e-3)
    assert spread == pytest.approx(SPREAD, rel=2e-3)


def test_an_interval_moves_the_mean_as_the_ode_says():
    """Between noise levels, the distance to the mean aimed at shrinks as `hypot(spread, sigma_in * sigma)`."""
    scheduler = EDMVideoScheduler(sigma_in=2.0)
    mean, _ = sample_gaussians(VIMIGuidance(5.0, guidance_interval=(0.3, 3.0), sigma_in=2.0), scheduler)
    whole, empty, _ = MEANS
    levels = [2.0 * sigma for sigma in dict.fromkeys(scheduler.sigmas)]
    first, last = (next(level for level in levels if level <= limit) for limit in (3.0, 0.3))
    expected = 0.0
    for goal, high, low in (
        (whole, levels[0], first),
        (empty + 5.0 * (whole - empty), first, last),
        (whole, last, 0.0),
    ):
        expected = goal + (expected - goal) * math.hypot(SPREAD, low) / math.hypot(SPREAD, high)
    assert abs(expected - whole) > 0.2  # the interval matters
    assert mean == pytest.approx(expected, abs=5e-3)


# ---------------------------------------------------------------- one forward for all branches
def test_branches_in_one_batch_equal_separate_calls(transformer, conditions):
    shared = {"hidden_states": noise(*SHAPE), "timestep": torch.tensor([0.3, -0.2]), "fps": torch.tensor([5.0, 8.0])}
    guider = VIMIGuidance(3.0, 2.0)
    branches = guider.prepare_inputs({**shared, **conditions})
    calls = []
    handle = transformer.register_forward_pre_hook(lambda _, __, inputs: calls.append(inputs), with_kwargs=True)
    with torch.no_grad():
        output = predict_branches(guider, transformer, branches)
        handle.remove()
        for index, branch in enumerate(branches):
            arguments = {name: values[index] for name, values in conditions.items()}
            alone = transformer(**shared, **arguments).sample
            torch.testing.assert_close(branch.noise_pred, alone, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1
    order = torch.cat([conditions["encoder_hidden_states"][index] for index in (2, 1, 0)])  # the whole prompt is last
    assert torch.equal(calls[0]["encoder_hidden_states"], order)
    assert torch.equal(output[0], branches[0].noise_pred)
    assert (branches[0].noise_pred - branches[1].noise_pred).abs().max() > 1e-3


class TwoOutputs(torch.nn.Module, CacheMixin):
    """Returns a half precision sample and carried latents."""

    def forward(self, hidden_states, previous_latents, encoder_hidden_states, return_dict):
        return (hidden_states * encoder_hidden_states).half(), previous_latents + encoder_hidden_states


@pytest.mark.parametrize("guider_class", [VIMIGuidance, AutoGuidance])
def test_further_outputs_are_those_of_the_whole_prompt(guider_class):
    settings = {} if guider_class is VIMIGuidance else {"auto_guidance_config": LayerSkipConfig([0])}
    guider = guider_class(3.0, **settings)
    guider.cleanup_models = lambda model: None
    if guider_class is AutoGuidance:
        guider.prepare_models = lambda model: None  # the protocol of one call for each branch, without its hooks
    data = {"hidden_states": noise(2, 3), "previous_latents": noise(2, 3, seed=1)}
    branches = guider.prepare_inputs({**data, "encoder_hidden_states": (torch.ones(2, 3), torch.zeros(2, 3))})
    sample, latents = predict_branches(guider, TwoOutputs(), branches)
    torch.testing.assert_close(sample, data["hidden_states"].half())
    torch.testing.assert_close(latents, data["previous_latents"] + 1)
    assert branches[0].noise_pred.dtype == torch.float32 and branches[1].noise_pred.abs().max() == 0


class LeavesOutTheFirstHalf(torch.nn.Module, CacheMixin):
    """As a step cache does that rebuilds the samples of the unconditional branch, but nothing else of it."""

    def forward(self, hidden_states, encoder_hidden_states, return_dict):
        kept = encoder_hidden_states.chunk(2)[1]
        return torch.cat([kept + 1, kept]), 2 * kept


def test_a_cache_may_leave_a_branch_out():
    guider, given = VIMIGuidance(3.0), noise(2, 3)
    data = {"hidden_states": noise(2, 3), "encoder_attention_mask": None}  # such a cache cannot cut `None` in half
    branches = guider.prepare_inputs({**data, "encoder_hidden_states": (given, torch.zeros(2, 3))})
    sample, latents = predict_branches(guider, LeavesOutTheFirstHalf(), branches)
    assert torch.equal(sample, given) and torch.equal(latents, 2 * given)
    assert torch.equal(branches[0].noise_pred, given) and torch.equal(branches[1].noise_pred, given + 1)


def test_branches_without_an_argument_or_of_other_length_are_refused(transformer):
    shared = {"hidden_states": noise(*SHAPE), "timestep": torch.zeros(2)}
    guider, c = VIMIGuidance(3.0), noise(2, 7, 32)
    with pytest.raises(ValueError, match="`encoder_hidden_states` is missing in pred_uncond"):
        predict_branches(guider, transformer, guider.prepare_inputs({**shared, "encoder_hidden_states": (c, None)}))
    with pytest.raises(ValueError, match=r"one shape in all branches, got \(2, 3, 32\) in pred_uncond, \(2, 7, 32\)"):
        predict_branches(
            guider, transformer, guider.prepare_inputs({**shared, "encoder_hidden_states": (c, c[:, :3])})
        )


# ---------------------------------------------------------------- guiders of diffusers in the same loop
def test_a_run_equals_the_guider_of_diffusers(transformer, scheduler, conditions):
    ours, _ = denoise(VIMIGuidance(3.0), transformer, scheduler, noise(*SHAPE), conditions)
    theirs, _ = denoise(ClassifierFreeGuidance(3.0), transformer, scheduler, noise(*SHAPE), conditions)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    two_axes, _ = denoise(VIMIGuidance(3.0, 1.5), transformer, scheduler, noise(*SHAPE), conditions)
    assert (two_axes - ours).abs().max() > 1e-3


def skip_layers(settings):
    return SkipLayerGuidance(
        3.0,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig(**settings),
    )


def autoguidance(**settings):
    return AutoGuidance(3.0, auto_guidance_config=LayerSkipConfig(**settings))


@pytest.mark.parametrize(
    "make, calls_of_a_step, batch_size",
    [
        (lambda: ClassifierFreeGuidance(3.0), 1, 4),
        (lambda: AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5), 1, 4),
        (lambda: ClassifierFreeZeroStarGuidance(3.0), 1, 4),
        (lambda: TangentialClassifierFreeGuidance(3.0), 1, 4),
        (lambda: autoguidance(**SKIP_BLOCK), 2, 2),
        (lambda: autoguidance(**SKIP_ATTENTION), 2, 2),
        (lambda: autoguidance(**SKIP_FEED_FORWARDS), 2, 2),
        (lambda: autoguidance(**SKIP_FEED_FORWARDS, dropout=0.1), 2, 2),
        (lambda: skip_layers(SKIP_BLOCK), 3, 2),
        (lambda: skip_layers(SKIP_ATTENTION), 3, 2),
        (lambda: skip_layers(SKIP_FEED_FORWARDS), 3, 2),
        (
            lambda: PerturbedAttentionGuidance(
                3.0, perturbed_guidance_layers=[0], perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0
            ),
            3,
            2,
        ),
    ],
    ids="cfg apg zero_star tcfg auto_block auto_attn auto_ff auto_dropout slg_block slg_attn slg_ff pag".split(),
)
def test_guiders_of_diffusers_run(make, calls_of_a_step, batch_size, transformer, scheduler, conditions):
    unguided, _ = denoise(VIMIGuidance(1.0), transformer, scheduler, noise(*SHAPE), conditions)
    sizes = []
    hook = transformer.register_forward_pre_hook(
        lambda _, __, arguments: sizes.append(len(arguments["hidden_states"])), with_kwargs=True
    )
    guided, _ = denoise(make(), transformer, scheduler, noise(*SHAPE), conditions)
    hook.remove()
    assert (guided - unguided).abs().max() > 1e-3 and guided.isfinite().all()
    assert sizes[-calls_of_a_step:] == calls_of_a_step * [batch_size]
    after, _ = denoise(VIMIGuidance(1.0), transformer, scheduler, noise(*SHAPE), conditions)
    torch.testing.assert_close(after, unguided, atol=0, rtol=0)  # no hook was left behind


def test_autoguidance_is_the_equation_with_a_weakened_model(transformer, conditions):
    """2406.02507: `bad + w (good - bad)` at one condition; the bad model skips the feed-forwards of one block."""
    prompt = {name: values[0] for name, values in conditions.items()}
    shared = {"hidden_states": noise(*SHAPE), "timestep": torch.tensor([0.3, -0.2])}
    guider = AutoGuidance(2.5, auto_guidance_config=LayerSkipConfig(**SKIP_FEED_FORWARDS))
    branches = guider.prepare_inputs({**shared, **{name: (value, value) for name, value in prompt.items()}})
    weakened = build_tiny_components(num_layers=2)["transformer"]
    for name, module in weakened.transformer_blocks[0].named_modules():
        if name.rpartition(".")[2] == "ff":
            module.forward = lambda hidden_states: hidden_states
    with torch.no_grad():
        predict_branches(guider, transformer, branches)
        good, bad = (model(**shared, **prompt).sample for model in (transformer, weakened))
    torch.testing.assert_close(guider(branches)[0], bad + 2.5 * (good - bad), atol=1e-5, rtol=1e-5)
    assert (good - bad).abs().max() > 1e-3


def test_hooks_go_when_the_model_fails(transformer, conditions):
    guider = AutoGuidance(3.0, auto_guidance_config=LayerSkipConfig(**SKIP_FEED_FORWARDS))
    good = {"hidden_states": noise(*SHAPE), "timestep": torch.zeros(2)}
    with torch.no_grad():
        before = transformer(**good, encoder_hidden_states=conditions["encoder_hidden_states"][0]).sample
        c = conditions["encoder_hidden_states"][0]
        with pytest.raises(RuntimeError):
            branches = guider.prepare_inputs({**good, "encoder_hidden_states": (c, c[..., :5])})
            predict_branches(guider, transformer, branches)
        torch.testing.assert_close(transformer(**good, encoder_hidden_states=c).sample, before, atol=0, rtol=0)


# ---------------------------------------------------------------- saving and bad input
SETTINGS = {
    "guidance_scale": 6.0,
    "image_guidance_scale": 2.0,
    "guidance_rescale": 0.3,
    "oscillation_start": 0.1,
    "guidance_interval": [0.5, 30.0],
    "sigma_in": 2.0,
    "start": 0.1,
    "stop": 0.9,
    "enabled": False,
}


def test_save_and_load(tmp_path):
    VIMIGuidance(**SETTINGS).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "guider_config.json").read_text())
    assert stored["_class_name"] == "VIMIGuidance" and {name: stored[name] for name in SETTINGS} == SETTINGS
    loaded = VIMIGuidance.from_pretrained(tmp_path)
    for name, value in SETTINGS.items():
        assert getattr(loaded, "_" + name if name in ("start", "stop", "enabled") else name) == value


class PipelineWithGuider(DiffusionPipeline):
    _optional_components = ["guider"]

    def __init__(self, scheduler, guider=None):
        super().__init__()
        self.register_modules(scheduler=scheduler, guider=guider)


def test_a_component_of_a_pipeline(tmp_path, scheduler):
    PipelineWithGuider(scheduler, VIMIGuidance(**SETTINGS)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["guider"] == ["vimi", "VIMIGuidance"]
    loaded = PipelineWithGuider.from_pretrained(tmp_path).guider
    assert type(loaded) is VIMIGuidance and dict(loaded.config).items() >= SETTINGS.items()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"guidance_scale": -1.0}, "`guidance_scale` must be a finite number of at least 0 .* got -1.0"),
        ({"guidance_scale": math.nan}, "`guidance_scale` .* got nan"),
        ({"image_guidance_scale": math.inf}, "`image_guidance_scale` .* got inf"),
        ({"guidance_rescale": 1.5}, "`guidance_rescale` must be between 0 and 1, got 1.5"),
        ({"oscillation_start": 1.0}, "`oscillation_start` is a share of the steps, .* got 1.0"),
        ({"guidance_interval": (2.0, 1.0), "sigma_in": 1.0}, r"`guidance_interval` .* got \(2.0, 1.0\)"),
        ({"guidance_interval": 3.0, "sigma_in": 1.0}, "`guidance_interval` needs two levels, .* got 3.0"),
        ({"guidance_interval": (1.0, 2.0)}, "`guidance_interval` needs `sigma_in`: pass the scheduler's"),
        ({"sigma_in": 0.0}, "`sigma_in` must be positive, got 0.0"),
        ({"start": 0.5, "stop": 0.2}, "`stop`"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        VIMIGuidance(**settings)


def test_missing_branches():
    guider, tensor = VIMIGuidance(3.0, 2.0), noise(*SHAPE)
    message = "image scale 2.0 need `pred_text`, entry 2 of `c`, which has 2"
    with pytest.raises(ValueError, match=message):
        guider.prepare_inputs({"c": (tensor, tensor)})
    with pytest.raises(ValueError, match=message):
        guider.prepare_inputs_from_block_state(BlockState(a=tensor), {"c": ("a", "a")})
    with pytest.raises(
        ValueError, match="`pred_uncond`, entry 1 of `c`, which has 1: add it, or set `guidance_scale=1`"
    ):
        guider.prepare_inputs({"c": (tensor,)})
    with pytest.raises(ValueError, match="needs pred_cond, pred_uncond, pred_text; missing: pred_text"):
        guider.forward(tensor, tensor)


def test_another_input_scaling_than_the_schedulers():
    scheduler = EDMVideoScheduler(sigma_in=4.0)
    VIMIGuidance(sigma_in=2.0).check_scheduler(scheduler)  # not used without an interval
    guider = VIMIGuidance(guidance_interval=(1.0, 2.0), sigma_in=2.0)
    with pytest.raises(ValueError, match="`sigma_in` 2.0 is not the scheduler's 4.0"):
        guider.check_scheduler(scheduler)
    guider.new(sigma_in=4.0).check_scheduler(scheduler)


def test_making_a_guider_does_not_warn(caplog):
    with caplog.at_level(logging.WARNING, logger="diffusers"):
        logging.getLogger("diffusers").addHandler(caplog.handler)
        try:
            VIMIGuidance()
            assert caplog.records == []
            ClassifierFreeGuidance()
            assert len(caplog.records) == 1  # diffusers' own still do
        finally:
            logging.getLogger("diffusers").removeHandler(caplog.handler)
