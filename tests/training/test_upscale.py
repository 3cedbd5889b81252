import math

import pytest
import torch
import torch.nn.functional as F
from tiny_transformer import make
from torch import nn

from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from vimi_diffusers.emoji_world.samples import EmojiWorldDataset
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.training.upscale import UpscaleTrainingModel, reduce, upscaler_from_base
from vimi_diffusers.training.upscale_loop import UpscaleTrainer
from vimi_diffusers.vimi.pipeline_vimi_upscale import VIMIUpscalePipeline
from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler
from vimi_diffusers.vimi.tiny import build_tiny_components
from vimi_diffusers.vimi.upscaling import enlarge


UPSCALER = {"in_channels": 6, "out_channels": 3, "noise_level_token": True}


def build(base_size=(8, 8), noise_levels=(0.01, 1.0), **options):
    transformer = make(**{**UPSCALER, **options})
    scheduler = EDMVideoScheduler(sigma_in=4.0)
    return UpscaleTrainingModel(nn.Identity(), transformer, scheduler, base_size, noise_levels, "snap").train()


def draw(batch_size=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        "video": torch.randn(batch_size, 3, 4, 16, 16, generator=generator).clamp(-1, 1),
        "noise": torch.randn(batch_size, 3, 4, 16, 16, generator=generator),
        "sigmas": torch.linspace(0.1, 3.0, batch_size),
        "prompt_embeds": torch.randn(batch_size, 5, 16, generator=generator),
        "attention_mask": torch.ones(batch_size, 5, dtype=torch.bool),
        "fps": torch.full((batch_size,), 8.0),
    }


def inputs_of(module):
    """Keeps the inputs of each call."""
    seen = []
    module.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    return seen


# ------------------------------------------------------------------ the base
def test_a_pixel_of_the_base_is_the_mean_of_its_area():
    video = torch.randn(2, 3, 4, 16, 24)
    base = reduce(video, 8, 6)
    assert base.shape == (2, 3, 4, 8, 6)
    torch.testing.assert_close(base[1, 2, 3, 5, 4], video[1, 2, 3, 10:12, 16:20].mean())
    assert torch.equal(reduce(video, 16, 24), video)


def test_the_base_of_a_large_rendering_is_the_small_one(world):
    """Emoji world draws any size, 128 pixels too, and its means are what it draws at 64."""
    assets = EmojiWorldAssets.load(world)
    samples = list(EmojiWorldDataset(assets.index, "train", {"text-to-video": 1.0}, length=4, num_frames=2))
    batch = RenderBatch.from_samples(samples, assets.index)
    small, large = (EmojiWorldRenderer(assets, 2, size=size, reference_size=16).videos(batch) for size in (64, 128))
    assert large.shape == (4, 3, 2, 128, 128)
    assert (reduce(large, 64, 64) - small).abs().mean() < 0.1 * small.std()
    assert (large - enlarge(small, 128, 128)).abs().max() > 0.1  # there is more to see


def test_the_corrupted_base_has_the_stated_variance():
    """Unit variance in, unit variance out, of which the noise has s**2 / (1 + s**2)."""
    model, video = build(base_size=(16, 16), noise_levels=(0.1, 2.0)), torch.randn(64, 3, 4, 16, 16)
    base, level = model.corrupted_base(video)
    torch.testing.assert_close(base.var(dim=(1, 2, 3, 4)), torch.ones(64), rtol=0.15, atol=0)
    noise = base - video / (1 + level**2).sqrt()[:, None, None, None, None]
    torch.testing.assert_close(noise.var(dim=(1, 2, 3, 4)), level**2 / (1 + level**2), rtol=0.15, atol=0)


def test_levels_are_log_uniform_and_go_with_nothing():
    model = build(noise_levels=(0.01, 1.0))
    torch.manual_seed(0)
    _, level = model.corrupted_base(torch.zeros(4096, 3, 1, 16, 16))
    assert 0.01 <= level.min() < 0.0102 and 0.98 < level.max() <= 1.0
    place = (level.log() - math.log(0.01)) / math.log(100)
    torch.testing.assert_close(place.sort().values, (torch.arange(4096) + 0.5) / 4096, rtol=0, atol=0.03)
    order = torch.stack([torch.arange(4096.0), place])  # sigmas rise along the batch
    assert torch.corrcoef(order)[0, 1].abs() < 0.05


