"""Latent self-conditioning in training: a first pass without gradients, whose latents most samples start from."""

import pytest
import torch
from tiny_transformer import make
from torch import nn

from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.vimi.scheduling_edm_video import EDMVideoScheduler


def build(rate=0.9, **options):
    transformer = make(**{"self_conditioning": True, "dropout": 0.0, **options})
    scheduler = EDMVideoScheduler(sigma_in=2.0)
    return VIMITrainingModel(nn.Identity(), transformer, scheduler, "snap", self_conditioning_rate=rate).train()


def draw(batch_size=4):
    generator = torch.Generator().manual_seed(3)
    return {
        "video": torch.rand(batch_size, 3, 4, 16, 16, generator=generator) * 2 - 1,
        "noise": torch.randn(batch_size, 3, 4, 16, 16, generator=generator),
        "sigmas": torch.linspace(0.1, 3.0, batch_size),
        "prompt_embeds": torch.randn(batch_size, 5, 16, generator=generator),
        "attention_mask": torch.ones(batch_size, 5, dtype=torch.bool),
        "fps": torch.full((batch_size,), 8.0),
    }


def watch(model):
    """The `previous_latents` of each pass, and whether it had gradients."""
    passes = []

    def note(module, args, kwargs):
        passes.append((kwargs.get("previous_latents"), torch.is_grad_enabled()))

    model.transformer.register_forward_pre_hook(note, with_kwargs=True)
    return passes


def by_hand(model, batch, previous):
    """The loss of one pass from given latents, and the latents it ends with."""
    scheduler, sigma = model.scheduler, batch["sigmas"].view(-1, 1, 1, 1, 1)
    noisy = scheduler.precondition_inputs(batch["video"] / 2.0 + sigma * batch["noise"], sigma)
    output = model.transformer(
        noisy, batch["sigmas"].log() / 4, batch["prompt_embeds"], fps=batch["fps"], previous_latents=previous
    )
    error = output.sample - scheduler.get_target(batch["video"], batch["noise"], batch["sigmas"])
    return (scheduler.loss_weight(batch["sigmas"]) * error.square().mean(dim=(1, 2, 3, 4))).mean(), output.latents


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: weight.grad.clone() for name, weight in model.transformer.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_second_pass_starts_from_the_first_ones_latents(rate):
    model, batch = build(rate), draw()
    loss, error = model.diffusion_loss(**batch)
    found = gradients(model, loss)
    with torch.no_grad():
        zeros = torch.zeros(4, 16, 32)
        previous = by_hand(model, batch, zeros)[1] if rate else zeros
    expected, _ = by_hand(model, batch, previous)
    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients(model, expected).items():  # nothing flows through the first pass
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert error.shape == (4,)


def test_one_sample_in_ten_starts_from_zeros():
    model, batch = build(), draw(batch_size=256)
    passes = watch(model)
    torch.manual_seed(0)
    with torch.no_grad():
        model.diffusion_loss(**batch)
        first = by_hand(model, batch, None)[1]
    (start, _), (previous, _) = passes[:2]
    assert start is None  # the first pass
    zeros = (previous == 0).all(dim=2).all(dim=1)
    assert 10 <= zeros.sum() <= 45  # 25.6 expected
    torch.testing.assert_close(previous[~zeros], first[~zeros])


def test_in_evaluation_every_sample_starts_from_the_first_pass():
    model, batch = build(rate=0.5).eval(), draw(batch_size=16)
    passes, state = watch(model), torch.get_rng_state()
    with torch.no_grad():
        model.diffusion_loss(**batch)
    assert not (passes[1][0] == 0).all(dim=2).any() and torch.equal(torch.get_rng_state(), state)


def test_the_first_pass_has_no_gradients():
    model = build()
    passes = watch(model)
    model.diffusion_loss(**draw())
    assert [with_gradients for _, with_gradients in passes] == [False, True]
    assert not passes[1][0].requires_grad


def test_without_self_conditioning_nothing_changes():
    model = build(self_conditioning=False)
    passes, state = watch(model), torch.get_rng_state()
    model.diffusion_loss(**draw())
    assert passes == [(None, True)] and torch.equal(torch.get_rng_state(), state)


def test_under_autocast_the_weights_still_learn():
    """Casts made in the first pass, without gradients, must not serve the second."""
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.diffusion_loss(**draw())
    assert gradients(model, loss).keys() == {name for name, _ in model.transformer.named_parameters()}


def test_further_inputs_reach_the_generator():
    model, batch = build(self_conditioning=False, resolution_token=True), draw()
    own, _ = model.diffusion_loss(**batch)
    assert torch.equal(model.diffusion_loss(**batch, resolution=torch.full((4, 2), 16))[0], own)
    assert not torch.equal(model.diffusion_loss(**batch, resolution=torch.full((4, 2), 720))[0], own)


def test_the_loss_is_one_graph_without_a_branch():
    model = build()
    torch.compiler.reset()
    compiled = torch.compile(model.diffusion_loss, backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            loss, _ = compiled(**draw())
            loss.backward()
    torch.compiler.reset()
    assert model.transformer.self_conditioner.norm_out.weight.grad.abs().max() > 0


@pytest.mark.gpu
def test_the_step_can_be_captured():
    model, batch = build().cuda(), {name: value.cuda() for name, value in draw(batch_size=64).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, capturable=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss, _ = model.diffusion_loss(**batch)
        loss.backward()
        optimizer.step()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(3):
        graph.replay()
        losses.append(loss.item())
    assert len(set(losses)) == 3  # each replay leaves out other samples


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=rf"`self_conditioning_rate` must be in \[0, 1\], got {rate}"):
        build(rate)