def test_the_upscaler_sees_what_the_pipeline_will_show_it():
    model, batch = build(noise_levels=(1e-5, 1e-5)), draw(batch_size=1)
    seen = inputs_of(model.transformer)
    model.diffusion_loss(**batch)
    parts = {**build_tiny_components(), "transformer": model.transformer, "scheduler": model.scheduler}
    parts.pop("vae")
    pipe = VIMIUpscalePipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    small = (reduce(batch["video"], 8, 8) + 1) / 2
    pipe(
        small.transpose(1, 2), prompt_embeds=batch["prompt_embeds"], noise_level=1e-5, num_inference_steps=2, fps=8.0
    )  # fmt: skip
    trained, sampled = seen[0], seen[1]
    torch.testing.assert_close(trained["hidden_states"][:, 3:], sampled["hidden_states"][:, 3:], rtol=0, atol=1e-4)
    torch.testing.assert_close(trained["noise_level"], sampled["noise_level"].reshape(1))
    assert torch.equal(trained["fps"], sampled["fps"].expand(1))
    expected = enlarge(reduce(batch["video"], 8, 8), 16, 16)
    torch.testing.assert_close(trained["hidden_states"][:, 3:], expected, rtol=0, atol=1e-4)


# ------------------------------------------------------------------ the loss
class Oracle(nn.Module):
    """Takes the base for the clean video, and from it works out the noise and so F."""

    def __init__(self, scheduler):
        super().__init__()
        self.config = make(**UPSCALER).config
        self.out_channels, self.scheduler = 3, scheduler

    def forward(self, hidden_states, timestep, noise_level, return_dict, **rest):
        sigma = (4 * timestep).exp()[:, None, None, None, None]
        scaled, video = hidden_states.split(3, dim=1)
        noisy = scaled / self.scheduler.precondition_inputs(torch.ones(1), sigma)
        noise = (noisy - video / self.scheduler.config.sigma_in) / sigma
        return (self.scheduler.get_target(video, noise, sigma.flatten()),)


def test_with_the_true_base_and_no_noise_an_oracle_has_no_loss():
    scheduler = EDMVideoScheduler(sigma_in=4.0)
    losses = {}
    for size, level in (((16, 16), 1e-7), ((8, 8), 1e-7), ((16, 16), 0.5)):
        model = UpscaleTrainingModel(nn.Identity(), Oracle(scheduler), scheduler, size, (level, level), "snap")
        losses[size, level], error = model.diffusion_loss(**draw())
        assert error.shape == (4,)
    exact, *others = losses.values()
    assert exact < 1e-8 and min(others) > 0.01  # a smaller base, or noise on it, hides the video


def test_in_evaluation_base_and_level_are_fixed_and_nothing_is_drawn():
    model, video = build().eval(), draw()["video"]
    state = torch.get_rng_state()
    base, level = model.corrupted_base(video)
    again, same = model.corrupted_base(video)
    assert torch.equal(base, again) and torch.equal(level, same) and len(level.unique()) == 4
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert not torch.equal(model.corrupted_base(video)[0], model.corrupted_base(video)[0])


def test_the_loss_is_one_graph():
    model = build(self_conditioning=True)
    torch.compiler.reset()
    compiled = torch.compile(model.diffusion_loss, backend="eager", fullgraph=True, dynamic=False)
    loss, _ = compiled(**draw())
    loss.backward()
    torch.compiler.reset()
    assert all(weight.grad is not None for weight in model.transformer.parameters())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"in_channels": 3, "out_channels": 3}, "is no upscaler: .* got True, 3 and 3"),
        ({"noise_level_token": False}, "is no upscaler: .* got False, 6 and 3"),
        ({"base_size": (32, 8)}, "`base_size` 32x8 must fit in the upscaler's 16x16"),
        ({"noise_levels": (0.0, 1.0)}, "`noise_levels` must be a range above 0, got 0.0 and 1.0"),
        ({"noise_levels": (0.5, 0.1)}, "`noise_levels` must be a range above 0, got 0.5 and 0.1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


# ------------------------------------------------------------------ from a base model
def test_an_upscaler_starts_from_a_base_model():
    base = make(input_skip=True, self_conditioning=True)
    upscaler = upscaler_from_base(base, {"height": 32, "width": 32, "num_latents": 64, "shared_positions": True})
    assert upscaler.config.in_channels == 6 and upscaler.out_channels == 3 and upscaler.skip_gain is None
    old, new = base.state_dict(), upscaler.state_dict()
    first = new["patch_embed.weight"]
    assert torch.equal(first[:, :48], old["patch_embed.weight"]) and not first[:, 48:].any()
    table = F.interpolate(old["pos_embed"].permute(3, 0, 1, 2)[None], size=(4, 2, 2), mode="trilinear")
    torch.testing.assert_close(new["pos_embed"], table[0].permute(1, 2, 3, 0))
    changed = {name for name in new if name not in old or not torch.equal(new[name], old[name])}
    fresh = {name.split(".")[0] for name in changed}
    assert fresh == {"patch_embed", "pos_embed", "latents", "noise_level_embedder"}
    # the patches of the noisy video are read as before
    video = torch.randn(1, 3, 4, 16, 16)
    wide = torch.cat([video, torch.randn(1, 3, 4, 16, 16)], dim=1)
    patches = (model._patchify(x, (4, 4, 4)) for model, x in ((base, video), (upscaler, wide)))
    before, after = (model.patch_embed(x) for model, x in zip((base, upscaler), patches))
    torch.testing.assert_close(after, before)


def test_changes_that_lose_weights_are_refused():
    with pytest.raises(ValueError, match="'patch_dim': 48} do not fit the base's weights: "):
        upscaler_from_base(make(), {"patch_dim": 48})


# ------------------------------------------------------------------ runs
@pytest.fixture
def upscaler_config(make_config):
    def make_upscaler_config(**changes):
        model = make_config().model
        transformer = {**model["transformer"], **UPSCALER, "input_skip": False, "dropout": 0.0}
        model = {**model, "transformer": transformer, "upscaling": {"base_size": [8, 8]}}
        return make_config(**{"model": model, "loss_weighting": "snap", **changes})

    return make_upscaler_config


def test_a_run_learns_and_its_pipeline_upscales(upscaler_config, tmp_path):
    trainer = UpscaleTrainer(upscaler_config(
        max_train_steps=60, learning_rate=3e-3, logging_steps=10, ema_decay=0.9, validation_steps=60,
        validation_samples=4, num_validation_videos=1,
    ))  # fmt: skip
    logged = {}
    trainer.accelerator.log = lambda values, step: logged.setdefault(step, {}).update(values)
    folder = trainer.run()
    assert logged[60]["error"] < 0.8 * logged[10]["error"]
    assert 0 < logged[60]["held_out/text-to-video"] < logged[10]["error"]
    assert {path.name for path in (tmp_path / "run/samples/step-60").iterdir()} == {"00.mp4", "00.png"}

    pipe = VIMIUpscalePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    small = torch.rand(1, 4, 3, 8, 8)
    frames = pipe(small, "a fox", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 4, 16, 16, 3) and frames.std() > 0.01
    # a run goes on from an upscaler
    config = upscaler_config(
        pretrained_model_name_or_path=str(folder), model={"upscaling": {"base_size": [8, 8]}},
        output_dir=str(tmp_path / "two"), max_train_steps=1,
    )  # fmt: skip
    second = UpscaleTrainer(config)
    weight = pipe.transformer.proj_out.weight
    assert torch.equal(second.components["transformer"].proj_out.weight, weight) and second.run().is_dir()


def test_a_run_from_a_base_pipeline(make_config, tmp_path):
    base = Trainer(make_config(output_dir=str(tmp_path / "base"), max_train_steps=1)).run()
    model = {
        "transformer": {"height": 32, "width": 32, "num_latents": 32, "shared_positions": True},
        "scheduler": {"sigma_in": 4.0},
        "upscaling": {"base_size": [16, 16], "noise_levels": [0.1, 0.2]},
    }
    settings = {"pretrained_model_name_or_path": str(base), "max_train_steps": 2}
    trainer = UpscaleTrainer(make_config(model=model, **settings))
    assert trainer.model.base_size == (16, 16) and trainer.model.noise_levels == (0.1, 0.2)
    assert trainer.components["scheduler"].config.sigma_in == 4.0
    assert trainer.components["scheduler"].config.sigma_min == 0.005  # the base's
    pipe = VIMIUpscalePipeline.from_pretrained(trainer.run())
    assert pipe.transformer.config.height == 32

    del model["scheduler"]
    with pytest.raises(ValueError, match="needs `model.scheduler.sigma_in`: the base's times the enlargement"):
        UpscaleTrainer(make_config(model=model, **settings))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"upscaling": None}, "needs a section `model.upscaling`.*got None"),
        ({"upscaling": {"noise_levels": [0.1, 1.0]}}, "needs a section `model.upscaling`"),
        ({"upscaling": {"base_size": [8, 8], "level": 1}}, "needs a section `model.upscaling`.*'level': 1"),
        ({"upscaling": {"base_size": 8}}, "`model.upscaling.base_size` must be two numbers, got 8"),
    ],
)
def test_wrong_runs_are_refused_before_anything_is_loaded(upscaler_config, change, message):
    config = upscaler_config()
    config.model = {**config.model, **change}
    config.train_data_dir = "/none"
    with pytest.raises(ValueError, match=message):
        UpscaleTrainer(config)
    with pytest.raises(ValueError, match="`validation_prompts` have no base video"):
        UpscaleTrainer(upscaler_config(validation_prompts=["a fox"]))
